"""containerd_svc.sandboxes over a real database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import errdefs
import pytest
from containerd_svc.events import Events
from containerd_svc.namespaces import Namespaces
from containerd_svc.sandboxes import Sandboxes
from containerd_svc.schema import MIGRATIONS
from pb.containerd.types import Sandbox, SandboxRuntime
from pb.google.protobuf import Any as AnyMessage
from storage.database import Database


def sandbox(sandbox_id: str = "s1", **fields: object) -> Sandbox:
    return Sandbox(sandbox_id=sandbox_id, **{"runtime": SandboxRuntime(name="r"), **fields})  # type: ignore[arg-type]


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path / "meta.db", MIGRATIONS)
    yield opened
    await opened.close()


async def test_a_record_is_kept_whole_and_found_by_filters(database: Database) -> None:
    store = Sandboxes(database)
    full = sandbox(
        runtime=SandboxRuntime(name="r", options=AnyMessage(type_url="o", value=b"\0")),
        spec=AnyMessage(type_url="t", value=b"{}"),
        labels={"a": "1"},
        extensions={"e": AnyMessage(type_url="x", value=b"y")},
    )
    made = await store.create("a", full)
    assert made.created_at == made.updated_at
    assert made.created_at is not None
    assert await Sandboxes(database).get("a", "s1") == made
    await store.create("a", sandbox("s2"))
    await store.create("b", sandbox("s1"))
    assert [found.sandbox_id for found in await store.list("a")] == ["s1", "s2"]
    for wanted in ("labels.a==1", "id==s1"):
        assert await store.list("a", [wanted]) == [made]
    assert len(await store.list("a", ["runtime.name==r"])) == 2
    assert await store.list("c") == []
    with pytest.raises(errdefs.AlreadyExists):
        await store.create("a", sandbox("s1"))
    await store.delete("a", "s1")
    with pytest.raises(errdefs.NotFound):
        await store.get("a", "s1")
    with pytest.raises(errdefs.NotFound):
        await store.delete("a", "s1")
    assert await store.get("b", "s1")


async def test_an_update_changes_what_it_names(database: Database) -> None:
    store = Sandboxes(database)
    before = await store.create("a", sandbox(labels={"a": "1", "b": "2"}))
    made = await store.update("a", sandbox(labels={"a": "9"}), ["labels.a"])
    assert made.labels == {"a": "9", "b": "2"}
    assert (made.created_at, made.runtime) == (before.created_at, before.runtime)
    made = await store.update("a", sandbox(spec=AnyMessage(type_url="t")), [])
    assert (made.labels, made.spec) == ({}, AnyMessage(type_url="t"))
    extended = sandbox(extensions={"e": AnyMessage(type_url="x")})
    assert (await store.update("a", extended, ["extensions.e"])).extensions == extended.extensions
    for wrong, paths in (
        (sandbox(), ["created_at"]),
        (sandbox(), ["extensions.none"]),
        (sandbox(runtime=SandboxRuntime(name="other")), []),
        (Sandbox(sandbox_id="s1"), ["runtime"]),
        (sandbox(labels={"k": "v" * 5000}), ["labels"]),
    ):
        with pytest.raises(errdefs.InvalidArgument):
            await store.update("a", wrong, paths)
    with pytest.raises(errdefs.NotFound):
        await store.update("a", sandbox("none"), [])
    assert (await store.get("a", "s1")).extensions == extended.extensions


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (sandbox("../x"), 'invalid sandbox ID: identifier "../x" must match'),
        (sandbox(""), "must not be empty"),
        (Sandbox(sandbox_id="s"), "sandbox.Runtime.Name must be set"),
    ],
)
async def test_a_bad_record_is_refused(database: Database, wanted: Sandbox, message: str) -> None:
    with pytest.raises(errdefs.InvalidArgument, match=f"failed to validate sandbox: .*{message}"):
        await Sandboxes(database).create("a", wanted)
    assert await Sandboxes(database).list("a") == []


async def test_a_namespace_with_a_sandbox_stays(database: Database) -> None:
    store = Sandboxes(database)
    spaces = Namespaces(database, await Events.open(database))
    await store.create("a", sandbox())
    assert await spaces.list() == [("a", {})]
    with pytest.raises(errdefs.FailedPrecondition, match="sandboxes"):
        await spaces.delete("a")
    await store.delete("a", "s1")
    await spaces.delete("a")

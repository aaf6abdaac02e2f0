"""containerd_svc.containers and namespaces over a real database."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import errdefs
import pytest
from containerd_svc.containers import Container, Containers
from containerd_svc.events import Events
from containerd_svc.namespaces import Namespaces
from containerd_svc.schema import MIGRATIONS
from pb.google.protobuf import Any as AnyMessage
from storage.database import Database

SPEC = AnyMessage(type_url="types.containerd.io/opencontainers/runtime-spec/1/Spec", value=b'{"a":1}')
PLAIN = Container(id="c1", runtime="io.containerd.runc.v2", spec=SPEC, labels={"a": "1", "empty": ""})


class Stores:
    def __init__(self, database: Database, events: Events) -> None:
        self.events = events
        self.containers = Containers(database, events)
        self.namespaces = Namespaces(database, events)


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    database = await Database.open(tmp_path / "meta.db", MIGRATIONS)
    yield Stores(database, await Events.open(database))
    await database.close()


async def test_a_container_is_kept_whole(stores: Stores) -> None:
    full = dataclasses.replace(
        PLAIN,
        image="i",
        runtime_options=AnyMessage(type_url="t", value=b"\0\1"),
        snapshotter="overlayfs",
        snapshot_key="k",
        extensions={"e": AnyMessage(type_url="x", value=b"y")},
        sandbox="s",
    )
    made = await stores.containers.create("moby", full)
    found = await stores.containers.get("moby", "c1")
    assert found == dataclasses.replace(made, labels={"a": "1"})
    assert found.created_at == found.updated_at > 0
    assert await stores.namespaces.list() == [("moby", {})]


async def test_messages_are_containerd_s(stores: Stores) -> None:
    with pytest.raises(errdefs.NotFound, match='container "x" in namespace "moby": not found'):
        await stores.containers.get("moby", "x")
    await stores.containers.create("moby", PLAIN)
    with pytest.raises(errdefs.AlreadyExists, match='container "c1": already exists'):
        await stores.containers.create("moby", PLAIN)
    await stores.containers.create("other", PLAIN)
    await stores.containers.delete("moby", "c1")
    with pytest.raises(errdefs.NotFound, match="container c1: not found"):
        await stores.containers.delete("moby", "c1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ""}, "identifier must not be empty"),
        ({"id": "../etc"}, "must match"),
        ({"id": "x" * 77}, "greater than maximum length"),
        ({"runtime": ""}, "Runtime.Name must be set"),
        ({"spec": None}, "Spec must be set"),
        ({"snapshot_key": "k"}, "Snapshotter must be set"),
        ({"labels": {"k": "v" * 4096}}, "greater than maximum size"),
        ({"extensions": {"": SPEC}}, "zero-length"),
    ],
)
async def test_bad_input_changes_nothing(stores: Stores, change: dict[str, object], message: str) -> None:
    with pytest.raises(errdefs.InvalidArgument, match=message):
        await stores.containers.create("moby", dataclasses.replace(PLAIN, **change))  # type: ignore[arg-type]
    assert await stores.containers.list("moby") == []


async def test_an_update_changes_what_its_mask_names(stores: Stores) -> None:
    await stores.containers.create("moby", PLAIN)
    want = dataclasses.replace(PLAIN, labels={"b": "2", "a": ""}, image="other")
    made = await stores.containers.update("moby", want, ["labels.b", "image"])
    assert (dict(made.labels), made.image) == ({"a": "1", "b": "2"}, "other")
    await stores.containers.update("moby", want, ["labels.a"])
    assert (await stores.containers.get("moby", "c1")).labels == {"b": "2"}
    await stores.containers.update("moby", dataclasses.replace(PLAIN, labels={}), [])
    found = await stores.containers.get("moby", "c1")
    assert (found.labels, found.image) == ({}, "")
    assert found.updated_at > found.created_at
    with pytest.raises(errdefs.InvalidArgument, match='cannot update "id" field on "c1"'):
        await stores.containers.update("moby", want, ["id"])
    with pytest.raises(errdefs.InvalidArgument, match="immutable"):
        await stores.containers.update("moby", dataclasses.replace(PLAIN, runtime="x"), [])
    with pytest.raises(errdefs.NotFound):
        await stores.containers.update("moby", dataclasses.replace(PLAIN, id="c2"), [])


async def test_lists_are_filtered(stores: Stores) -> None:
    for number in range(3):
        await stores.containers.create(
            "moby", dataclasses.replace(PLAIN, id=f"c{number}", labels={"n": str(number)})
        )
    found = await stores.containers.list("moby", ["labels.n==1", "id==c2"])
    assert [container.id for container in found] == ["c1", "c2"]


async def test_a_namespace_that_holds_something_stays(stores: Stores) -> None:
    await stores.namespaces.create("a", {"x": "1"})
    with pytest.raises(errdefs.AlreadyExists, match='namespace "a": already exists'):
        await stores.namespaces.create("a", {})
    await stores.containers.create("a", PLAIN)
    with pytest.raises(errdefs.FailedPrecondition, match='"a" must be empty, but it still has containers'):
        await stores.namespaces.delete("a")
    await stores.containers.delete("a", "c1")
    assert await stores.namespaces.update("a", {"y": "2"}, ["labels.y"]) == {"x": "1", "y": "2"}
    assert await stores.namespaces.update("a", {"z": "3"}, []) == {"z": "3"}
    await stores.namespaces.delete("a")
    with pytest.raises(errdefs.NotFound):
        await stores.namespaces.delete("a")

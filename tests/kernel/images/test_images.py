"""Docker's images over real stores: load, import, name, remove, and what is left on disk."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import errdefs
import pytest
from dockerd_api.images import Images

from tests.support.archives import chunks, saved_image, tar
from tests.support.stores import Stores, serve_stores

pytestmark = pytest.mark.root


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    async with serve_stores(tmp_path) as served:
        yield served


class Engine:
    """Images with what they told."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        self.channel = stores.channel()
        self.events: list[tuple[str, str]] = []
        self.images = Images(self.channel, self._publish, spool=stores.root)

    async def _publish(self, kind: str, action: str, actor: str, attributes: dict[str, str]) -> None:
        assert kind == "image"
        self.events.append((action, actor))

    async def load(self, archive: bytes) -> list[str]:
        return [line async for line in self.images.load(chunks(archive))]

    async def tags(self) -> list[list[str]]:
        return sorted(entry["RepoTags"] for entry in await self.images.list({}))

    async def left(self) -> set[str]:
        """Blobs, snapshots, ingests and leases that exist."""
        await self.stores.snapshots.cleanup("overlayfs")
        found = {blob.digest for blob in await self.stores.content.list("moby")}
        found |= {info.name for info in await self.stores.snapshots.list("moby", "overlayfs")}
        found |= {lease.id for lease in await self.stores.leases.list("moby")}
        found |= {status.ref for status in await self.stores.content.statuses("moby")}
        files = sum(1 for path in (self.stores.root / "content/blobs/sha256").iterdir() if path.is_file())
        assert files == sum(1 for _ in await self.stores.content.list("moby"))
        return found


@pytest.fixture
async def engine(stores: Stores) -> AsyncIterator[Engine]:
    made = Engine(stores)
    yield made
    made.channel.close()


async def test_load_and_resolve(engine: Engine) -> None:
    image_id, archive = saved_image(["a:1", "x.io/b:2"], [{"f": b"12345"}, {"g": b"678"}])
    assert await engine.load(archive) == ["Loaded image: a:1\n", "Loaded image: x.io/b:2\n"]
    for ref in (
        "a:1",
        "docker.io/library/a:1",
        "x.io/b:2",
        image_id,
        image_id[7:],
        image_id[7:15],
        image_id[:20],
    ):
        assert (await engine.images.resolve(ref)).id == image_id
    image = await engine.images.resolve("a:1")
    assert (image.size, len(image.layers), image.config["config"]["Cmd"]) == (8, 2, ["sh"])
    [entry] = await engine.images.list({})
    assert (entry["RepoTags"], entry["Size"], entry["Created"]) == (["a:1", "x.io/b:2"], 8, 1704067200)
    before = await engine.left()
    assert await engine.load(gzip.compress(archive)) == ["Loaded image: a:1\n", "Loaded image: x.io/b:2\n"]
    assert await engine.left() == before
    assert engine.events == [("load", image_id)] * 2


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("nope", "No such image: nope:latest"),
        ("nope:x", "No such image: nope:x"),
        ("00", "No such image: 00:latest"),
        ("a" * 64, f"No such image: sha256:{'a' * 64}"),
        (f"a@sha256:{'b' * 64}", f"No such image: a@sha256:{'b' * 64}"),
    ],
)
async def test_not_found(ref: str, message: str, engine: Engine) -> None:
    for call in (engine.images.resolve, engine.images.history, engine.images.remove):
        with pytest.raises(errdefs.NotFound) as caught:
            await call(ref)
        assert caught.value.message == message


async def test_ambiguous_ids(engine: Engine) -> None:
    ids = []
    for number in range(20):  # twenty ids cannot have twenty first digits
        image_id, archive = saved_image([f"a:{number}"], [], author=str(number))
        ids.append(image_id)
        await engine.load(archive)
    digits = [image_id[7] for image_id in ids]
    twice = next(digit for digit in digits if digits.count(digit) > 1)
    with pytest.raises(errdefs.NotFound):
        await engine.images.resolve(twice)
    assert (await engine.images.resolve(ids[3][7:27])).id == ids[3]


async def test_a_name_that_moves(engine: Engine) -> None:
    old, first = saved_image(["a:1"], [{"f": b"1"}])
    new, second = saved_image(["a:1"], [{"f": b"2"}])
    await engine.load(first)
    assert await engine.load(second) == [
        f"The image a:1 already exists, renaming the old one with ID {old} to empty string\n",
        "Loaded image: a:1\n",
    ]
    assert await engine.tags() == [[], ["a:1"]]
    assert (await engine.images.resolve(old)).repo_tags == ()
    assert (await engine.images.resolve("a:1")).id == new
    # Named again, it is unnamed no more.
    await engine.images.tag(old[7:19], "b", "2")
    assert await engine.tags() == [["a:1"], ["b:2"]]
    for ref in ("a:1", "b:2"):
        await engine.images.remove(ref)
    assert await engine.left() == set()


async def test_removal(engine: Engine) -> None:
    image_id, archive = saved_image(["a:1", "b:2"], [{"f": b"1"}, {"g": b"2"}])
    other, shares = saved_image(["c:3"], [{"f": b"1"}])
    await engine.load(archive)
    await engine.load(shares)
    image, short = await engine.images.resolve(image_id), image_id[7:19]
    with pytest.raises(errdefs.Conflict, match=r"\(must be forced\) - image is referenced in multiple rep"):
        await engine.images.remove(short)
    assert await engine.images.remove("a:1") == [{"Untagged": "a:1"}]
    engine.images.in_use = lambda wanted: [("c" * 64, False)] if wanted == image_id else []
    with pytest.raises(errdefs.Conflict) as caught:
        await engine.images.remove("b:2")
    assert caught.value.message == (
        'conflict: unable to remove repository reference "b:2" (must force) - container cccccccccccc '
        f"is using its referenced image {short}"
    )
    with pytest.raises(errdefs.Conflict, match="being used by stopped container cccccccccccc"):
        await engine.images.remove(short)
    engine.images.in_use = lambda wanted: [("c" * 64, True)] if wanted == image_id else []
    with pytest.raises(errdefs.Conflict, match=r"\(cannot be forced\) - image is being used by running"):
        await engine.images.remove(short, force=True)
    engine.images.in_use = lambda wanted: []
    # The lower layer is the other image's too.
    assert await engine.images.remove("b:2") == [
        {"Untagged": "b:2"},
        {"Deleted": image_id},
        {"Deleted": image.chain_id},
    ]
    await engine.images.remove(other, force=True)
    assert await engine.left() == set()
    assert [action for action, _ in engine.events if action != "load"] == [
        "untag", "untag", "delete", "untag", "delete",
    ]  # fmt: skip


async def test_a_container_outlives_its_image(engine: Engine) -> None:
    image_id, archive = saved_image(["a:1"], [{"f": b"1"}])
    await engine.load(archive)
    image = await engine.images.resolve("a:1")
    await engine.images.prepare_snapshot("container", image)
    await engine.images.prepare_snapshot("container", image)  # asked again, since an answer was lost
    assert await engine.images.remove("a:1", force=True) == [{"Untagged": "a:1"}, {"Deleted": image_id}]
    [mount] = await engine.images.snapshot_mounts("container")
    [lower] = [option[9:] for option in mount.options if option.startswith("lowerdir=")]
    assert Path(lower, "f").read_bytes() == b"1"
    await engine.images.remove_snapshot("container")
    await engine.images.remove_snapshot("container")
    await engine.load(archive)
    await engine.images.remove("a:1")
    assert await engine.left() == set()


async def test_snapshots_that_are_gone_are_unpacked_again(engine: Engine) -> None:
    _, archive = saved_image(["a:1"], [{"f": b"1"}, {"g": b"2"}])
    await engine.load(archive)
    image = await engine.images.resolve("a:1")
    await engine.stores.snapshots.remove("moby", "overlayfs", image.chain_id)
    await engine.images.prepare_snapshot("container", image)
    assert await engine.images.snapshot_mounts("container")


@pytest.mark.parametrize("damage", ["diff id", "truncated layer", "hostile layer", "second image"])
async def test_nothing_is_left_of_what_is_refused(damage: str, engine: Engine) -> None:
    _, good = saved_image(["good:1"], [{"f": b"1"}])
    await engine.load(good)
    before = await engine.left()
    layers: list[dict[str, bytes]] = [{"one": b"1"}, {"two": b"2"}]
    _, archive = saved_image(["a:1"], layers)
    if damage == "diff id":
        _, archive = saved_image(["a:1"], layers, rootfs={"diff_ids": [f"sha256:{'1' * 64}"] * 2})
    elif damage == "truncated layer":
        bad = tar({"x": bytes(5000)})[:3000]
        archive = _with_layer(bad)
    elif damage == "hostile layer":
        archive = _with_layer(tar({"../../escape": b"x"}))
    else:
        document = [{"Config": "c", "RepoTags": ["A:1"]}]
        archive = tar({"c": b'{"rootfs":{}}', "manifest.json": json.dumps(document).encode()})
    with pytest.raises(errdefs.InvalidArgument):
        await engine.load(archive)
    assert await engine.left() == before
    assert await engine.tags() == [["good:1"]]


def _with_layer(layer: bytes) -> bytes:
    config = {"rootfs": {"diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]}}
    document = [{"Config": "c", "RepoTags": ["a:1"], "Layers": ["l"]}]
    return tar({"c": json.dumps(config).encode(), "l": layer, "manifest.json": json.dumps(document).encode()})


@pytest.mark.parametrize("squeeze", [bytes, gzip.compress])
async def test_import(squeeze: Any, engine: Engine) -> None:
    image_id = await engine.images.import_(
        chunks(squeeze(tar({"bin/x": b"program"}))),
        repository="imp",
        tag="v1",
        instructions=['CMD ["x"]', "ENV A=b"],
        message="Imported from -",
    )
    shown = await engine.images.inspect("imp:v1", (1, 45))
    assert (shown["Id"], shown["Size"], shown["Comment"]) == (image_id, 7, "Imported from -")
    assert (shown["Config"]["Cmd"], shown["Config"]["Env"]) == (["x"], ["A=b"])
    [step] = await engine.images.history("imp:v1")
    assert (step["Comment"], step["Size"]) == ("Imported from -", 7)
    unnamed = await engine.images.import_(chunks(tar({"y": b"1"})))
    assert await engine.tags() == [[], ["imp:v1"]]
    await engine.images.remove(unnamed[7:])
    await engine.images.remove("imp:v1")
    assert await engine.left() == set()


async def test_import_refused(engine: Engine) -> None:
    for data, words in (
        (b"no tar at all", {}),
        (tar({"../x": b"1"}), {}),
        (tar({"x": b"1"}), {"instructions": ["RUN x"]}),
        (tar({"x": b"1"}), {"repository": "UP"}),
        (tar({"x": b"1"}), {"repository": "a", "tag": "b c"}),
    ):
        with pytest.raises(errdefs.InvalidArgument):
            await engine.images.import_(chunks(data), **words)
    assert await engine.left() == set()


class Gone(Exception):
    """The client closed its connection."""


async def test_a_client_that_goes_away(engine: Engine) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield tar({"x": os.urandom(2_000_000)})[:1_500_000]
        raise Gone

    with pytest.raises(Gone):
        await engine.images.import_(broken())
    with pytest.raises(Gone):
        await anext(engine.images.load(broken()))
    assert await engine.left() == set()

"""Docker's images over real stores: load, import, name, remove, and what is left on disk."""

from __future__ import annotations

import asyncio
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
from dockerd_api.images.queries import Detail
from dockerd_api.images.removal import User

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
        return sorted(entry["RepoTags"] for entry in await self.images.queries.entries({}))

    async def id(self, ref: str) -> str:
        """The digest of the record's target, asked of the store itself."""
        record = await self.stores.images.get("moby", f"docker.io/library/{ref}")
        return record.target.digest

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
    config_digest, archive = saved_image(["a:1", "x.io/b:2"], [{"f": b"12345"}, {"g": b"678"}])
    assert await engine.load(archive) == ["Loaded image: a:1\n", "Loaded image: x.io/b:2\n"]
    image_id = await engine.id("a:1")
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
    assert (len(image.layers), image.config["config"]["Cmd"]) == (2, ["sh"])
    with pytest.raises(errdefs.NotFound):
        await engine.images.resolve(config_digest)
    [entry] = await engine.images.queries.entries({})
    assert (entry["Id"], entry["RepoTags"], entry["Created"]) == (
        image_id, ["a:1", "x.io/b:2"], 1704067200,
    )  # fmt: skip
    assert entry["RepoDigests"] == [f"a@{image_id}", f"x.io/b@{image_id}"]
    # What its blobs and its snapshots take.
    blobs = sum([blob.size for blob in await engine.stores.content.list("moby")])
    names = [info.name for info in await engine.stores.snapshots.list("moby", "overlayfs")]
    usages = [await engine.stores.snapshots.usage("moby", "overlayfs", name) for name in names]
    assert entry["Size"] == blobs + sum(usage.size for usage in usages)
    shown = await engine.images.queries.inspect("a:1", (1, 50))
    assert (shown["Size"], shown["Descriptor"]["digest"]) == (blobs, image_id)
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
    for call in (engine.images.resolve, engine.images.queries.history, engine.images.remove):
        with pytest.raises(errdefs.NotFound) as caught:
            await call(ref)
        assert caught.value.message == message


async def test_ambiguous_ids(engine: Engine) -> None:
    ids = []
    for number in range(20):  # twenty ids cannot have twenty first digits
        _, archive = saved_image([f"a:{number}"], [], author=str(number))
        await engine.load(archive)
        ids.append(await engine.id(f"a:{number}"))
    digits = [image_id[7] for image_id in ids]
    twice = next(digit for digit in digits if digits.count(digit) > 1)
    with pytest.raises(errdefs.NotFound):
        await engine.images.resolve(twice)
    assert (await engine.images.resolve(ids[3][7:27])).id == ids[3]


async def test_a_name_that_moves(engine: Engine) -> None:
    _, first = saved_image(["a:1"], [{"f": b"1"}])
    _, second = saved_image(["a:1"], [{"f": b"2"}])
    await engine.load(first)
    old = await engine.id("a:1")
    assert await engine.load(second) == ["Loaded image: a:1\n"]
    new = await engine.id("a:1")
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
    _, archive = saved_image(["a:1", "b:2"], [{"f": b"1"}, {"g": b"2"}])
    _, shares = saved_image(["c:3"], [{"f": b"1"}])
    await engine.load(archive)
    await engine.load(shares)
    image_id, other = await engine.id("a:1"), await engine.id("c:3")
    short = image_id[7:19]
    with pytest.raises(errdefs.Conflict, match=r"\(must be forced\) - image is referenced in multiple rep"):
        await engine.images.remove(short)
    assert await engine.images.remove("a:1") == [{"Untagged": "a:1"}]
    engine.images.containers = lambda: [User("c" * 64, False, image_id)]
    with pytest.raises(errdefs.Conflict) as caught:
        await engine.images.remove("b:2")
    assert caught.value.message == (
        "conflict: unable to delete b:2 (must be forced) - container cccccccccccc "
        f"is using its referenced image {short}"
    )
    with pytest.raises(errdefs.Conflict, match="being used by stopped container cccccccccccc"):
        await engine.images.remove(short)
    engine.images.containers = lambda: [User("c" * 64, True, image_id)]
    with pytest.raises(errdefs.Conflict, match=r"\(cannot be forced\) - image is being used by running"):
        await engine.images.remove(short, force=True)
    # By force the name goes, and the image stays without one.
    assert await engine.images.remove("b:2", force=True) == [{"Untagged": "b:2"}]
    assert await engine.tags() == [[], ["c:3"]]
    engine.images.containers = list
    # The lower layer is the other image's too.
    assert await engine.images.remove(short) == [{"Deleted": image_id}]
    await engine.images.remove(other, force=True)
    assert await engine.left() == set()
    assert [action for action, _ in engine.events if action != "load"] == [
"untag", "untag", "delete", "untag", "delete",
    ]  # fmt: skip


async def test_a_container_outlives_its_image(engine: Engine) -> None:
    _, archive = saved_image(["a:1"], [{"f": b"1"}])
    await engine.load(archive)
    image = await engine.images.resolve("a:1")
    image_id = image.id
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
    shown = await engine.images.queries.inspect("imp:v1", (1, 45))
    assert (shown["Id"], shown["Comment"]) == (image_id, "Imported from -")
    assert (shown["Config"]["Cmd"], shown["Config"]["Env"]) == (["x"], ["A=b"])
    [step] = await engine.images.queries.history("imp:v1")
    assert (step["Comment"], step["Id"]) == ("Imported from -", image_id)
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


async def test_prune(engine: Engine) -> None:
    for number, tag in enumerate(["a:1", "a:1", "b:2", "c:3"]):
        _, archive = saved_image([tag], [{"f": bytes([number]) * 9000}])
        await engine.load(archive)
    engine.images.containers = lambda: [User("c" * 64, False, used, "c:3")]
    used = await engine.id("c:3")
    before = await engine.stores.content.list("moby")
    [unnamed] = [entry for entry in await engine.images.queries.entries({}) if not entry["RepoTags"]]
    assert await engine.images.prune({"until": ["2020-01-01T00:00:00Z"]}) == ([], 0)
    deleted, freed = await engine.images.prune({})
    assert deleted == [{"Untagged": unnamed["Id"]}, {"Deleted": unnamed["Id"]}]
    assert freed == unnamed["Size"]
    assert len(before) - len(await engine.stores.content.list("moby")) == 3  # layer, config, manifest
    deleted, _ = await engine.images.prune({"dangling": ["false"], "label!": ["keep"]})
    assert [entry["Untagged"] for entry in deleted if "Untagged" in entry] == ["a:1", "b:2"]
    assert await engine.tags() == [["c:3"]]
    assert engine.events[-1] == ("prune", "")


async def test_prune_leaves_what_is_being_used(engine: Engine) -> None:
    _, archive = saved_image(["a:1"], [{"f": b"1"}])
    await engine.load(archive)
    image = await engine.images.resolve("a:1")
    with engine.images.reserve(image):
        assert await engine.images.prune({"dangling": ["false"]}) == ([], 0)
    deleted, _ = await engine.images.prune({"dangling": ["false"]})
    assert deleted == [{"Untagged": "a:1"}, {"Deleted": image.id}]
    assert await engine.left() == set()


async def test_ids_of_an_earlier_version(engine: Engine) -> None:
    config_digest, archive = saved_image(["a:1"], [{"f": b"1"}])
    await engine.load(archive)
    found = await engine.images.successors([config_digest, await engine.id("a:1"), "sha256:nothing"])
    assert {old: image.id for old, image in found.items()} == {config_digest: await engine.id("a:1")}


async def test_loads_beside_prune(engine: Engine) -> None:
    """Nothing of an image that is being loaded is pruned, though its layers have no name yet."""
    done = asyncio.Event()
    pruned = 0

    async def prune() -> None:
        nonlocal pruned
        while not done.is_set():
            await engine.images.prune({})
            pruned += 1

    async def load(number: int) -> None:
        _, archive = saved_image([f"a:{number}"], [{"f": b"same"}, {"g": str(number).encode() * 5000}])
        assert await engine.load(archive) == [f"Loaded image: a:{number}\n"]
        image = await engine.images.resolve(f"a:{number}")
        await engine.images.prepare_snapshot(f"container{number}", image)

    pruning = asyncio.create_task(prune())
    await asyncio.gather(*(load(number) for number in range(15)))
    done.set()
    await pruning
    assert pruned
    walked = await engine.images.queries.entries({}, detail=Detail(manifests=True))
    assert len(walked) == 15
    assert all(entry["Manifests"][0]["Available"] for entry in walked)

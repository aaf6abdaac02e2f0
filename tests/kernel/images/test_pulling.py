"""Images pulled into real stores from a source that breaks off, lies and counts what it gives."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import errdefs
import pytest
from containerd_svc.transfer.pulling import Puller
from containerd_svc.transfer.unpacking import Unpacker
from pb.containerd.types import Platform
from pb.containerd.types.transfer import ImageStore, Progress, UnpackConfiguration

from tests.support.archives import tar
from tests.support.stores import Stores, serve_stores

pytestmark = pytest.mark.root

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
NAME = "example.com/some/image:latest"
PIECE = 64 * 1024

Descriptor = dict[str, Any]


class Body:
    """What one answer brings."""

    def __init__(self, source: Source, digest: str, offset: int) -> None:
        self.offset = offset
        self._source = source
        self._digest = digest

    async def __aiter__(self) -> AsyncIterator[bytes]:
        data = self._source.blobs[self._digest]
        cuts = self._source.cuts.get(self._digest, [])
        end = cuts.pop(0) if cuts else len(data)
        for start in range(self.offset, end, PIECE):
            piece = data[start : min(start + PIECE, end)]
            self._source.sent[self._digest] = self._source.sent.get(self._digest, 0) + len(piece)
            if len(piece) == PIECE:
                self._source.began.set()
            yield piece
            await self._source.gate.wait()
        if end < len(data):
            raise errdefs.Unavailable("unexpected EOF", detail={"registry": "away"})


class Source:
    """A registry with one image."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.cuts: dict[str, list[int]] = {}
        self.sent: dict[str, int] = {}
        self.ranges = True
        self.gate = asyncio.Event()
        self.gate.set()
        self.began = asyncio.Event()  # with a blob larger than a piece
        self.target: Descriptor = {}

    def put(self, kind: str, data: bytes) -> Descriptor:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.blobs[digest] = data
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    def image(self, *layers: bytes, architecture: str = "amd64", **changes: Any) -> Descriptor:
        diff_ids = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
        config = {"os": "linux", "architecture": architecture, "rootfs": {"diff_ids": diff_ids}}
        document = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.put(CONFIG, json.dumps(config).encode()),
            "layers": [self.put(LAYER, data) for data in layers],
        } | changes
        self.target = self.put(MANIFEST, json.dumps(document).encode())
        return self.target

    async def resolve(self) -> Descriptor:
        return self.target

    async def manifest(self, descriptor: Mapping[str, Any]) -> bytes:
        return self.blobs[descriptor["digest"]]

    @contextlib.asynccontextmanager
    async def fetch(
        self, descriptor: Mapping[str, Any], offset: int = 0, end: int | None = None
    ) -> AsyncIterator[Body]:
        if offset and offset >= len(self.blobs[descriptor["digest"]]):
            raise errdefs.OutOfRange("nothing there")
        yield Body(self, descriptor["digest"], offset if self.ranges else 0)


class World:
    """The stores and a puller on them."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        self.told: list[tuple[str, str]] = []
        unpacker = Unpacker(stores.content, stores.snapshots, stores.leases, stores.differ)
        self.puller = Puller(stores.content, stores.leases, unpacker)
        self.amd64 = Platform(os="linux", architecture="amd64")

    async def pull(
        self, source: Source, *platforms: Platform, unpack: bool = True, all_metadata: bool = False
    ) -> Descriptor:
        store = ImageStore(name=NAME, platforms=list(platforms), all_metadata=all_metadata)
        if unpack:
            store.unpacks = [UnpackConfiguration(platform=self.amd64, snapshotter="overlayfs")]
        return await self.puller.pull("moby", source, NAME, store, self._tell, "lease")

    async def _tell(self, progress: Progress) -> None:
        self.told.append((progress.event, progress.name))

    async def digests(self) -> set[str]:
        return {blob.digest for blob in await self.stores.content.list("moby")}

    async def nothing_is_left(self) -> None:
        assert await self.digests() == set()
        assert await self.stores.content.statuses("moby") == []
        assert await self.stores.snapshots.list("moby", "overlayfs") == []


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with serve_stores(tmp_path) as stores:
        await stores.leases.create("moby", "lease", {})
        yield World(stores)


async def test_an_image(world: World) -> None:
    source = Source()
    layers = tar({"a": b"1" * 5000}), tar({"b/c": b"2"})
    source.image(*layers)
    assert await world.pull(source) == source.target
    assert await world.digests() == set(source.blobs)
    manifest = (await world.stores.content.info("moby", source.target["digest"])).labels
    assert manifest["containerd.io/distribution.source.example.com"] == "some/image"
    assert {manifest[f"containerd.io/gc.ref.content.{key}"] for key in ("config", "l.0", "l.1")} == set(
        source.blobs
    ) - {source.target["digest"]}
    events = [event for event, _ in world.told]
    assert events.count("waiting") == events.count("complete") == 4
    assert events.count("extracting") == events.count("extracted") == 2
    snapshots = await world.stores.snapshots.list("moby", "overlayfs")
    assert {info.kind for info in snapshots} == {"committed"}
    assert len(snapshots) == 2

    world.told.clear()
    sent = dict(source.sent)
    await world.pull(source)
    assert source.sent == sent
    assert [event for event, _ in world.told].count("already exists") == 4
    await world.stores.leases.delete("moby", "lease")
    await world.stores.collector.collect("moby")
    await world.nothing_is_left()


@pytest.mark.parametrize("ranges", [True, False])
async def test_a_line_that_breaks(world: World, ranges: bool) -> None:
    source = Source()
    source.ranges = ranges
    data = tar({"big": os.urandom(2_000_000)})
    source.image(data)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    source.cuts[digest] = [len(data) // 10, len(data) // 2, len(data) * 99 // 100]
    await world.pull(source)
    assert digest in await world.digests()
    if ranges:
        assert source.sent[digest] == len(data)


async def test_what_came_before_a_cancelled_pull_is_not_asked_for_again(world: World) -> None:
    source = Source()
    data = tar({"big": os.urandom(2_000_000)})
    source.image(data)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    source.gate.clear()
    pulling = asyncio.create_task(world.pull(source))
    await asyncio.wait_for(source.began.wait(), 10)
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    statuses = {each.ref: each.offset for each in await world.stores.content.statuses("moby")}
    assert statuses[f"layer-{digest}"] == PIECE
    source.gate.set()
    await world.pull(source)
    assert source.sent[digest] == len(data)


async def test_two_pulls_share_and_one_may_leave(world: World) -> None:
    source = Source()
    data = tar({"big": os.urandom(2_000_000)})
    source.image(data)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    source.gate.clear()
    pulls = [asyncio.create_task(world.pull(source)) for _ in range(3)]
    await asyncio.wait_for(source.began.wait(), 10)
    pulls[0].cancel()
    source.gate.set()
    results = await asyncio.gather(*pulls, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert results[1:] == [source.target] * 2
    assert source.sent[digest] == len(data)
    assert len(await world.stores.snapshots.list("moby", "overlayfs")) == 1


@pytest.mark.parametrize("change", ["wrong", "short", "long"])
async def test_another_blob_than_the_manifest_says(world: World, change: str) -> None:
    source = Source()
    data = tar({"a": b"1" * 5000})
    source.image(data)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    lies = {"wrong": b"x" * len(data), "short": data[:-1], "long": data + b"x"}
    source.blobs[digest] = lies[change]
    with pytest.raises(errdefs.FailedPrecondition, match="failed commit on ref"):
        await world.pull(source)
    assert digest not in await world.digests()
    refs = {status.ref for status in await world.stores.content.statuses("moby")}
    assert f"layer-{digest}" not in refs
    source.blobs[digest] = data
    await world.pull(source)
    assert digest in await world.digests()


@pytest.mark.parametrize(
    "change",
    [
        {"manifests": []},
        {"mediaType": INDEX},
        {"layers": [{"mediaType": LAYER, "digest": "md5:00", "size": 1}]},
        {"layers": [{"mediaType": LAYER, "digest": f"sha256:{'0' * 64}"}]},
        {"fsLayers": []},
    ],
)
async def test_documents_that_can_be_read_in_two_ways(world: World, change: dict[str, Any]) -> None:
    source = Source()
    source.image(tar({"a": b"1"}), **change)
    with pytest.raises(errdefs.InvalidArgument):
        await world.pull(source)
    await world.nothing_is_left()


async def test_a_key_that_stands_twice(world: World) -> None:
    source = Source()
    source.image(tar({"a": b"1"}))
    text = source.blobs[source.target["digest"]].replace(b'{"schema', b'{"layers": [], "schema', 1)
    source.target = source.put(MANIFEST, text)
    with pytest.raises(errdefs.InvalidArgument, match="ambiguity"):
        await world.pull(source)
    await world.nothing_is_left()


async def test_only_the_platforms_that_are_wanted(world: World) -> None:
    source = Source()
    listed = []
    for architecture in ("amd64", "arm64", "s390x"):
        image = source.image(tar({architecture: b"1"}), architecture=architecture)
        listed.append({**image, "platform": {"os": "linux", "architecture": architecture}})
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
    source.target = source.put(INDEX, json.dumps(document).encode())
    await world.pull(source, world.amd64)
    assert listed[0]["digest"] in await world.digests()
    assert len(await world.digests()) == 4
    await world.pull(source, world.amd64, all_metadata=True)
    assert len(await world.digests()) == 8  # of the two others manifest and config
    await world.pull(source)
    assert len(await world.digests()) == 10
    assert len(await world.stores.snapshots.list("moby", "overlayfs")) == 1
    with pytest.raises(errdefs.NotFound, match="no match for platform"):
        await world.pull(source, Platform(os="linux", architecture="riscv64"))

"""Pushes of a content store to a real registry."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import errdefs
import pytest
from containerd_svc.registry import Registry, Resolver
from containerd_svc.transfer.pushing import Pusher
from pb.containerd.types import Platform
from pb.containerd.types.transfer import Progress

from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.registry import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    LocalRegistry,
    layer_of,
)
from tests.support.stores import Stores, serve_stores

Descriptor = dict[str, Any]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegistry]:
    with LocalRegistry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    async with serve_stores(tmp_path) as opened:
        yield opened


async def _blob(stores: Stores, kind: str, data: bytes) -> Descriptor:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    async with stores.content.writer("moby", digest) as ingest:
        await ingest.write(data)
        with suppress(errdefs.AlreadyExists):
            await stores.content.commit("moby", ingest, wanted={})
    return {"mediaType": kind, "digest": digest, "size": len(data)}


async def _image(stores: Stores, architecture: str, layers: list[bytes]) -> Descriptor:
    config = {"os": "linux", "architecture": architecture, "rootfs": {"type": "layers", "diff_ids": []}}
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": await _blob(stores, OCI_CONFIG, json.dumps(config).encode()),
        "layers": [await _blob(stores, OCI_LAYER, layer) for layer in layers],
    }
    return await _blob(stores, OCI_MANIFEST, json.dumps(manifest).encode())


async def _index(stores: Stores, images: dict[str, Descriptor]) -> Descriptor:
    listed = [
        {**image, "platform": {"os": "linux", "architecture": architecture}}
        for architecture, image in images.items()
    ]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}
    return await _blob(stores, OCI_INDEX, json.dumps(document).encode())


async def _push(
    stores: Stores, reference: str, target: Descriptor, platforms: list[Platform] | None = None
) -> list[Progress]:
    told: list[Progress] = []

    async def tell(progress: Progress) -> None:
        told.append(progress)

    async with Registry(reference, Resolver()) as registry:
        await Pusher(stores.content).push("moby", registry, reference, target, platforms or [], tell)
    return told


async def test_only_what_is_missing_is_sent(stores: Stores, plain: LocalRegistry) -> None:
    shared, own = layer_of({"shared": b"s" * 50_000}), layer_of({"own": b"o" * 50_000})
    first = await _image(stores, "amd64", [shared])
    second = await _image(stores, "amd64", [shared, own])
    with FaultProxy(plain.address) as proxy:
        told = await _push(stores, f"{proxy.address}/missing/one:latest", first)
        assert [each.event for each in told if each.event.startswith(("Pushing", "Completed"))] == [
            f"Pushing to OCI Registry ({proxy.address}/missing/one:latest)",
            f"Completed push to OCI Registry ({proxy.address}/missing/one:latest)",
        ]
        proxy.requests.clear()
        await _push(stores, f"{proxy.address}/missing/two:latest", second)
        mounts = [each.target for each in proxy.requests if "mount=" in each.target]
        sent = [each for each in proxy.requests if each.method == "PUT" and "/blobs/" in each.target]
        assert len(mounts) == 2  # the config and the layer that are the other repository's
        assert len(sent) == 1
        proxy.requests.clear()
        told = await _push(stores, f"{proxy.address}/missing/two:again", second)
        assert not [each for each in proxy.requests if "/blobs/uploads" in each.target]
        assert len([each for each in told if each.event == "already exists"]) == 3
    assert plain.manifest("missing/two", "again")[1] == plain.manifest("missing/two", "latest")[1]
    plain.collect()


async def test_an_upload_that_breaks_goes_on(stores: Stores, plain: LocalRegistry) -> None:
    data = hashlib.shake_128(b"seed").digest(2_000_000)
    image = await _image(stores, "amd64", [data])
    with FaultProxy(plain.address) as proxy:
        proxy.add(Fault(path="/blobs/uploads/.*digest=", method="PUT", cut_upload_at=0.5))
        await _push(stores, f"{proxy.address}/broken/one:latest", image)
        layer = plain.manifest("broken/one", "latest")[1]["layers"][0]
        assert plain.blob("broken/one", layer["digest"]) == data


async def test_an_index_with_all_and_with_one(stores: Stores, plain: LocalRegistry) -> None:
    images = {
        "amd64": await _image(stores, "amd64", [layer_of({"x": b"1"})]),
        "arm64": await _image(stores, "arm64", [layer_of({"x": b"2"})]),
    }
    index = await _index(stores, images)
    await _push(stores, f"{plain.address}/several/one:all", index)
    kind, document = plain.manifest("several/one", "all")
    assert kind == OCI_INDEX
    assert [each["digest"] for each in document["manifests"]] == [each["digest"] for each in images.values()]
    await _push(
        stores,
        f"{plain.address}/several/one:arm",
        index,
        [Platform(os="linux", architecture="arm64")],
    )
    assert plain.manifest("several/one", "arm")[0] == OCI_MANIFEST


async def test_content_that_is_missing(stores: Stores, plain: LocalRegistry) -> None:
    image = await _image(stores, "amd64", [layer_of({"lost": b"1"})])
    layer = (await stores.content.list("moby"))[0]
    for blob in await stores.content.list("moby"):
        if blob.digest != image["digest"]:
            layer = blob
    await stores.content.delete("moby", layer.digest)
    with pytest.raises(errdefs.NotFound):
        await _push(stores, f"{plain.address}/lost/one:latest", image)
    async with Registry(f"{plain.address}/lost/one:latest", Resolver()) as registry:
        with pytest.raises(errdefs.NotFound):
            await registry.resolve()

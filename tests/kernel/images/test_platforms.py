"""Images of several platforms, of which not all is here, with attestations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import errdefs
import pytest
from dockerd_api.images import Images, platforms
from dockerd_api.images.blobs import Blobs
from dockerd_api.images.catalog import Catalog
from dockerd_api.images.documents import Descriptor
from dockerd_api.images.platforms import Platform
from pb.containerd.services.leases import v1 as leases
from rpc.grpc import Channel

from tests.support.stores import serve_stores

pytestmark = pytest.mark.root

_OCI = "application/vnd.oci.image"
_INDEX, _MANIFEST = f"{_OCI}.index.v1+json", f"{_OCI}.manifest.v1+json"


class Store:
    """Images over stores, and blobs put there by hand, held by a lease."""

    def __init__(self, channel: Channel, root: Path) -> None:
        self.blobs = Blobs(channel)
        self.catalog = Catalog(channel, self.blobs)
        self.images = Images(channel, _nothing, spool=root)

    async def put(self, media_type: str, document: Any, **rest: Any) -> dict[str, Any]:
        """A blob; its descriptor."""
        data = json.dumps(document).encode()
        digest = await self.blobs.write_document(data, ref=f"r{len(data)}", lease="test", labels={})
        return {"mediaType": media_type, "digest": digest, "size": len(data), **rest}

    async def manifest(
        self, architecture: str, *, here: bool = True, variant: str = "", files: str = ""
    ) -> dict[str, Any]:
        """A manifest, and, when it is to be here, what it needs."""
        platform = {"os": "linux", "architecture": architecture} | ({"variant": variant} if variant else {})
        layer = await self.put(f"{_OCI}.layer.v1.tar", [files or architecture, variant])
        diff_id = layer["digest"]
        document = {**platform, "config": {}, "rootfs": {"type": "layers", "diff_ids": [diff_id]}}
        config = await self.put(f"{_OCI}.config.v1+json", document)
        made = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": [layer]}
        if here:
            return await self.put(_MANIFEST, made, platform=platform)
        for blob in (layer, config):
            await self.blobs.remove(blob["digest"])
        data = json.dumps(made).encode()
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        return {"mediaType": _MANIFEST, "digest": digest, "size": len(data), "platform": platform}

    async def index(self, name: str, *manifests: dict[str, Any]) -> str:
        """A named index; its digest."""
        document = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": list(manifests)}
        made = await self.put(_INDEX, document)
        target = Descriptor(_INDEX, made["digest"], made["size"])
        await self.catalog.put(f"docker.io/library/{name}", target, {})
        return target.digest


async def _nothing(*_: object) -> None:
    """Events are of no interest here."""


@pytest.fixture
async def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    monkeypatch.setattr(platforms, "host", lambda: Platform("linux", "amd64"))
    async with serve_stores(tmp_path) as stores:
        channel = stores.channel()
        await leases.LeasesStub(channel).create(leases.CreateRequest(id="test"))
        yield Store(channel, tmp_path)
        channel.close()


def attestation(manifest: dict[str, Any], of: dict[str, Any]) -> dict[str, Any]:
    return {
        **manifest,
        "platform": {"os": "unknown", "architecture": "unknown"},
        "annotations": {
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": of["digest"],
        },
    }


async def test_choice(store: Store) -> None:
    arm = await store.manifest("arm64")
    own = await store.manifest("amd64")
    gone = await store.manifest("s390x", here=False)
    proof = attestation(await store.manifest("none"), own)
    digest = await store.index("multi:1", proof, arm, gone, own)
    image = await store.images.resolve("multi:1")
    assert (image.id, image.manifest and image.manifest.descriptor.digest) == (digest, own["digest"])
    assert (await store.images.resolve("multi:1", Platform("linux", "arm64", "v8"))).architecture == "arm64"
    for missing in (Platform("linux", "s390x"), Platform("linux", "arm64", "v9"), Platform("a", "b")):
        with pytest.raises(errdefs.NotFound) as caught:
            await store.images.resolve("multi:1", missing)
        assert caught.value.message == (
            f"image with reference multi:1 was found but does not provide the specified platform ({missing})"
        )
    await store.index("only:1", proof)
    with pytest.raises(errdefs.NotFound, match="only:1 was found but does not provide any platform"):
        await store.images.resolve("only:1")
    shown = await store.images.queries.inspect("only:1", (1, 50))
    assert (shown["Config"], shown["Architecture"]) == (None, "")


async def test_manifests(store: Store) -> None:
    own = await store.manifest("amd64")
    gone = await store.manifest("arm", variant="v7", here=False)
    proof = attestation(await store.manifest("none"), own)
    digest = await store.index("multi:1", own, gone, proof)
    answer = await store.images.queries.inspect("multi:1", (1, 50), manifests=True)
    assert (answer["Id"], answer["Descriptor"]["mediaType"]) == (digest, _INDEX)
    shown = answer["Manifests"]
    assert [(entry["ID"], entry["Kind"], entry["Available"]) for entry in shown] == [
        (own["digest"], "image", True),
        (gone["digest"], "image", False),
        (proof["digest"], "attestation", True),
    ]
    assert shown[2]["AttestationData"] == {"For": own["digest"]}
    assert shown[1]["ImageData"]["Platform"] == gone["platform"]
    assert (shown[1]["Size"]["Content"], shown[0]["Size"]["Content"] > own["size"]) == (0, True)
    one = await store.images.queries.inspect("multi:1", (1, 50), platform=Platform("linux", "amd64"))
    assert (one["Id"], one["Descriptor"]["platform"]) == (own["digest"], own["platform"])


async def test_a_platform_is_removed(store: Store) -> None:
    own = await store.manifest("amd64", files="same")
    arm = await store.manifest("arm64", files="same")
    await store.index("multi:1", own, arm)
    await store.index("other:1", arm)
    with pytest.raises(errdefs.InvalidArgument, match="force"):
        await store.images.remove("multi:1", platforms=[Platform("linux", "arm64")])
    done = await store.images.remove("multi:1", force=True, platforms=[Platform("linux", "arm64")])
    assert done == [{"Deleted": arm["digest"]}]
    assert not await store.blobs.has(arm["digest"])
    with pytest.raises(errdefs.NotFound):
        await store.images.resolve("multi:1", Platform("linux", "arm64"))
    # It goes from all images that have it; the layer that another platform needs as well stays.
    with pytest.raises(errdefs.NotFound):
        await store.images.resolve("other:1")
    [part] = [
        entry
        for entry in (await store.images.queries.inspect("multi:1", (1, 50), manifests=True))["Manifests"]
        if entry["ID"] == own["digest"]
    ]
    assert part["Available"]


async def test_a_document_that_could_be_two_things(store: Store) -> None:
    own = await store.manifest("amd64")
    document = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": [own], "layers": [own]}
    made = await store.put(_INDEX, document)
    target = Descriptor(_INDEX, made["digest"], made["size"])
    await store.catalog.put("docker.io/library/two:1", target, {})
    with pytest.raises(errdefs.NotFound):
        await store.images.resolve("two:1")

"""The registry's client with a real registry."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator

import pytest
from containerd_svc.registry import Registry, Resolver

from tests.support.registry import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, LocalRegistry, layer_of


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegistry]:
    with LocalRegistry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


async def _all(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def test_an_image_and_its_parts(plain: LocalRegistry) -> None:
    layer = layer_of({"a": b"x" * 100_000})
    put = plain.put_image("library/one", "latest", [layer])
    async with Registry(f"{plain.address}/library/one:latest", Resolver()) as registry:
        descriptor = await registry.resolve()
        assert descriptor == put
        document = await registry.manifest(descriptor)
        assert len(document) == put["size"]
        below = plain.manifest("library/one", "latest")[1]["layers"][0]
        async with registry.fetch(below) as blob:
            assert (blob.offset, blob.size) == (0, len(layer))
            assert await _all(aiter(blob)) == layer
        async with registry.fetch(below, 10, 20) as blob:
            assert (blob.offset, blob.size) == (10, len(layer))
            assert await _all(aiter(blob)) == layer[10:20]
        assert await registry.tags() == ["latest"]
        assert await registry.referrers(put["digest"]) == []


async def test_a_push(plain: LocalRegistry) -> None:
    data, other = layer_of({"b": b"y" * 1000}), b"other bytes"
    blob = {"mediaType": OCI_LAYER, **plain.put_blob("from/here", data)}
    config = {"mediaType": OCI_CONFIG, **plain.put_blob("elsewhere", other)}

    async def open_at(offset: int) -> AsyncGenerator[bytes, None]:
        yield other[offset:]

    async with Registry(f"{plain.address}/to/there:latest", Resolver()) as registry:
        assert not await registry.has(blob)
        assert await registry.mount(blob, "from/here")
        assert await registry.has(blob)
        assert not await registry.has(config)
        await registry.upload(config, open_at)
        assert plain.blob("to/there", config["digest"]) == other
        document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [blob]}
        await registry.put_manifest("latest", OCI_MANIFEST, json.dumps(document).encode())
        assert plain.manifest("to/there", "latest") == (OCI_MANIFEST, document)

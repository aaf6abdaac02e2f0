"""Registries that are busy, fail for a moment or are away: what is tried again, and where."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import errdefs
import pytest
from containerd_svc.registry import Registry, Resolver, connection

from tests.support.fault_proxy import Fault, FaultProxy
from tests.support.registry import LocalRegistry, layer_of


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegistry]:
    with LocalRegistry(tmp_path_factory.mktemp("registry")) as registry:
        registry.put_image("some/image", "1", [layer_of({"a": b"1"})])
        yield registry


async def test_a_busy_registry_is_asked_again_when_it_says(plain: LocalRegistry) -> None:
    with FaultProxy(plain.address) as proxy:
        proxy.add(Fault(path="manifests", status=429, headers={"Retry-After": "1"}))
        begun = time.monotonic()
        async with Registry(f"{proxy.address}/some/image:1", Resolver()) as registry:
            assert (await registry.resolve())["size"]
        assert time.monotonic() - begun >= 1
        assert len([each for each in proxy.requests if "manifests" in each.target]) >= 2


async def test_a_registry_that_wants_too_long_a_wait(plain: LocalRegistry) -> None:
    with FaultProxy(plain.address) as proxy:
        proxy.add(Fault(path="manifests", status=429, headers={"Retry-After": "3600"}, times=None))
        async with Registry(f"{proxy.address}/some/image:1", Resolver()) as registry:
            with pytest.raises(errdefs.BuoyError, match="429"):
                await registry.resolve()


async def test_an_error_of_a_moment(plain: LocalRegistry) -> None:
    layer = plain.manifest("some/image", "1")[1]["layers"][0]
    with FaultProxy(plain.address) as proxy:
        proxy.add(Fault(path="/blobs/", status=500))
        async with (
            Registry(f"{proxy.address}/some/image:1", Resolver()) as registry,
            registry.fetch(layer) as blob,
        ):
            assert len(b"".join([piece async for piece in blob])) == layer["size"]
        asked = [each for each in proxy.requests if "/blobs/" in each.target]
        assert len(asked) == 2


@pytest.mark.parametrize("how", ["away", "failing", "without it"])
async def test_the_next_mirror(
    plain: LocalRegistry, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_FIRST_PAUSE", 0.01)
    place = tmp_path / "hosts" / "reg.invalid"
    place.mkdir(parents=True)
    with FaultProxy(plain.address) as first:
        if how != "away":
            status = 503 if how == "failing" else 404
            first.add(Fault(path="some/image", status=status, times=None))
        mirror = "127.0.0.1:1" if how == "away" else first.address
        (place / "hosts.toml").write_text(f'[host."http://{mirror}"]\n[host."http://{plain.address}"]\n')
        resolver = Resolver(host_dir=str(place.parent))
        async with Registry("reg.invalid/some/image:1", resolver) as registry:
            descriptor = await registry.resolve()
            assert len(await registry.manifest(descriptor)) == descriptor["size"]
        assert bool(first.requests) is (how != "away")

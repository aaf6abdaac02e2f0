"""The collector runs by itself, when there is a reason."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from containerd_svc.gc_schedule import Schedule, Settings

from tests.support.stores import Stores, serve_stores


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    async with serve_stores(tmp_path / "root") as served:
        yield served


@contextlib.asynccontextmanager
async def scheduled(stores: Stores, settings: Settings) -> AsyncIterator[None]:
    task = asyncio.create_task(Schedule(stores.collector, stores.events, settings).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def put(stores: Stores, data: bytes, *, lease: str = "", kept: bool = False) -> str:
    wanted = {"containerd.io/gc.root": "yes"} if kept else {}
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    async with stores.content.writer("moby", digest, total=len(data), lease=lease) as ingest:
        await ingest.write(data)
        return await stores.content.commit("moby", ingest, expected=digest, wanted=wanted, lease=lease)


async def left(stores: Stores) -> list[str]:
    return [blob.digest for blob in await stores.content.list("moby")]


async def until_left(stores: Stores, wanted: list[str]) -> None:
    async with asyncio.timeout(10):
        while await left(stores) != wanted:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_once_after_the_start(stores: Stores) -> None:
    await put(stores, b"dropped")
    kept = await put(stores, b"kept", kept=True)
    async with scheduled(stores, Settings(after_start=0)):
        await until_left(stores, [kept])


async def test_after_many_changes(stores: Stores) -> None:
    await put(stores, b"dropped")
    async with scheduled(stores, Settings(after_start=0, changes=4, share=1)):
        await until_left(stores, [])
        kept = await put(stores, b"kept", kept=True)
        for number in range(2):
            await put(stores, b"%d" % number)
        assert len(await left(stores)) == 3
        await put(stores, b"the fourth")
        await until_left(stores, [kept])


async def test_after_a_lease_has_expired(stores: Stores) -> None:
    expiry = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=0.5)
    await stores.leases.create("moby", "short", {"containerd.io/gc.expire": expiry.isoformat()})
    await stores.leases.create("moby", "long", {})
    await put(stores, b"short", lease="short")
    kept = await put(stores, b"long", lease="long")
    settings = Settings(after_start=0, changes=1000, between_looks_at_leases=0.05, share=1)
    async with scheduled(stores, settings):
        assert len(await left(stores)) == 2
        await until_left(stores, [kept])
    assert [lease.id for lease in await stores.leases.list("moby", [])] == ["long"]

"""What the collector leaves: containerd's rules (docs/garbage-collection.md), on rows of every store."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from containerd_svc.containers import Container, Containers
from pb.containerd.events import SnapshotRemove
from pb.google.protobuf import Any as AnyMessage

from tests.support.stores import Stores, serve_stores

ROOT = {"containerd.io/gc.root": "yes"}


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    async with serve_stores(tmp_path / "root") as served:
        yield served


async def put(stores: Stores, data: bytes, wanted: Mapping[str, str] = {}, lease: str = "") -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    async with stores.content.writer("moby", digest, total=len(data), lease=lease) as ingest:
        await ingest.write(data)
        return await stores.content.commit("moby", ingest, expected=digest, wanted=wanted, lease=lease)


async def commit(
    stores: Stores, name: str, parent: str = "", wanted: Mapping[str, str] = {}, lease: str = ""
) -> None:
    await stores.snapshots.prepare("moby", "native", "work", parent, lease=lease)
    await stores.snapshots.commit("moby", "native", name, "work", wanted, lease=lease)


async def left(stores: Stores) -> tuple[set[str], set[str]]:
    """Collect; the digests and the names of snapshots that are left."""
    await stores.collector.collect("moby")
    digests = {blob.digest for blob in await stores.content.list("moby")}
    return digests, {info.name for info in await stores.snapshots.list("moby", "native")}


async def test_labels_lead_on(stores: Stores) -> None:
    await commit(stores, "below")
    await commit(stores, "top", "below")
    await commit(stores, "nobody's")
    layer = await put(stores, b"layer")
    config = await put(stores, b"config", {"containerd.io/gc.ref.snapshot.native": "top"})
    await put(stores, b"nobody's")
    references = {"containerd.io/gc.ref.content.config": config, "containerd.io/gc.ref.content.l.0": layer}
    manifest = await put(stores, b"manifest", ROOT | references)
    assert await left(stores) == ({layer, config, manifest}, {"below", "top"})


async def test_a_snapshot_in_work_is_held_by_a_container_a_label_or_a_lease(stores: Stores) -> None:
    containers = Containers(stores.db, stores.events)
    blob = await put(stores, b"named by the container")
    await commit(stores, "below")
    await stores.leases.create("moby", "l", {})
    await stores.snapshots.prepare("moby", "native", "container", "below")
    await stores.snapshots.prepare("moby", "native", "labelled", "", ROOT)
    await stores.snapshots.view("moby", "native", "leased", "below", lease="l")
    await stores.snapshots.prepare("moby", "native", "nobody's", "below")
    await containers.create(
        "moby",
        Container(
            id="c",
            runtime="io.containerd.runc.v2",
            spec=AnyMessage(type_url="spec", value=b"{}"),
            snapshotter="native",
            snapshot_key="container",
            labels={"containerd.io/gc.ref.content.x": blob},
        ),
    )
    assert await left(stores) == ({blob}, {"below", "container", "labelled", "leased"})
    await stores.leases.delete("moby", "l")
    await containers.delete("moby", "c")
    subscription = await stores.events.subscribe(['topic=="/snapshot/remove"'])
    assert await left(stores) == (set(), {"labelled"})
    told = []
    async for event in subscription.follow():
        told.append(SnapshotRemove.parse(event.value).key)
        if len(told) == 3:
            break
    assert told == ["leased", "container", "below"]  # children first


async def test_a_lease_holds_until_its_end(stores: Stores) -> None:
    for lease, labels in (("l", {}), ("old", {"containerd.io/gc.expire": "2020-01-01T00:00:00Z"})):
        await stores.leases.create("moby", lease, labels)
    for name, lease in (("held", "l"), ("expired", "old"), ("free", "")):
        await commit(stores, name, lease=lease)
    await commit(stores, "root", "held", ROOT)
    assert await left(stores) == (set(), {"held", "root"})
    assert [lease.id for lease in await stores.leases.list("moby")] == ["l"]
    await stores.leases.delete("moby", "l")
    assert await left(stores) == (set(), {"held", "root"})


async def test_a_flat_lease_holds_nothing_beyond(stores: Stores) -> None:
    config = await put(stores, b"config")
    await stores.leases.create("moby", "flat", {"containerd.io/gc.flat": "yes"})
    manifest = await put(stores, b"manifest", {"containerd.io/gc.ref.content.config": config}, "flat")
    assert await left(stores) == ({manifest}, set())


async def test_what_was_in_work_before_the_rule_stays(tmp_path: Path) -> None:
    root = tmp_path / "root"
    async with serve_stores(root) as stores:
        await commit(stores, "below")
        await stores.snapshots.prepare("moby", "native", "container", "below", {"a": "b"})
    with sqlite3.connect(root / "meta.db") as connection:
        connection.execute("PRAGMA user_version=3")
    async with serve_stores(root) as stores:
        assert await left(stores) == (set(), {"below", "container"})
        info = await stores.snapshots.stat("moby", "native", "container")
        assert info.labels == {"a": "b", "containerd.io/gc.root": "kept"}

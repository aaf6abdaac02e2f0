"""Images unpacked: each layer a committed snapshot on that of the layer below.

With overlayfs a layer is unpacked as soon as it is there, whether those below it are or not: its folder holds
only its own entries and marks. What it takes from below, the attributes of folders that it does not name
itself and the owner of the root, it is given when those below are committed; then it is put on them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

import errdefs
from linux.crashpoints import crashpoint
from pb.containerd.types import Mount

from containerd_svc.content import ContentStore
from containerd_svc.diff import Applied, Differ
from containerd_svc.leases import Leases
from containerd_svc.snapshots import Snapshots
from containerd_svc.transfer.descriptors import Descriptor, document

SNAPSHOTTER = "overlayfs"  # for those who name none
_UNCOMPRESSED = "containerd.io/uncompressed"

# Told "extracting" and "extracted" with the layer; the arrival of a layer's blob by its place.
TellLayer = Callable[[str, Descriptor], Awaitable[None]]
Arrival = Callable[[int], Awaitable[None]]


@dataclass(frozen=True)
class _Layer:
    """One layer of an image, with the names of its snapshot and of the one that it stands on."""

    place: int
    blob: Descriptor
    diff_id: str
    chain_id: str
    parent: str


@dataclass(frozen=True)
class _Job:
    namespace: str
    snapshotter: str
    lease: str
    tell: TellLayer


class Unpacker:
    """Who wants the same snapshot at the same time waits for the one who makes it."""

    def __init__(self, content: ContentStore, snapshots: Snapshots, held: Leases, differ: Differ) -> None:
        self._content = content
        self._snapshots = snapshots
        self._leases = held
        self._differ = differ
        self._making: weakref.WeakValueDictionary[tuple[str, str, str], asyncio.Lock] = (
            weakref.WeakValueDictionary()
        )

    async def unpack(
        self,
        namespace: str,
        snapshotter: str,
        config: Descriptor,
        layers: Sequence[Descriptor],
        lease: str,
        *,
        arrival: Arrival | None = None,
        tell: TellLayer | None = None,
    ) -> None:
        """Make the snapshots of an image whose config is in the store, and have the config refer to the top
        one. `arrival(n)` returns when the blob of layer n is there; without it all are.

        Raises InvalidArgument for layers that are not what the config says, or are damaged or hostile.
        """
        found = await document(self._content, namespace, config)
        chain = _chain(found.get("rootfs"), layers)
        if not chain:
            return
        rebases = self._snapshots.rebases(snapshotter)
        kind = f"snapshots/{snapshotter}"
        await self._leases.add_resources(namespace, lease, [(kind, each.chain_id) for each in chain])
        job = _Job(namespace, snapshotter, lease, tell or _tell_nobody)
        missing = await self._missing(job, chain)
        done = [asyncio.Event() for _ in chain]
        for each in chain[: len(chain) - len(missing)]:
            done[each.place].set()

        async def make(layer: _Layer) -> None:
            if arrival is not None:
                await arrival(layer.place)
            below = done[layer.place - 1] if layer.place else None
            async with self._alone(namespace, snapshotter, layer.chain_id):
                if not await self._exists(job, layer.chain_id):
                    await job.tell("extracting", layer.blob)
                    if below is not None and rebases:
                        await self._apart(job, layer, below)
                    else:
                        if below is not None:
                            await below.wait()
                        await self._on_parent(job, layer)
                    await job.tell("extracted", layer.blob)
            done[layer.place].set()

        await _all_of([make(layer) for layer in missing])
        label = f"containerd.io/gc.ref.snapshot.{snapshotter}"
        top = chain[-1].chain_id
        have = await self._content.info(namespace, config["digest"])
        if have.labels.get(label) != top:
            await self._content.update(namespace, config["digest"], {label: top}, [f"labels.{label}"])

    async def _missing(self, job: _Job, chain: Sequence[_Layer]) -> list[_Layer]:
        """The layers without a snapshot: below one that is there all are."""
        missing: list[_Layer] = []
        for layer in reversed(chain):
            if await self._exists(job, layer.chain_id):
                break
            missing.insert(0, layer)
        return missing

    async def _exists(self, job: _Job, chain_id: str) -> bool:
        with contextlib.suppress(errdefs.NotFound):
            await self._snapshots.stat(job.namespace, job.snapshotter, chain_id)
            return True
        return False

    async def _on_parent(self, job: _Job, layer: _Layer) -> None:
        """Unpack it on the snapshot of the layer below, which is committed."""
        async with self._prepared(job, layer, layer.parent) as (key, mounts):
            applied = await self._applied(job, layer, mounts)
            await self._committed(job, layer, key, applied, "")

    async def _apart(self, job: _Job, layer: _Layer, below: asyncio.Event) -> None:
        """Unpack it on nothing, then put it on the snapshot of the layer below when that is committed."""
        async with self._prepared(job, layer, "") as (key, mounts):
            applied = await self._applied(job, layer, mounts, apart=True)
            await below.wait()
            if applied.made is not None:
                if applied.made:
                    folders = await self._snapshots.folders(job.namespace, job.snapshotter, layer.parent)
                    await self._differ.adopt(layer.blob["digest"], mounts, applied.made, folders)
                await self._committed(job, layer, key, applied, layer.parent)
        if not await self._exists(job, layer.chain_id):
            await self._on_parent(job, layer)

    async def _applied(
        self, job: _Job, layer: _Layer, mounts: Sequence[Mount], *, apart: bool = False
    ) -> Applied:
        blob = layer.blob
        applied = await self._differ.apply(
            job.namespace, blob["mediaType"], blob["digest"], mounts, apart=apart
        )
        if applied.digest != layer.diff_id:
            raise errdefs.InvalidArgument(
                f"wrong diff id calculated on extraction {applied.digest} of {blob['digest']}, "
                f"expected {layer.diff_id}: invalid argument"
            )
        return applied

    async def _committed(self, job: _Job, layer: _Layer, key: str, applied: Applied, parent: str) -> None:
        crashpoint("unpacking.applied")
        await self._snapshots.commit(
            job.namespace, job.snapshotter, layer.chain_id, key, parent=parent, lease=job.lease
        )
        digest = layer.blob["digest"]
        have = await self._content.info(job.namespace, digest)
        if have.labels.get(_UNCOMPRESSED) != applied.digest:
            await self._content.update(
                job.namespace, digest, {_UNCOMPRESSED: applied.digest}, [f"labels.{_UNCOMPRESSED}"]
            )

    @contextlib.asynccontextmanager
    async def _prepared(
        self, job: _Job, layer: _Layer, parent: str
    ) -> AsyncIterator[tuple[str, Sequence[Mount]]]:
        """A snapshot in work, which goes again unless it is committed."""
        key = f"extract-{secrets.token_hex(8)} {layer.chain_id}"
        mounts = await self._snapshots.prepare(job.namespace, job.snapshotter, key, parent, lease=job.lease)
        crashpoint("unpacking.prepared")
        try:
            yield key, mounts
        except errdefs.AlreadyExists:
            pass  # a client has made the same by itself
        finally:
            with contextlib.suppress(errdefs.NotFound):
                await self._snapshots.remove(job.namespace, job.snapshotter, key)

    @contextlib.asynccontextmanager
    async def _alone(self, *place: str) -> AsyncIterator[None]:
        """Alone in making a snapshot."""
        namespace, snapshotter, chain_id = place
        lock = self._making.setdefault((namespace, snapshotter, chain_id), asyncio.Lock())
        async with lock:
            yield


def _chain(rootfs: object, layers: Sequence[Descriptor]) -> list[_Layer]:
    """The layers with the names of their snapshots (OCI image-spec, config.md: ChainID)."""
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or len(diff_ids) != len(layers):
        raise errdefs.InvalidArgument(
            f"number of layers and diffIDs don't match: {len(layers)}: invalid argument"
        )
    chain: list[_Layer] = []
    parent = ""
    for place, (blob, diff_id) in enumerate(zip(layers, map(str, diff_ids), strict=True)):
        chain_id = diff_id
        if parent:
            chain_id = f"sha256:{hashlib.sha256(f'{parent} {diff_id}'.encode()).hexdigest()}"
        chain.append(_Layer(place, blob, diff_id, chain_id, parent))
        parent = chain_id
    return chain


async def _all_of(works: Sequence[Awaitable[None]]) -> None:
    """Do all at the same time; the first error, when all have ended."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _tell_nobody(event: str, layer: Descriptor) -> None:
    pass

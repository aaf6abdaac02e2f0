"""Snapshots of images: layers unpacked one on the other, and one writable snapshot for each container."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterable, Sequence

import errdefs
from pb.containerd.services.diff import v1 as diff
from pb.containerd.services.leases import v1 as leases
from pb.containerd.services.snapshots import v1 as pb
from pb.containerd.types import Descriptor, Mount
from rpc.grpc import Channel
from rpc.persistent import PersistentStub

from dockerd_api.images.model import Layer, chain_ids

SNAPSHOTTER = "overlayfs"
_UNPACKING = "extract-"
_SIZE = "dev.buoy.layer-size"  # label of a committed snapshot: bytes of the files that its layer brings
_UNPACKED = "dev.buoy.unpacked-size"  # annotation of Apply's answer: the same
_APPLY_TIMEOUT = 3600.0  # seconds for one layer
_DIFF_TIMEOUT = 3600.0  # seconds to make one
_MADE = "application/vnd.oci.image.layer.v1.tar+gzip"


class _Snapshots(PersistentStub, pb.SnapshotsStub):
    pass


class Trees:
    """The snapshot and diff services, as far as images need them."""

    def __init__(self, channel: Channel) -> None:
        self._snapshots = _Snapshots(channel)
        self._diff = diff.DiffStub(channel)
        self._leases = leases.LeasesStub(channel)
        # What Prepare has answered: the mounts of a snapshot are the same as long as there is one.
        self._mounts: dict[str, list[Mount]] = {}
        # Bytes on disk of committed snapshots, which do not change.
        self._committed: dict[str, int] = {}

    async def unpack(self, layers: Sequence[Layer], lease: str) -> list[int]:
        """Have a committed snapshot for every layer; the bytes of files of each. What is there is not
        unpacked again.

        Raises InvalidArgument for a layer that is damaged, hostile, or not what the config says; nothing but
        whole layers stays then.
        """
        sizes = []
        parent = ""
        for number, (layer, chain) in enumerate(
            zip(layers, chain_ids([layer.diff_id for layer in layers]), strict=True)
        ):
            # Held before it is looked for: the collector may be at work.
            await self._hold(lease, chain)
            size = await self._size(chain)
            if size is None:
                blob = Descriptor(media_type=layer.media_type, digest=layer.digest, size=layer.size)
                _, size = await self._extract(
                    blob, parent, lease, number=number, diff_id=layer.diff_id, chain=chain
                )
            sizes.append(size)
            parent = chain
        return sizes

    async def exists(self, chain: str) -> bool:
        """Whether the committed snapshot is there."""
        return await self._stat(chain) is not None

    async def prepare(self, key: str, parent: str) -> None:
        """An active snapshot `key`, which nobody else uses, on the committed `parent`. Raises NotFound.

        It stays until `remove`: containerd's collector would take one that neither a label nor a container
        of its own holds.
        """
        request = pb.PrepareSnapshotRequest(
            snapshotter=SNAPSHOTTER, key=key, parent=parent, labels={"containerd.io/gc.root": "container"}
        )
        self._mounts[key] = await self._prepare(request, {})

    async def _prepare(self, request: pb.PrepareSnapshotRequest, metadata: dict[str, str]) -> list[Mount]:
        try:
            answer = await self._snapshots.prepare(request, metadata=metadata)
        except errdefs.AlreadyExists:  # made by a call whose answer was lost: the key is ours
            return await self.mounts(request.key)
        return list(answer.mounts)

    async def mounts(self, key: str) -> list[Mount]:
        """What shows the snapshot `key`. Raises NotFound."""
        known = self._mounts.get(key)
        if known is not None:
            return known
        answer = await self._snapshots.mounts(pb.MountsRequest(snapshotter=SNAPSHOTTER, key=key))
        return list(answer.mounts)

    async def remove(self, key: str) -> None:
        """Remove a snapshot; fine when it is gone."""
        self._mounts.pop(key, None)
        with contextlib.suppress(errdefs.NotFound):
            await self._snapshots.remove(pb.RemoveSnapshotRequest(snapshotter=SNAPSHOTTER, key=key))

    async def usage(self, key: str) -> int:
        """Bytes that the snapshot itself takes on disk. Raises NotFound."""
        answer = await self._snapshots.usage(pb.UsageRequest(snapshotter=SNAPSHOTTER, key=key), timeout=60.0)
        return answer.size

    async def sizes(self, chains: Iterable[str]) -> dict[str, int]:
        """Bytes on disk of those of the committed snapshots that are there."""
        wanted = set(chains)
        if not wanted:
            return {}
        request = pb.ListSnapshotsRequest(snapshotter=SNAPSHOTTER)
        present = {info.name async for block in self._snapshots.list(request) for info in block.info}
        for chain in [chain for chain in self._committed if chain not in present]:
            del self._committed[chain]  # what comes again under the name is counted again
        for chain in wanted & present - self._committed.keys():
            with contextlib.suppress(errdefs.NotFound):
                self._committed[chain] = await self.usage(chain)
        return {chain: self._committed[chain] for chain in wanted if chain in self._committed}

    async def whole_usage(self, key: str) -> tuple[int, int]:
        """Bytes on disk of the snapshot itself, and together with all that it stands on. Raises NotFound."""
        own = await self.usage(key)
        chains = []
        info = await self._stat(key)
        while info is not None and info.parent:
            chains.append(info.parent)
            info = await self._stat(info.parent)
        return own, own + sum((await self.sizes(chains)).values())

    async def total_usage(self) -> int:
        """Bytes on disk of all snapshots."""
        request = pb.ListSnapshotsRequest(snapshotter=SNAPSHOTTER)
        infos = [info async for block in self._snapshots.list(request) for info in block.info]
        committed = await self.sizes(info.name for info in infos if info.kind == pb.Kind.COMMITTED)
        total = sum(committed.values())
        for info in infos:
            if info.kind != pb.Kind.COMMITTED:
                with contextlib.suppress(errdefs.NotFound):
                    total += await self.usage(info.name)
        return total

    async def remove_unfinished(self) -> None:
        """Remove what a process that died was unpacking."""
        request = pb.ListSnapshotsRequest(snapshotter=SNAPSHOTTER, filters=[f"name~=^{_UNPACKING}"])
        names = [info.name async for block in self._snapshots.list(request) for info in block.info]
        for name in names:
            await self.remove(name)

    async def changes(self, key: str, lease: str) -> Descriptor:
        """A layer, in gzip, of what the snapshot `key` changed of its parent. Raises NotFound."""
        info = await self._stat(key)
        if info is None:
            raise errdefs.NotFound(f"snapshot {key} does not exist: not found")
        view = f"{_UNPACKING}{secrets.token_hex(8)}-changes"
        lower: list[Mount] = []
        try:
            if info.parent:
                answer = await self._snapshots.view(
                    pb.ViewSnapshotRequest(snapshotter=SNAPSHOTTER, key=view, parent=info.parent),
                    metadata={"containerd-lease": lease},
                )
                lower = list(answer.mounts)
            made = await self._diff.diff(
                diff.DiffRequest(
                    left=lower,
                    right=await self.mounts(key),
                    media_type=_MADE,
                    ref=f"{lease}-changes",
                ),
                metadata={"containerd-lease": lease},
                timeout=_DIFF_TIMEOUT,
            )
        finally:
            with contextlib.suppress(errdefs.BuoyError):  # the lease is all that holds it
                await self.remove(view)
        if made.diff is None:
            raise errdefs.Internal("containerd made no layer")
        return made.diff

    async def unpack_unknown(self, blob: Descriptor, lease: str) -> tuple[str, int]:
        """Unpack a layer of which only the blob is known, on nothing: its diff id, and the bytes of its
        files.
        """
        return await self._extract(blob, "", lease)

    async def _extract(
        self,
        blob: Descriptor,
        parent: str,
        lease: str,
        *,
        number: int = 0,
        diff_id: str = "",
        chain: str = "",
    ) -> tuple[str, int]:
        """Unpack a blob on `parent` and commit it as `chain`, or as its own diff id; that id, and bytes of
        files.
        """
        held = {"containerd-lease": lease}
        # A key of its own for each try: two loads of one layer do not wait for each other, the first to
        # commit wins.
        key = f"{_UNPACKING}{secrets.token_hex(8)} {chain}"
        request = pb.PrepareSnapshotRequest(snapshotter=SNAPSHOTTER, key=key, parent=parent)
        prepared = await self._prepare(request, held)
        try:
            answer = await self._diff.apply(
                diff.ApplyRequest(diff=blob, mounts=prepared), timeout=_APPLY_TIMEOUT
            )
            applied = answer.applied or Descriptor()
            if diff_id and applied.digest != diff_id:
                raise errdefs.InvalidArgument(
                    f'invalid diffID for layer {number}: expected "{diff_id}", got "{applied.digest}"'
                )
            size = int(applied.annotations.get(_UNPACKED) or applied.size)
            await self._hold(lease, chain or applied.digest)
            await self._commit(key, chain or applied.digest, size, held)
        except BaseException:
            with contextlib.suppress(errdefs.BuoyError):  # the first error is the one to tell
                await self.remove(key)
            raise
        return applied.digest, size

    async def _commit(self, key: str, name: str, size: int, held: dict[str, str]) -> None:
        try:
            await self._snapshots.commit(
                pb.CommitSnapshotRequest(
                    snapshotter=SNAPSHOTTER, name=name, key=key, labels={_SIZE: str(size)}
                ),
                metadata=held,
            )
        except errdefs.AlreadyExists:
            await self.remove(key)
        except errdefs.NotFound:  # committed by a call whose answer was lost
            if await self._stat(name) is None:
                raise

    async def _hold(self, lease: str, chain: str) -> None:
        await self._leases.add_resource(
            leases.AddResourceRequest(
                id=lease, resource=leases.Resource(id=chain, type=f"snapshots/{SNAPSHOTTER}")
            )
        )

    async def _size(self, chain: str) -> int | None:
        info = await self._stat(chain)
        if info is None:
            return None
        text = info.labels.get(_SIZE, "")
        return int(text) if text.isdigit() else await self.usage(chain)

    async def _stat(self, key: str) -> pb.Info | None:
        try:
            answer = await self._snapshots.stat(pb.StatSnapshotRequest(snapshotter=SNAPSHOTTER, key=key))
        except errdefs.NotFound:
            return None
        return answer.info

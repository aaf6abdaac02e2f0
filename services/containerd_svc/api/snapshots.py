"""containerd.services.snapshots.v1.Snapshots."""

from __future__ import annotations

from collections.abc import AsyncIterator

import errdefs
from pb.containerd.services.snapshots import v1 as pb
from pb.google.protobuf import Empty

from containerd_svc import labels
from containerd_svc.api.call import lease, namespace
from containerd_svc.snapshots import Info, Snapshots

_BLOCK = 100  # infos in one message of List
_KINDS = {"view": pb.Kind.VIEW, "active": pb.Kind.ACTIVE, "committed": pb.Kind.COMMITTED}


class SnapshotsService(pb.SnapshotsBase):
    """The store on the wire."""

    def __init__(self, store: Snapshots) -> None:
        self._store = store

    async def prepare(self, message: pb.PrepareSnapshotRequest) -> pb.PrepareSnapshotResponse:
        mounts = await self._store.prepare(
            namespace(), message.snapshotter, message.key, message.parent, message.labels, lease=lease()
        )
        return pb.PrepareSnapshotResponse(mounts=mounts)

    async def view(self, message: pb.ViewSnapshotRequest) -> pb.ViewSnapshotResponse:
        mounts = await self._store.view(
            namespace(), message.snapshotter, message.key, message.parent, message.labels, lease=lease()
        )
        return pb.ViewSnapshotResponse(mounts=mounts)

    async def mounts(self, message: pb.MountsRequest) -> pb.MountsResponse:
        return pb.MountsResponse(
            mounts=await self._store.mounts(namespace(), message.snapshotter, message.key)
        )

    async def commit(self, message: pb.CommitSnapshotRequest) -> Empty:
        await self._store.commit(
            namespace(),
            message.snapshotter,
            message.name,
            message.key,
            message.labels,
            parent=message.parent,
            lease=lease(),
        )
        return Empty()

    async def remove(self, message: pb.RemoveSnapshotRequest) -> Empty:
        await self._store.remove(namespace(), message.snapshotter, message.key)
        return Empty()

    async def stat(self, message: pb.StatSnapshotRequest) -> pb.StatSnapshotResponse:
        return pb.StatSnapshotResponse(
            info=_info(await self._store.stat(namespace(), message.snapshotter, message.key))
        )

    async def update(self, message: pb.UpdateSnapshotRequest) -> pb.UpdateSnapshotResponse:
        if message.info is None:
            raise errdefs.InvalidArgument("info is missing: invalid argument")
        paths = message.update_mask.paths if message.update_mask else []
        info = await self._store.update(
            namespace(), message.snapshotter, message.info.name, message.info.labels, paths
        )
        return pb.UpdateSnapshotResponse(info=_info(info))

    async def list(self, message: pb.ListSnapshotsRequest) -> AsyncIterator[pb.ListSnapshotsResponse]:
        found = await self._store.list(namespace(), message.snapshotter, message.filters)
        for start in range(0, len(found), _BLOCK):
            yield pb.ListSnapshotsResponse(info=[_info(info) for info in found[start : start + _BLOCK]])

    async def usage(self, message: pb.UsageRequest) -> pb.UsageResponse:
        usage = await self._store.usage(namespace(), message.snapshotter, message.key)
        return pb.UsageResponse(size=usage.size, inodes=usage.inodes)

    async def cleanup(self, message: pb.CleanupRequest) -> Empty:
        await self._store.cleanup(message.snapshotter)
        return Empty()


def _info(info: Info) -> pb.Info:
    return pb.Info(
        name=info.name,
        parent=info.parent,
        kind=_KINDS[info.kind],
        created_at=labels.moment(info.created_at),
        updated_at=labels.moment(info.updated_at),
        labels=info.labels,
    )

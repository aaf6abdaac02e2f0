"""containerd.services.diff.v1.Diff."""

from __future__ import annotations

import errdefs
from pb.containerd.services.diff import v1 as pb
from pb.containerd.types import Descriptor

from containerd_svc.api.call import lease, namespace
from containerd_svc.diff import Differ

_UNCOMPRESSED = "application/vnd.oci.image.layer.v1.tar"
# Bytes of the files that a layer brings, which is what Docker shows as a layer's size.
_UNPACKED = "dev.buoy.unpacked-size"


class DiffService(pb.DiffBase):
    """Apply and Diff on the wire."""

    def __init__(self, differ: Differ) -> None:
        self._differ = differ

    async def apply(self, message: pb.ApplyRequest) -> pb.ApplyResponse:
        if message.diff is None:
            raise errdefs.InvalidArgument("diff is missing: invalid argument")
        if message.payloads:
            raise errdefs.NotImplementedHere("stream processors are not supported: not implemented")
        applied = await self._differ.apply(
            namespace(), message.diff.media_type, message.diff.digest, message.mounts, sync=message.sync_fs
        )
        return pb.ApplyResponse(
            applied=Descriptor(
                media_type=_UNCOMPRESSED,
                digest=applied.digest,
                size=applied.size,
                annotations={_UNPACKED: str(applied.unpacked)},
            )
        )

    async def diff(self, message: pb.DiffRequest) -> pb.DiffResponse:
        epoch = message.source_date_epoch
        made = await self._differ.make(
            namespace(),
            message.left,
            message.right,
            media_type=message.media_type,
            ref=message.ref,
            labels=message.labels,
            latest=None if epoch is None else int(epoch.timestamp()),
            lease=lease(),
        )
        return pb.DiffResponse(
            diff=Descriptor(media_type=made.media_type, digest=made.digest, size=made.size)
        )

"""containerd.services.transfer.v1.Transfer."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import betterproto2
import errdefs
from pb.containerd.services.transfer import v1 as pb
from pb.containerd.types.transfer import (
    ImageExportStream,
    ImageImportStream,
    ImageStore,
    OciRegistry,
    Progress,
)
from pb.google.protobuf import Any as AnyMessage
from pb.google.protobuf import Empty
from rpc.grpc import current_call

from containerd_svc.api.call import lease, namespace
from containerd_svc.events import unpacked
from containerd_svc.transfer import Streams, Transfers
from containerd_svc.transfer.pulling import DOWNLOADS
from containerd_svc.transfer.pushing import UPLOADS
from containerd_svc.transfer.telling import Tell, telling

# How many blobs of an image are downloaded, or uploaded, at a time; 0 for all.
_DOWNLOADS = "buoy-max-concurrent-downloads"
_UPLOADS = "buoy-max-concurrent-uploads"
_NO_LIMIT = 10**9


class TransferService(pb.TransferBase):
    """Transfers on the wire; which pairs of places there are is told here."""

    def __init__(self, transfers: Transfers, streams: Streams) -> None:
        self._transfers = transfers
        self._streams = streams

    async def transfer(self, message: pb.TransferRequest) -> Empty:
        source, target = _place(message.source), _place(message.destination)
        options = message.options or pb.TransferOptions()
        async with self._progress(options.progress_stream) as tell:
            match source, target:
                case ImageImportStream(), ImageStore():
                    await self._transfers.load(namespace(), source, target, tell, lease())
                case OciRegistry(), ImageStore():
                    await self._transfers.pull(
                        namespace(), source, target, tell, lease(), downloads=_count(_DOWNLOADS, DOWNLOADS)
                    )
                case ImageStore(), OciRegistry():
                    uploads = _count(_UPLOADS, UPLOADS)
                    await self._transfers.push(namespace(), source, target, tell, lease(), uploads=uploads)
                case ImageStore(), ImageExportStream():
                    await self._transfers.save(namespace(), source, target, tell, lease())
                case ImageStore(), ImageStore():
                    await self._transfers.tag(namespace(), source, target, lease())
                case ImageImportStream(), ImageExportStream():
                    await self._transfers.echo(namespace(), source, target)
                case _:
                    raise errdefs.NotImplementedHere(
                        f"transfer from {_type(message.source)} to {_type(message.destination)} is not "
                        "supported: not implemented"
                    )
        return Empty()

    @contextlib.asynccontextmanager
    async def _progress(self, name: str) -> AsyncIterator[Tell]:
        """How to tell the client how far it is; nothing is told without a stream."""
        if not name:
            yield _tell_nobody
            return
        async with telling(self._streams.get(namespace(), name)) as tell:
            yield tell


async def _tell_nobody(progress: Progress) -> None:
    pass


def _place(place: AnyMessage | None) -> betterproto2.Message | None:
    return unpacked(place.type_url, place.value) if place is not None else None


def _type(place: AnyMessage | None) -> str:
    return place.type_url if place is not None else "nothing"


def _count(name: str, default: int) -> int:
    value = current_call().metadata.get(name)
    if value is None:
        return default
    if not isinstance(value, str) or not value.isdecimal() or len(value) > 9:
        raise errdefs.InvalidArgument(f"{name} must be a count: invalid argument")
    return int(value) or _NO_LIMIT

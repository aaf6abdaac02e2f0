"""containerd.services.content.v1.Content."""

from __future__ import annotations

from collections.abc import AsyncIterator

import errdefs
from pb.containerd.services.content import v1 as pb
from pb.google.protobuf import Empty

from containerd_svc import content, labels
from containerd_svc.api.call import lease, namespace
from containerd_svc.ingest import Ingest

_BLOCK = 100  # infos in one message of List


class ContentService(pb.ContentBase):
    """The store on the wire."""

    def __init__(self, store: content.ContentStore) -> None:
        self._store = store

    async def info(self, message: pb.InfoRequest) -> pb.InfoResponse:
        return pb.InfoResponse(info=_info(await self._store.info(namespace(), message.digest)))

    async def update(self, message: pb.UpdateRequest) -> pb.UpdateResponse:
        if message.info is None:
            raise errdefs.InvalidArgument("info is missing: invalid argument")
        paths = message.update_mask.paths if message.update_mask else []
        blob = await self._store.update(namespace(), message.info.digest, message.info.labels, paths)
        return pb.UpdateResponse(info=_info(blob))

    async def list(self, message: pb.ListContentRequest) -> AsyncIterator[pb.ListContentResponse]:
        found = await self._store.list(namespace(), message.filters)
        for start in range(0, len(found), _BLOCK):
            yield pb.ListContentResponse(info=[_info(blob) for blob in found[start : start + _BLOCK]])

    async def delete(self, message: pb.DeleteContentRequest) -> Empty:
        await self._store.delete(namespace(), message.digest)
        return Empty()

    async def read(self, message: pb.ReadContentRequest) -> AsyncIterator[pb.ReadContentResponse]:
        async for offset, data in self._store.read(namespace(), message.digest, message.offset, message.size):
            yield pb.ReadContentResponse(offset=offset, data=data)

    async def status(self, message: pb.StatusRequest) -> pb.StatusResponse:
        return pb.StatusResponse(status=_status(await self._store.status(namespace(), message.ref)))

    async def list_statuses(self, message: pb.ListStatusesRequest) -> pb.ListStatusesResponse:
        found = await self._store.statuses(namespace(), message.filters)
        return pb.ListStatusesResponse(statuses=[_status(status) for status in found])

    async def abort(self, message: pb.AbortRequest) -> Empty:
        await self._store.abort(namespace(), message.ref)
        return Empty()

    async def write(
        self, messages: AsyncIterator[pb.WriteContentRequest]
    ) -> AsyncIterator[pb.WriteContentResponse]:
        """One ingest, one answer for each action, until COMMIT or the end of the client's stream."""
        request = await anext(messages, None)
        if request is None:
            return
        if not request.ref:
            raise errdefs.InvalidArgument("first message must have a reference: invalid argument")
        ref, total, expected = request.ref, request.total, request.expected
        exists = ""
        async with self._store.writer(
            namespace(), ref, total=total, expected=expected, lease=lease()
        ) as ingest:
            while request is not None:
                if request.expected:
                    expected = request.expected
                    if await self._has(expected):
                        exists = expected
                        break
                total = request.total or total
                yield await self._act(ingest, request, total, expected)
                if request.action == pb.WriteAction.COMMIT:
                    return
                request = await anext(messages, None)
        if exists:
            await self._store.abort(namespace(), ref)
            raise errdefs.AlreadyExists(f"blob with expected digest {exists} exists: already exists")

    async def _act(
        self, ingest: Ingest, request: pb.WriteContentRequest, total: int, expected: str
    ) -> pb.WriteContentResponse:
        if request.action == pb.WriteAction.STAT:
            return _written(ingest, request.action, total)
        if request.offset < 0 or (request.offset > 0 and request.offset != ingest.offset):
            raise errdefs.OutOfRange(f"write @{request.offset} must occur at current offset {ingest.offset}")
        if request.offset == 0 and ingest.offset > 0:
            await ingest.restart()
        if request.data:
            await ingest.write(request.data)
        if request.action == pb.WriteAction.COMMIT:
            await self._store.commit(
                namespace(), ingest, size=total, expected=expected, wanted=request.labels, lease=lease()
            )
        return _written(ingest, request.action, total)

    async def _has(self, digest: str) -> bool:
        try:
            await self._store.info(namespace(), digest)
        except errdefs.NotFound:
            return False
        return True


def _written(ingest: Ingest, action: pb.WriteAction, total: int) -> pb.WriteContentResponse:
    # The digest so far costs a copy of the hash's state, not a pass over the data.
    return pb.WriteContentResponse(
        action=action,
        started_at=labels.moment(ingest.started_at),
        updated_at=labels.moment(ingest.updated_at),
        offset=ingest.offset,
        total=total,
        digest=ingest.digest,
    )


def _info(blob: content.Blob) -> pb.Info:
    return pb.Info(
        digest=blob.digest,
        size=blob.size,
        created_at=labels.moment(blob.created_at),
        updated_at=labels.moment(blob.updated_at),
        labels=blob.labels,
    )


def _status(status: content.Status) -> pb.Status:
    return pb.Status(
        started_at=labels.moment(status.started_at),
        updated_at=labels.moment(status.updated_at),
        ref=status.ref,
        offset=status.offset,
        total=status.total,
        expected=status.expected,
    )

"""Blobs in containerd's content store: write streams, read documents."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping

import errdefs
from pb.containerd.services.content import v1 as pb
from pb.google.protobuf import FieldMask
from rpc.grpc import Channel

_CHUNK = 1024 * 1024
DOCUMENT_LIMIT = 8 * 1024 * 1024  # bytes of a manifest, config or index


def digest_of(data: bytes) -> str:
    """sha256 of bytes in memory."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Blobs:
    """The content service, as far as images need it. `lease` holds what a call makes."""

    def __init__(self, channel: Channel) -> None:
        self._content = pb.ContentStub(channel)

    async def has(self, digest: str) -> bool:
        """Whether the blob is there."""
        try:
            await self._content.info(pb.InfoRequest(digest=digest))
        except errdefs.NotFound:
            return False
        return True

    async def label(self, digest: str, labels: Mapping[str, str]) -> None:
        """Add labels to a blob that is there. Raises NotFound."""
        await self._content.update(
            pb.UpdateRequest(
                info=pb.Info(digest=digest, labels=dict(labels)),
                update_mask=FieldMask(paths=[f"labels.{key}" for key in labels]),
            )
        )

    async def write(
        self,
        data: AsyncIterator[bytes],
        *,
        ref: str,
        lease: str,
        expected: str = "",
        size: int = 0,
        labels: Mapping[str, str] | None = None,
    ) -> tuple[str, int]:
        """Stream a blob in; its digest and size. One that is there is left as it is, but gets the labels.

        Raises FailedPrecondition when it is not what was `expected`; then, and when `data` raises, the ingest
        is thrown away.
        """
        digest, done = expected, 0

        async def requests() -> AsyncIterator[pb.WriteContentRequest]:
            nonlocal done
            yield pb.WriteContentRequest(action=pb.WriteAction.STAT, ref=ref, total=size, expected=expected)
            async for chunk in data:
                for start in range(0, len(chunk), _CHUNK):
                    piece = chunk[start : start + _CHUNK]
                    yield pb.WriteContentRequest(
                        action=pb.WriteAction.WRITE, ref=ref, offset=done, data=piece
                    )
                    done += len(piece)
            yield pb.WriteContentRequest(
                action=pb.WriteAction.COMMIT,
                ref=ref,
                offset=done,
                total=done,
                expected=expected,
                labels=dict(labels or {}),
            )

        try:
            async for answer in self._content.write(requests(), metadata={"containerd-lease": lease}):
                digest = answer.digest
        except errdefs.AlreadyExists as error:
            digest = expected or _named_in(error.message)
            done = (await self._info(digest)).size
            if labels:
                await self.label(digest, labels)
        except BaseException:
            await self.abort(ref)
            raise
        return digest, done

    async def write_document(self, data: bytes, *, ref: str, lease: str, labels: Mapping[str, str]) -> str:
        """Store bytes from memory; their digest."""

        async def once() -> AsyncIterator[bytes]:
            yield data

        digest, _ = await self.write(
            once(), ref=ref, lease=lease, expected=digest_of(data), size=len(data), labels=labels
        )
        return digest

    async def read_document(self, digest: str) -> bytes:
        """A blob of at most DOCUMENT_LIMIT bytes. Raises NotFound, ResourceExhausted for a larger one."""
        found = bytearray()
        async for answer in self._content.read(pb.ReadContentRequest(digest=digest)):
            found += answer.data
            if len(found) > DOCUMENT_LIMIT:
                raise errdefs.ResourceExhausted(f"{digest} is too large for a manifest or config")
        return bytes(found)

    async def abort(self, ref: str) -> None:
        """Throw an ingest away; fine when there is none, and when containerd is gone it is found at the next
        start.
        """
        try:
            await self._content.abort(pb.AbortRequest(ref=ref))
        except (errdefs.NotFound, errdefs.Unavailable):
            return

    async def abort_all(self, prefix: str) -> None:
        """Throw away every ingest whose ref begins so."""
        answer = await self._content.list_statuses(pb.ListStatusesRequest())
        for status in answer.statuses:
            if status.ref.startswith(prefix):
                await self.abort(status.ref)

    async def _info(self, digest: str) -> pb.Info:
        answer = await self._content.info(pb.InfoRequest(digest=digest))
        if answer.info is None:
            raise errdefs.NotFound(f"content digest {digest}: not found")
        return answer.info


def _named_in(message: str) -> str:
    """The digest in containerd's "content sha256:…: already exists"."""
    start = message.find("sha256:")
    if start < 0:
        raise errdefs.Internal(f"no digest in {message!r}")
    return message[start : start + 71]

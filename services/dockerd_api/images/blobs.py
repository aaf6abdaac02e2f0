"""Blobs in containerd's content store: write streams, read documents."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping

import errdefs
from grpclib.const import Cardinality
from pb.containerd.services.content import v1 as pb
from pb.google.protobuf import FieldMask
from rpc.grpc import Channel

_CHUNK = 1024 * 1024
_AHEAD = 3  # chunks that are sent before their answers are waited for
_LONGEST_READ = 24 * 3600.0  # seconds; as fast as a client takes it
_ABORT_TRIES, _ABORT_PAUSE = 40, 0.05  # seconds
_WRITE = "/containerd.services.content.v1.Content/Write"
DOCUMENT_LIMIT = 8 * 1024 * 1024  # bytes of a manifest, config or index


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    """The digest of bytes in memory."""
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


class Blobs:
    """The content service, as far as images need it. `lease` holds what a call makes."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._content = pb.ContentStub(channel)

    async def has(self, digest: str) -> bool:
        """Whether the blob is there."""
        try:
            await self._content.info(pb.InfoRequest(digest=digest))
        except errdefs.NotFound:
            return False
        return True

    async def labels(self, digest: str) -> Mapping[str, str]:
        """The labels of a blob. Raises NotFound."""
        return (await self._info(digest)).labels

    async def all(self) -> dict[str, int]:
        """Every blob's digest and size in bytes."""
        request = pb.ListContentRequest()
        return {info.digest: info.size async for block in self._content.list(request) for info in block.info}

    async def remove(self, digest: str) -> bool:
        """Remove a blob, whoever refers to it; whether it was there."""
        try:
            await self._content.delete(pb.DeleteContentRequest(digest=digest))
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
        # The generated stub would wait for ever when `data` raises: nobody looks after its sender.
        try:
            async with self._channel.request(
                _WRITE,
                Cardinality.STREAM_STREAM,
                pb.WriteContentRequest,
                pb.WriteContentResponse,
                metadata={"containerd-lease": lease},
            ) as stream:
                await stream.send_message(
                    pb.WriteContentRequest(ref=ref, action=pb.WriteAction.STAT, total=size, expected=expected)
                )
                await stream.recv_message()  # a blob that is there is told before any byte of it is sent
                waiting = 0
                async for chunk in data:
                    for start in range(0, len(chunk), _CHUNK):
                        piece = chunk[start : start + _CHUNK]
                        await stream.send_message(
                            pb.WriteContentRequest(
                                ref=ref, action=pb.WriteAction.WRITE, offset=done, data=piece
                            )
                        )
                        done += len(piece)
                        waiting += 1
                        if waiting > _AHEAD:
                            await stream.recv_message()
                            waiting -= 1
                await stream.send_message(
                    pb.WriteContentRequest(
                        ref=ref,
                        action=pb.WriteAction.COMMIT,
                        offset=done,
                        total=done,
                        expected=expected,
                        labels=dict(labels or {}),
                    ),
                    end=True,
                )
                for _ in range(waiting):
                    await stream.recv_message()
                answer = await stream.recv_message()
                if answer is not None:
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

    async def write_document(
        self, data: bytes, *, ref: str, lease: str, labels: Mapping[str, str], digest: str = ""
    ) -> str:
        """Store bytes from memory; their digest, which is known already or sha256's."""

        async def once() -> AsyncIterator[bytes]:
            yield data

        digest, _ = await self.write(
            once(), ref=ref, lease=lease, expected=digest or digest_of(data), size=len(data), labels=labels
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

    async def read(self, digest: str) -> AsyncIterator[bytes]:
        """A blob from its beginning to its end. Raises NotFound."""
        async for answer in self._content.read(pb.ReadContentRequest(digest=digest), timeout=_LONGEST_READ):
            yield answer.data

    async def abort(self, ref: str) -> None:
        """Throw an ingest away; fine when there is none. When containerd is gone, the next start's `recover`
        does it.
        """
        for _ in range(_ABORT_TRIES):
            try:
                await self._content.abort(pb.AbortRequest(ref=ref))
            except errdefs.NotFound:
                return
            except errdefs.Unavailable as error:
                if "locked" not in error.message:
                    return
                # The stream that wrote it was just cut off, and the other end has not noticed yet.
                await asyncio.sleep(_ABORT_PAUSE)
            else:
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

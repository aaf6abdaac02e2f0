"""The calling side of ttrpc."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Mapping
from typing import TypeVar, cast

import errdefs
from betterproto2 import Message
from errdefs.grpc import error_from
from pb.ttrpc import KeyValue, Request, Response

from rpc.ttrpc.frames import MAX_DATA, REQUEST, RESPONSE, Frames

M = TypeVar("M", bound=Message)


class _ClientConnection(Frames, asyncio.Protocol):
    def __init__(self) -> None:
        super().__init__()
        self._transport: asyncio.Transport | None = None
        self.pending: dict[int, asyncio.Future[Response]] = {}
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.feed(data)

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def frame(self, stream: int, kind: int, flags: int, data: bytes) -> None:
        waiter = self.pending.pop(stream, None)
        if kind != RESPONSE or waiter is None or waiter.done():
            return  # a reply that came after its caller's deadline
        try:
            waiter.set_result(Response.parse(data))
        except Exception as error:  # the parser's failures have no common class
            waiter.set_exception(errdefs.Internal(f"ttrpc: unreadable reply: {error}"))

    def oversized(self, stream: int, length: int) -> None:
        waiter = self.pending.pop(stream, None)
        if waiter is not None and not waiter.done():
            waiter.set_exception(errdefs.ResourceExhausted(f"ttrpc: reply of {length} bytes is too long"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        for waiter in self.pending.values():
            if not waiter.done():
                waiter.set_exception(errdefs.Unavailable("ttrpc: the connection was lost"))
        self.pending.clear()
        if not self.lost.done():
            self.lost.set_result(None)


class Client:
    """One connection to a ttrpc server. Calls run side by side on it."""

    def __init__(self, connection: _ClientConnection, transport: asyncio.Transport, path: str) -> None:
        self._connection = connection
        self._transport = transport
        self._stream = -1
        self.path = path

    @classmethod
    async def connect(cls, path: str, *, timeout: float = 5.0) -> Client:
        """Connect to the socket at `path` (unix:// may lead it). errdefs.Unavailable when nobody answers."""
        path = path.removeprefix("unix://")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                transport, connection = await loop.create_unix_connection(_ClientConnection, path)
        except TimeoutError:
            raise errdefs.Unavailable(f"connect {path}: no answer in {timeout:g} s") from None
        except OSError as error:
            raise errdefs.Unavailable(f"connect {path}: {error.strerror or error}") from error
        return cls(connection, transport, path)

    @classmethod
    async def over(cls, sock: socket.socket) -> Client:
        """A client on a connected stream socket, which it owns from now on."""
        loop = asyncio.get_running_loop()
        transport, connection = await loop.create_connection(_ClientConnection, sock=sock)
        return cls(connection, transport, "")

    @property
    def closed(self) -> bool:
        """Whether the connection is gone, so that every call will fail."""
        return self._transport.is_closing()

    def wait_closed(self) -> Awaitable[None]:
        """Completes when the connection is gone."""
        return asyncio.shield(self._connection.lost)

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        reply: type[M],
        *,
        timeout: float = 10.0,
        metadata: Mapping[str, str] | None = None,
    ) -> M:
        """Call `service`/`method` (`containerd.task.v2.Task`, `State`) and return the reply message.

        timeout in seconds; 0 means none, for long polls and waits. Errors: the server's status as its errdefs
        class; DeadlineExceeded when no reply came in time; Unavailable when the connection is or gets lost.
        """
        envelope = bytes(
            Request(
                service=service,
                method=method,
                payload=bytes(request),
                timeout_nano=int(timeout * 1e9),
                metadata=[KeyValue(key=key, value=value) for key, value in (metadata or {}).items()],
            )
        )
        if len(envelope) > MAX_DATA:
            raise errdefs.ResourceExhausted(f"ttrpc: request of {len(envelope)} bytes is too long")
        if self._transport.is_closing():
            raise errdefs.Unavailable("ttrpc: the connection was lost")
        self._stream += 2
        stream = self._stream
        waiter: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._connection.pending[stream] = waiter
        self._connection.send(stream, REQUEST, envelope)
        try:
            if timeout > 0:
                async with asyncio.timeout(timeout):
                    response = await waiter
            else:
                response = await waiter
        except TimeoutError:
            raise errdefs.DeadlineExceeded(f"{service}/{method}: no reply in {timeout:g} s") from None
        finally:
            self._connection.pending.pop(stream, None)
        if response.status is not None and response.status.code:
            raise error_from(response.status.code, response.status.message)
        try:
            return reply.parse(response.payload)
        except Exception as error:  # the parser's failures have no common class
            raise errdefs.Internal(f"{service}/{method}: unreadable reply: {error}") from error

    def abort(self) -> None:
        """End the connection at once; calls under way fail with Unavailable."""
        self._transport.abort()

    async def close(self) -> None:
        """End the connection; calls under way fail with Unavailable."""
        self._transport.close()
        await self._connection.lost

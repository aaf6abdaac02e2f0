"""The serving side of ttrpc.

It serves the objects that betterproto2 generates for grpclib, so that one object answers on both wires.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import struct
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Protocol, cast

import errdefs
import grpclib
import grpclib.const
from betterproto2 import Message
from errdefs.grpc import status_of
from pb.google.rpc import Status
from pb.ttrpc import Request, Response

from rpc.ttrpc.frames import DATA, MAX_DATA, REMOTE_CLOSED, REMOTE_OPEN, REQUEST, RESPONSE, Frames

log = logging.getLogger(__name__)

_INVALID_ARGUMENT, _DEADLINE_EXCEEDED, _RESOURCE_EXHAUSTED, _UNIMPLEMENTED, _UNKNOWN = 3, 4, 8, 12, 2
_CHUNK = 64 * 1024
_PEERCRED = struct.Struct("3i")


class Servable(Protocol):
    """What betterproto2 generates as `…Base`."""

    def __mapping__(self) -> dict[str, grpclib.const.Handler]: ...


class _UnaryStream:
    """The part of grpclib's server stream that a generated unary handler uses."""

    __slots__ = ("metadata", "request", "response")

    def __init__(self, request: Message, metadata: Mapping[str, str]) -> None:
        self.request = request
        self.response: Message | None = None
        self.metadata = metadata

    async def recv_message(self) -> Message:
        return self.request

    async def send_message(self, message: Message, *, end: bool = False) -> None:
        self.response = message


class _ServerConnection(Frames):
    """One accepted socket. It is read and written without asyncio's transports, whose many functions would be
    private memory in every shim, and take longer.
    """

    def __init__(self, server: Server, sock: socket.socket) -> None:
        super().__init__()
        self._server = server
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._last_stream = 0
        self._calls: set[asyncio.Task[None]] = set()
        self._started = False
        self._out = b""
        self._closing = False
        self._fd = sock.fileno()
        self._loop.add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        try:
            if not self._started:
                # The first byte of a ttrpc frame is reserved and 0; HTTP/2 begins with "PRI * HTTP/2".
                first = self._sock.recv(1, socket.MSG_PEEK)
                if first and first[0] and self._server.other is not None:
                    self._hand_on(self._server.other)
                    return
                self._started = True
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self.feed(data)
        else:
            self.lost()

    def _hand_on(self, other: Callable[[], asyncio.Protocol]) -> None:
        self._loop.remove_reader(self._fd)
        self._server._forget(self)
        self._server._hand_on(self._loop.connect_accepted_socket(other, self._sock))

    def write(self, data: bytes) -> None:
        """Send, or queue what the socket does not take now. A client that does not read its replies may send
        no more requests meanwhile.
        """
        if self._fd < 0:
            return
        if not self._out:
            try:
                data = data[self._sock.send(data, socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                pass
            except OSError:
                self.lost()
                return
            if data:
                self._loop.add_writer(self._fd, self._writable)
                self._loop.remove_reader(self._fd)
        self._out += data

    def _writable(self) -> None:
        try:
            self._out = self._out[self._sock.send(self._out, socket.MSG_NOSIGNAL) :]
        except BlockingIOError:
            return
        except OSError:
            self.lost()
            return
        if not self._out:
            self._loop.remove_writer(self._fd)
            if self._closing:
                self.lost()
            else:
                self._loop.add_reader(self._fd, self._readable)

    def close(self) -> None:
        """End the connection when what is queued has been sent."""
        self._closing = True
        if not self._out:
            self.lost()

    def lost(self) -> None:
        """The connection is over; the calls under way are cancelled."""
        if self._fd < 0:
            return
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._sock.close()
        self._fd = -1
        self._server._forget(self)
        for call in self._calls:
            call.cancel()

    def oversized(self, stream: int, length: int) -> None:
        self.fail(
            stream, _RESOURCE_EXHAUSTED, f"message length {length} exceed maximum message size of {MAX_DATA}"
        )

    def frame(self, stream: int, kind: int, flags: int, data: bytes) -> None:
        if stream % 2 != 1:
            self.fail(stream, _INVALID_ARGUMENT, "StreamID must be odd for client initiated streams")
            return
        if kind == DATA:
            self.fail(stream, _INVALID_ARGUMENT, "StreamID is no longer active")
            return
        if kind != REQUEST:
            return  # the protocol lets later versions add types
        if stream <= self._last_stream:
            self.fail(stream, _INVALID_ARGUMENT, "StreamID cannot be re-used and must increment")
            return
        self._last_stream = stream
        try:
            request = Request.parse(data)
        except Exception as error:  # the parser's failures have no common class
            self.fail(stream, _INVALID_ARGUMENT, f"unmarshal request error: {error}")
            return
        if flags & (REMOTE_CLOSED | REMOTE_OPEN):
            self.fail(stream, _UNIMPLEMENTED, f"method {request.service}/{request.method} is not streaming")
            return
        call = asyncio.get_running_loop().create_task(self._call(stream, request))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    def fail(self, stream: int, code: int, message: str) -> None:
        self.send(stream, RESPONSE, bytes(Response(status=Status(code=code, message=message))))

    async def _call(self, stream: int, request: Request) -> None:
        handler = self._server.find(request.service, request.method)
        if handler is None:
            self.fail(stream, _UNIMPLEMENTED, f"service {request.service} method {request.method}")
            return
        try:
            message = handler.request_type.parse(request.payload)
        except Exception as error:  # as above
            self.fail(stream, _INVALID_ARGUMENT, f"unmarshal payload error: {error}")
            return
        unary = _UnaryStream(message, {pair.key: pair.value for pair in request.metadata})
        try:
            if request.timeout_nano > 0:
                async with asyncio.timeout(request.timeout_nano / 1e9):
                    await handler.func(cast(Any, unary))
            else:
                await handler.func(cast(Any, unary))
            payload = bytes(unary.response) if unary.response is not None else b""
        except TimeoutError:
            self.fail(stream, _DEADLINE_EXCEEDED, "context deadline exceeded")
        except errdefs.BuoyError as error:
            self.fail(stream, status_of(error), error.message)
        except grpclib.GRPCError as error:
            self.fail(stream, error.status.value, error.message or error.status.name.lower())
        except Exception as error:
            log.exception("ttrpc: %s/%s failed", request.service, request.method)
            self.fail(stream, _UNKNOWN, str(error))
        else:
            if len(payload) > MAX_DATA - 64:
                self.fail(stream, _RESOURCE_EXHAUSTED, f"reply of {len(payload)} bytes is too long")
            else:
                self.send(stream, RESPONSE, bytes(Response(payload=payload)))


class Server:
    """Serves generated service objects on listening Unix sockets.

    services: objects with `__mapping__`; only their unary methods are reachable.
    aliases: further name of a service -> the name that an object has (`containerd.task.v3.Task` ->
    `containerd.task.v2.Task`).
    other: makes the protocol for a connection whose first byte is not ttrpc's (gRPC on the same socket).

    A handler is cancelled when its caller goes away or its deadline passes; what must not stop half-way
    shields itself. Errors of the errdefs family become their status code, others are logged here once and
    become UNKNOWN. A peer must be root or this process's own user.
    """

    def __init__(
        self,
        services: Sequence[Servable],
        *,
        aliases: Mapping[str, str] | None = None,
        other: Callable[[], asyncio.Protocol] | None = None,
    ) -> None:
        self.other = other
        self._handlers: dict[str, grpclib.const.Handler] = {}
        for service in services:
            for path, handler in service.__mapping__().items():
                if handler.cardinality is grpclib.const.Cardinality.UNARY_UNARY:
                    self._handlers[path] = handler
        for alias, name in (aliases or {}).items():
            for path, handler in list(self._handlers.items()):
                if path.startswith(f"/{name}/"):
                    self._handlers[f"/{alias}/{path.rpartition('/')[2]}"] = handler
        self._connections: set[_ServerConnection] = set()
        self._listeners: list[socket.socket] = []
        self._handed_on: set[asyncio.Task[object]] = set()
        self._empty = asyncio.Event()

    def find(self, service: str, method: str) -> grpclib.const.Handler | None:
        """The handler of a method, or None."""
        return self._handlers.get(f"/{service}/{method}")

    def _forget(self, connection: _ServerConnection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def _hand_on(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._handed_on.add(task)
        task.add_done_callback(self._handed_on.discard)

    async def serve(self, sock: socket.socket) -> None:
        """Accept connections on a bound Unix stream socket from now on; it is closed by `close`."""
        sock.listen(1024)
        sock.setblocking(False)
        self._listeners.append(sock)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._accept, sock)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                # It stays in the queue; look again in a while instead of at once.
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener.fileno())
                loop.call_later(0.5, self._accept_again, listener)
            return
        self.serve_connection(sock)

    def _accept_again(self, listener: socket.socket) -> None:
        if listener.fileno() >= 0:
            asyncio.get_running_loop().add_reader(listener.fileno(), self._accept, listener)

    def serve_connection(self, sock: socket.socket) -> None:
        """Serve a connected Unix stream socket, which is the server's from now on."""
        if not _peer_allowed(sock):
            log.warning("ttrpc: refused a connection of another user")
            sock.close()
            return
        sock.setblocking(False)
        self._connections.add(_ServerConnection(self, sock))

    async def close(self, *, flush: float = 1.0) -> None:
        """Stop accepting, give queued replies `flush` seconds to leave, end all connections."""
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            loop.remove_reader(listener.fileno())
            listener.close()
        self._listeners.clear()
        for connection in list(self._connections):
            connection.close()
        if self._connections:
            self._empty.clear()
            try:
                async with asyncio.timeout(flush):
                    await self._empty.wait()
            except TimeoutError:
                for connection in list(self._connections):
                    connection.lost()


def _peer_allowed(sock: socket.socket) -> bool:
    """Whether a Unix socket's other end belongs to root or to this process's user (unix(7), SO_PEERCRED)."""
    _, uid, _ = _PEERCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size))
    return uid in (0, os.geteuid())

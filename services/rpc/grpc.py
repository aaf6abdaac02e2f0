"""gRPC over Unix sockets by grpclib, with our errors on both ends.

On the wire an error is a gRPC status with its message, plus two trailers: `kind`, the class name within
errdefs, and `grpc-status-details-bin`, a google.rpc.Status whose ErrorInfo carries `detail`. A foreign client
reads the first, a foreign server sends no more than that, and both work.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, cast

import betterproto2
import errdefs
import errdefs.grpc
import grpclib.client
import grpclib.server
from betterproto2.grpclib import ServiceBase
from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.base import CodecBase, StatusDetailsCodecBase
from grpclib.exceptions import GRPCError, ProtocolError, StreamTerminatedError
from grpclib.metadata import Deadline
from grpclib.protocol import H2Protocol
from h2.exceptions import H2Error
from h2.settings import SettingCodes
from pb.google.protobuf import Any as AnyMessage
from pb.google.rpc import Status as StatusMessage

log = logging.getLogger(__name__)

NAMESPACE = "containerd-namespace"
_KIND = "kind"
_DETAILS = "grpc-status-details-bin"
_ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"
_MESSAGE_LIMIT = 4096  # bytes of message in a trailer: clients refuse large header lists
_LARGEST_FRAME = 1 << 20  # bytes
_MOST_CALLS = 100_000  # at a time on one connection
_LARGEST_MESSAGE = 16 << 20  # bytes that a client may send, as to containerd
_AT_ONCE = 8192  # bytes that are worth a write of their own
# Unary calls that end when a process does: a deadline would be a wrong answer.
_UNBOUNDED = frozenset({"/containerd.services.tasks.v1.Tasks/Wait", "/containerd.task.v2.Task/Wait"})


@dataclass(eq=False, repr=False)
class ErrorInfo(betterproto2.Message):
    """google.rpc.ErrorInfo: the reason (our class name), its domain, and facts by key."""

    reason: str = betterproto2.field(1, betterproto2.TYPE_STRING)
    domain: str = betterproto2.field(2, betterproto2.TYPE_STRING)
    metadata: dict[str, str] = betterproto2.field(  # noqa: RUF009 - it is a dataclass field
        3,
        betterproto2.TYPE_MAP,
        map_meta=betterproto2.map_meta(betterproto2.TYPE_STRING, betterproto2.TYPE_STRING),
    )


class _Codec(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        if not isinstance(message, message_type):
            raise TypeError(f"message must be of type {message_type!r}, not {type(message)!r}")
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        try:
            return message_type.parse(data)
        except Exception as error:
            raise errdefs.InvalidArgument(f"malformed {message_type.__name__}: {error}") from error


class _Details(StatusDetailsCodecBase):
    """Error details as a google.rpc.Status; in Python they are (class name, mapping)."""

    def encode(self, status: Status, message: str | None, details: Any) -> bytes:
        reason, metadata = details
        info = ErrorInfo(reason=reason, domain="buoy", metadata=dict(metadata))
        return bytes(
            StatusMessage(
                code=status.value,
                message=message or "",
                details=[AnyMessage(type_url=_ERROR_INFO, value=bytes(info))],
            )
        )

    def decode(self, status: Status, message: str | None, data: bytes) -> Any:
        try:
            for detail in StatusMessage.parse(data).details:
                if detail.type_url == _ERROR_INFO:
                    info = ErrorInfo.parse(detail.value)
                    return info.reason, dict(info.metadata)
        except Exception as error:  # a foreign server's details are a hint, never a reason to fail
            log.debug("undecodable status details: %s", error)
        return None


class _Gathered:
    """A transport that sends what one turn of the event loop has written at once.

    grpclib writes headers, message and trailers one by one. Each write wakes the other side up, which costs
    more than all else of a small call.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._written: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._written:
            self._loop.call_soon(self._send)
        self._written.append(data)
        if len(data) > _AT_ONCE:  # its own flow control must see it
            self._send()

    def _send(self) -> None:
        if self._written:
            data = b"".join(self._written)
            self._written.clear()
            self._transport.write(data)

    def close(self) -> None:
        self._send()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


# The client's side.


class ConnectionLost(errdefs.Unavailable):
    """There is no connection to the server, or it went before the answer: the work may be done or not."""


class _ClientProtocol(H2Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, _Gathered(cast(asyncio.Transport, transport))))
        _take_much(self)


def _take_much(protocol: H2Protocol) -> None:
    """Announce that the other side may send blobs in pieces larger than the 16 KiB of RFC 9113, 4.2, and have
    more calls under way than h2's 100: a client waits for each of its containers on one connection."""
    protocol.connection._connection.update_settings(
        {SettingCodes.MAX_FRAME_SIZE: _LARGEST_FRAME, SettingCodes.MAX_CONCURRENT_STREAMS: _MOST_CALLS}
    )
    protocol.connection.flush()


def _from_grpc(error: GRPCError, kind: str) -> errdefs.BuoyError:
    detail: Mapping[str, str] = {}
    if isinstance(error.details, tuple):
        reason, detail = error.details
        kind = kind or reason
    return errdefs.grpc.error_from(
        error.status.value, error.message or error.status.name, kind=kind, detail=detail
    )


class _ClientStream(grpclib.client.Stream[Any, Any]):
    """A call whose failures leave the `async with` block as errors of the family."""

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> None:
        try:
            await super().__aexit__(exc_type, exc_val, exc_tb)
        except BaseException as error:
            raise self._translated(error) from None
        if exc_val is not None:
            translated = self._translated(exc_val)
            if translated is not exc_val:
                raise translated from None

    def _translated(self, error: BaseException) -> BaseException:
        if isinstance(error, GRPCError):
            return _from_grpc(error, self._kind())
        if isinstance(error, asyncio.TimeoutError):
            return errdefs.DeadlineExceeded(f"{self._method_name.rpartition('.')[2]}: no answer in time")
        if isinstance(error, (StreamTerminatedError, ProtocolError, H2Error, OSError)):
            where = getattr(self._channel, "path", "")
            return ConnectionLost(f"no connection to {where}: {error or type(error).__name__}")
        return error

    def _kind(self) -> str:
        trailers: Any = self.trailing_metadata
        if trailers is None:
            stream = getattr(self, "_stream", None)
            trailers = dict(getattr(stream, "trailers", None) or getattr(stream, "headers", None) or ())
        kind = trailers.get(_KIND, "")
        return kind if isinstance(kind, str) else ""


class Channel(grpclib.client.Channel):
    """A connection to the gRPC server at a Unix socket, made at the first call and made again after a loss.

    Generated stubs work on it unchanged. `namespace` is sent with every call. A unary call without a timeout
    of its own gets `timeout` seconds; `math.inf` means none, which is also what Tasks/Wait gets. Streams have
    no deadline unless asked. Calls raise errors of errdefs only, ConnectionLost for one lost or refused.
    """

    def __init__(self, path: str, *, namespace: str = "", timeout: float = 10.0, ssl: Any = None) -> None:
        super().__init__(path=path, codec=_Codec(), status_details_codec=_Details(), ssl=ssl)
        self.path = path
        self.namespace = namespace
        self._timeout = timeout
        self._authority = "localhost"  # Go's servers refuse an authority that is not a valid host

    def _protocol_factory(self) -> H2Protocol:
        return _ClientProtocol(grpclib.client.Handler(), self._config, self._h2_config)

    def request(
        self,
        name: str,
        cardinality: Cardinality,
        request_type: Any,
        reply_type: Any,
        *,
        timeout: float | None = None,
        deadline: Deadline | None = None,
        metadata: Any = None,
    ) -> Any:
        if (
            timeout is None
            and deadline is None
            and name not in _UNBOUNDED
            and not cardinality.server_streaming
        ):
            timeout = self._timeout
        if timeout is not None and timeout != math.inf:
            own = Deadline.from_timeout(timeout)
            deadline = own if deadline is None else min(own, deadline)
        pairs = list(metadata.items() if isinstance(metadata, Mapping) else metadata or ())
        if self.namespace and all(key != NAMESPACE for key, _ in pairs):
            pairs.append((NAMESPACE, self.namespace))
        stream = super().request(
            name, cardinality, request_type, reply_type, deadline=deadline, metadata=pairs
        )
        stream.__class__ = _ClientStream
        return stream


# The server's side.


@dataclass(frozen=True)
class Call:
    """What a handler may know of the call that it serves, besides the message."""

    method: str
    metadata: Mapping[str, str | bytes]
    _stream: grpclib.server.Stream[Any, Any]

    async def send_initial_metadata(self, metadata: Mapping[str, str]) -> None:
        """Send the headers now; once per call, before the first message."""
        await self._stream.send_initial_metadata(metadata=dict(metadata))

    @property
    def namespace(self) -> str:
        """The caller's containerd namespace. Raises FailedPrecondition when it names none."""
        value = self.metadata.get(NAMESPACE, "")
        if not isinstance(value, str) or not value:
            raise errdefs.FailedPrecondition("namespace is required: failed precondition")
        return value


_call: contextvars.ContextVar[Call] = contextvars.ContextVar("rpc_call")


def current_call() -> Call:
    """The call that this task serves. Raises LookupError outside of a handler."""
    return _call.get()


class _Methods(dict[str, Handler]):
    """The table of methods; an unknown one gets a handler that answers Unimplemented with all headers that Go
    wants."""

    def get(self, key: str, default: Any = None) -> Any:
        known = super().get(key)
        if known is not None:
            return known
        service, _, method = key.lstrip("/").rpartition("/")
        served = any(path.startswith(f"/{service}/") for path in self)
        message = f"unknown method {method} for service {service}" if served else f"unknown service {service}"

        async def refuse(stream: Any) -> None:
            raise GRPCError(Status.UNIMPLEMENTED, message)

        return Handler(refuse, Cardinality.STREAM_STREAM, betterproto2.Message, betterproto2.Message)


class _Limited:
    """A stream from which no message of more than `_LARGEST_MESSAGE` bytes is read: it is refused by its
    length, so that only what flow control had let through was ever in memory."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def recv_data(self, size: int) -> bytes:
        if size > _LARGEST_MESSAGE:
            raise errdefs.ResourceExhausted(
                f"grpc: received message larger than max ({size} vs. {_LARGEST_MESSAGE})"
            )
        return cast(bytes, await self._stream.recv_data(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _guarded(method: str, handler: Handler) -> Handler:
    """The handler with its call known to `current_call` and its errors put into trailers."""

    async def serve(stream: grpclib.server.Stream[Any, Any]) -> None:
        stream._stream = cast(Any, _Limited(stream._stream))
        _call.set(Call(method, cast(Mapping[str, str | bytes], stream.metadata or {}), stream))
        try:
            await handler.func(stream)
        except errdefs.BuoyError as error:
            await _fail(stream, error)
        except (GRPCError, StreamTerminatedError, ProtocolError):
            raise
        except Exception as error:
            log.exception("%s failed", method)
            await _fail(stream, errdefs.Internal(f"{type(error).__name__}: {error}"))

    return Handler(serve, handler.cardinality, handler.request_type, handler.reply_type)


async def _fail(stream: grpclib.server.Stream[Any, Any], error: errdefs.BuoyError) -> None:
    message = error.message.encode(errors="replace")[:_MESSAGE_LIMIT].decode(errors="ignore")
    kind = type(error).__name__
    await stream.send_trailing_metadata(
        status=Status(errdefs.grpc.status_of(error)),
        status_message=message,
        status_details=(kind, error.detail) if error.detail else None,
        metadata={_KIND: kind},
    )


class _Protocol(H2Protocol):
    """One client's connection. Only root, or who we are, may speak; the kernel says who it is (unix(7),
    SO_PEERCRED)."""

    open_connections: set[_Protocol]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family == socket.AF_UNIX:
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            _, uid, _ = struct.unpack("3i", credentials)
            if uid not in (0, os.geteuid()):
                log.warning("refused a client of uid %d", uid)
                cast(asyncio.Transport, transport).abort()
                return
        super().connection_made(cast(asyncio.Transport, _Gathered(cast(asyncio.Transport, transport))))
        _take_much(self)
        self.open_connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self in self.open_connections:
            super().data_received(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self in self.open_connections:
            self.open_connections.discard(self)
            super().connection_lost(exc)


class Server(grpclib.server.Server):
    """Serves generated service objects on listening Unix sockets, their errors mapped by errdefs.grpc."""

    def __init__(self, services: Sequence[ServiceBase]) -> None:
        super().__init__(
            cast(Any, services),
            codec=_Codec(),
            status_details_codec=_Details(),
        )
        self._mapping = _Methods({path: _guarded(path, handler) for path, handler in self._mapping.items()})
        self._open: set[_Protocol] = set()
        self._listeners: list[asyncio.Server] = []

    def _protocol_factory(self) -> H2Protocol:
        self.__gc_step__()
        handler = grpclib.server.Handler(
            self._mapping, self._codec, self._status_details_codec, self.__dispatch__
        )
        self._handlers.add(handler)
        protocol = _Protocol(handler, self._config, self._h2_config)
        protocol.open_connections = self._open
        return protocol

    async def serve(self, sock: socket.socket) -> None:
        """Accept clients on the listening socket `sock` until `close`. May be called for several sockets."""
        # create_server rather than create_unix_server: from Python 3.13 on the latter unlinks the path at
        # close, and the socket belongs to the service manager.
        loop = asyncio.get_running_loop()
        self._listeners.append(await loop.create_server(self._protocol_factory, sock=sock, backlog=1024))

    async def close(self) -> None:  # type: ignore[override]
        """Stop accepting, cancel the calls under way and end every connection; waits at most a second for
        handlers."""
        for listener in self._listeners:
            listener.close()
        handlers = [cast(Any, handler) for handler in self._handlers]
        tasks = {task for handler in handlers for task in handler._tasks.values() if not task.done()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        for protocol in list(self._open):
            protocol.processor.close()
        self._listeners.clear()

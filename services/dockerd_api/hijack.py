"""The HTTP connection: uvicorn's protocol, with connections that can be taken over and that outlive this
process.

`take(request)` makes the connection the caller's: a socket, and the bytes that came behind the request. The
parser is fed no further than the request's end, so those bytes are exact for requests with and without an
Upgrade header.

Reading goes through asyncio.BufferedProtocol: its `get_buffer` is called before the socket is read, by
asyncio's and by uvloop's loop, which is the only place where "a request is under way" can be noted without a
gap.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import re
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import errdefs
import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from dockerd_api.streams.connections import LONGEST_REQUEST, NO_SLOT, Connections

if TYPE_CHECKING:
    from fastapi import Request
    from uvicorn import Server

#: Bytes of one read. Shared by all connections: what is read is consumed before the next read.
_BUFFER = bytearray(256 * 1024)
#: Bytes of request line and headers; Go's default limit.
_LONGEST_HEAD = 1 << 20
#: Bytes behind a request that may be taken over, read before it is; then reading pauses.
_MOST_LEADING = 256 * 1024
#: Seconds that a client in doubt has for its next request.
_DOUBT = 1.0
#: Seconds between looks at whether a reply that did not fit into the socket has left.
_FLUSH_LOOK = 0.02
#: Requests that may be served again, should this process end before their reply begins: those that are safe
#: (RFC 9110, 9.2.1), and those that change nothing before what continues them is stored.
_SERVED_AGAIN = re.compile(
    rb"(?:GET|HEAD) |POST (?:/v[0-9.]+)?/(?:containers/[^/?\s]+/(?:attach|wait)|exec/[^/?\s]+/start)[?\s]"
)
_HEAD_END = re.compile(rb"\r?\n\r?\n")
#: Requests after which the connection may be taken over, so that what follows is not to be parsed.
_HIJACKS = re.compile(rb"(?:/v[0-9.]+)?/(?:containers/[^/]+/attach|exec/[^/]+/start)\Z")


@dataclass
class Taken:
    """A connection that is the caller's now. `leading` are the bytes that the client sent behind its request.

    `kept` is the name by which the service manager keeps the socket, "" when it does not. `stored` is to be
    called once the next process would go on with the connection by what the caller stored: until then it
    would serve the request again, where it can. `released`, to be called once the connection is over or
    somebody else's, has the manager let go.
    """

    sock: socket.socket
    leading: bytes
    kept: str
    stored: Callable[[], None]
    released: Callable[[], None]


def take(request: Request) -> Taken:
    """Take the connection of a request that has had no reply. What the handler returns is not sent.

    Unavailable when the client is gone; FailedPrecondition when a reply has begun.
    """
    protocol = request.scope.get("extensions", {}).get("buoy.connection")
    if protocol is None:
        raise errdefs.Internal("this server's connections cannot be taken over")
    return cast(_Http, protocol).take()


def once(request: Request) -> None:
    """To be called before a request that could be served again changes something after all."""
    protocol = request.scope.get("extensions", {}).get("buoy.connection")
    if protocol is not None:
        cast(_Http, protocol).once()


def protocol(connections: Connections) -> type[asyncio.Protocol]:
    """The class for uvicorn's `Config(http=…)`."""

    def make(**arguments: Any) -> _Connection:
        return _Connection(connections, arguments)

    return cast(type[asyncio.Protocol], make)


async def connect(server: Server, sock: socket.socket, slot: int) -> _Http:
    """Serve a connection, which becomes the protocol's. `slot` is what `Connections.accepted` said."""
    made = cast(Any, server.config.http_protocol_class)(
        config=server.config, server_state=server.server_state, app_state=server.lifespan.state
    )
    made.slot = slot
    sock.setblocking(False)
    await asyncio.get_running_loop().connect_accepted_socket(lambda: made, sock)
    return cast(_Http, made.http)


async def connect_recovered(
    server: Server, sock: socket.socket, slot: int, request: bytes, *, doubt: bool
) -> None:
    """Serve a connection that an earlier process had accepted. `request` was read from it and not answered.

    `doubt`: that process ended as it wrote the end of a reply. A client that got it goes on with the next
    request; one that says nothing for a second is taken to wait for what will not come, and its connection is
    ended.
    """
    http = await connect(server, sock, slot)
    if doubt:
        http.doubt()
    if request:
        http.data_received(request)


class _Connection(asyncio.BufferedProtocol):
    """What the event loop talks to. Passes everything on to `_Http`."""

    def __init__(self, connections: Connections, arguments: dict[str, Any]) -> None:
        self._connections = connections
        self.slot = NO_SLOT
        self.http = _Http(connections, **arguments)
        self.pause_writing = self.http.pause_writing  # type: ignore[method-assign]
        self.resume_writing = self.http.resume_writing  # type: ignore[method-assign]
        self.eof_received = self.http.eof_received  # type: ignore[method-assign]
        self.connection_lost = self.http.connection_lost  # type: ignore[method-assign]
        self._view = memoryview(_BUFFER)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        fd = transport.get_extra_info("socket").fileno()
        self.http.begin(cast(asyncio.Transport, transport), fd, self.slot)

    def get_buffer(self, sizehint: int) -> memoryview:
        self._connections.busy(self.slot)
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self.http.data_received(bytes(self._view[:nbytes]))


class _Http(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 with request ends found exactly, half-closed clients answered, and `take`."""

    def __init__(self, connections: Connections, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._slots = connections
        self._slot = NO_SLOT
        self._fd = -1
        self._head = b""
        # Of the request being read: its body's bytes yet to come, None when the parser finds the end
        # (chunked).
        self._body_left: int | None = 0
        self._in_request = False
        self._upgrade = False
        self._hijackable = False
        self._leading = b""
        self._eof = False
        self._taken = False
        self._leaving = False
        self._doubt: asyncio.TimerHandle | None = None
        self._application = self.app
        self.app = self._answer

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        """The application, with the end of its reply noted before it is written."""

        async def noting(message: Any) -> None:
            if message["type"] == "http.response.start":
                self._slots.busy(self._slot)
            elif not message.get("more_body", False):
                self._slots.answered(self._slot)
            await send(message)

        self._slots.begun(self._slot)
        await self._application(scope, receive, noting)

    def doubt(self) -> None:
        self._doubt = self.loop.call_later(_DOUBT, self.transport.close)

    def begin(self, transport: asyncio.Transport, fd: int, slot: int) -> None:
        self._fd, self._slot = fd, slot
        self.connection_made(transport)

    # -- reading

    def data_received(self, data: bytes) -> None:
        if self._doubt is not None:
            self._doubt.cancel()
            self._doubt = None
        try:
            while data and not self.transport.is_closing():
                data = self._feed(data)
        except httptools.HttpParserError:
            self.send_400_response("400 Bad Request")

    def _feed(self, data: bytes) -> bytes:
        """Consume the next part of `data`; returns the rest."""
        if self._hijackable and not self._in_request:
            # Behind a request whose connection may be taken over: nobody's to parse until that is decided.
            self._leading += data
            if len(self._leading) > _MOST_LEADING:
                self.flow.pause_reading()
            return b""
        if not self._in_request:
            return self._feed_head(data)
        if self._body_left is None:
            if self._upgrade:
                self.send_400_response("a request to upgrade needs a Content-Length for its body")
                return b""
            self._parse(data)
            return b""
        part, rest = data[: self._body_left], data[self._body_left :]
        self._body_left -= len(part)
        if not self._upgrade:
            self._parse(part)
        else:
            self.on_body(part)
            if not self._body_left:
                self._end_upgrade_request()
        return rest

    def _feed_head(self, data: bytes) -> bytes:
        searched = max(0, len(self._head) - 3)
        self._head = (self._head + data).lstrip(b"\r\n") if not self._head else self._head + data
        end = _HEAD_END.search(self._head, searched)
        if end is None:
            if len(self._head) > _LONGEST_HEAD:
                self.send_400_response("431 Request Header Fields Too Large")
            return b""
        request = self._head
        head, body = request[: end.end()], request[end.end() :]
        self._head = b""
        idle = self._is_idle()
        self._parse(head)
        whole = idle and self._body_left == len(body) and len(request) <= LONGEST_REQUEST
        if whole and _SERVED_AGAIN.match(head):
            self._slots.asked(self._slot, request)
        return body

    def _parse(self, data: bytes) -> None:
        # Only the end of what is given can lie behind the request: the cut is made in `_feed`.
        with contextlib.suppress(httptools.HttpParserUpgrade):
            self.parser.feed_data(data)

    def _should_upgrade(self) -> bool:
        return False  # A WebSocket is not what a client of this API may have.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_request = True
        cast(dict[str, Any], self.scope)["extensions"] = {"buoy.connection": self}

    def on_headers_complete(self) -> None:
        length: int | None = 0
        for name, value in self.headers:
            if name == b"content-length":
                length = int(value)
            elif name == b"transfer-encoding":
                length = None
        self._body_left = length
        self._hijackable = self.parser.get_method() == b"POST" and bool(
            _HIJACKS.match(self.url.partition(b"?")[0])
        )
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._in_request = False
            super().on_message_complete()
            return
        # For the parser a request with an Upgrade header ends with its headers. A body that it announces is
        # read here.
        self._upgrade = True
        if self._body_left == 0:
            self._end_upgrade_request()

    def _end_upgrade_request(self) -> None:
        self._upgrade = self._in_request = False
        # The parser refuses everything behind such a request; the next one, if it comes to that, needs
        # another.
        self.parser = httptools.HttpRequestParser(self)
        super().on_message_complete()

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that has ended its sending still gets its reply; one that has closed does not."""
        self._eof = True
        return not _gone(self._fd) and not self._is_idle()

    # -- replies

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            return
        if self._hijackable and not self._in_request:
            self._hijackable = False
            leading, self._leading = self._leading, b""
            if leading:
                self.data_received(leading)
        if self._eof:
            self.transport.close()
        else:
            self.loop.call_soon(self._look_idle)

    def _is_idle(self) -> bool:
        return not (
            self._in_request
            or self._head
            or self._leading
            or self.pipeline
            or (self.cycle is not None and not self.cycle.response_complete)
        )

    def _look_idle(self) -> None:
        if self.transport.is_closing() or not self._is_idle():
            return
        if self.transport.get_write_buffer_size():
            self.loop.call_later(_FLUSH_LOOK, self._look_idle)
            return
        self._slots.idle(self._slot)
        if self._leaving:
            self._leave()

    # -- the end

    def shutdown(self) -> None:
        """The server ends: an idle connection is left to the next process, a busy one after its reply."""
        self._leaving = True
        if self.cycle is None or self._is_idle():
            self._look_idle()

    def _leave(self) -> None:
        """Let go of our copy of the socket; the manager's lives on."""
        self._taken = True
        self.transport.pause_reading()
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._doubt is not None:
            self._doubt.cancel()
        if not self._taken:
            # The manager holds a copy, so that closing ours would not be seen by the client.
            with contextlib.suppress(OSError):
                ours = socket.socket(fileno=os.dup(self._fd))
                with ours:
                    ours.shutdown(socket.SHUT_RDWR)
            self._slots.ended(self._slot)
        super().connection_lost(exc)

    def once(self) -> None:
        self._slots.busy(self._slot)

    def take(self) -> Taken:
        cycle = self.cycle
        if cycle.response_started or self._taken:
            raise errdefs.FailedPrecondition("a reply has begun on this connection")
        if self.transport.is_closing() or cycle.disconnected:
            raise errdefs.Unavailable("the client has closed its connection")
        self.transport.pause_reading()
        sock = socket.socket(fileno=os.dup(self._fd))
        sock.setblocking(False)
        self._taken = True
        # For uvicorn the client is gone: what the handler returns goes nowhere and nothing is said of it.
        cycle.response_started = cycle.response_complete = cycle.disconnected = True
        leading, self._leading = self._leading, b""
        slot, self._slot = self._slot, NO_SLOT
        self.transport.abort()
        return Taken(
            sock,
            leading,
            self._slots.name(slot),
            stored=functools.partial(self._slots.taken, slot),
            released=functools.partial(self._slots.release, slot),
        )


def _gone(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

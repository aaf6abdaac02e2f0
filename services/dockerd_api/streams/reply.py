"""Long replies: each is a socket and a memory file that the service manager keeps, and a producer that fills
the file.

`Streams.begin` starts one, `Streams.recover` goes on with those of the process before: both run the same
producer of the stream's kind, which reads the stream's position and continues behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import select
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import errdefs
from linux.crashpoints import crashpoint

from dockerd_api.hijack import Taken
from dockerd_api.streams.cursor import ReplyFile
from dockerd_api.streams.fdstore import FdStore

log = logging.getLogger(__name__)

#: Unsent bytes of one stream above which its producer waits in `room`.
_MOST_UNSENT = 1 << 20


class ClientGone(errdefs.Canceled):
    """The client of a stream has closed its connection."""


class ReplyStream:
    """One long reply. Producers append and finish; sending is the event loop's.

    `params` are those that `begin` got; `position` is what the last `append` gave, "" at first.
    """

    def __init__(
        self,
        streams: Streams,
        name: str,
        sock: socket.socket,
        file: ReplyFile,
        released: Callable[[], None] | None,
    ) -> None:
        self._streams = streams
        self._released = released
        self._name = name
        self._sock = sock
        self._file = file
        self._writing = False
        self._wakened = asyncio.Event()
        self.gone = False
        self.task: asyncio.Task[None] | None = None
        self.kind = str(file.description["kind"])
        self.params: dict[str, Any] = file.description["params"]
        self._chunked = bool(file.description["chunked"])
        #: Called once when the client is gone.
        self.on_gone: Callable[[], None] | None = None

    @property
    def id(self) -> str:
        return self._name.removeprefix("stream-")

    @property
    def position(self) -> str:
        return self._file.position

    @property
    def sock(self) -> socket.socket:
        return self._sock

    @property
    def finished(self) -> bool:
        return self._file.finished

    def append(self, data: bytes, position: str = "") -> None:
        """Add bytes of the body and send what the socket takes.

        ClientGone when there is no client any more.
        """
        if data:
            self._add(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data, position)
        elif position:
            self._add(b"", position)

    def finish(self, data: bytes = b"", position: str = "") -> None:
        """Add the last bytes; when all is sent the connection ends. The reply is complete for any later
        process from here on, sent or not."""
        if self._file.finished or self._file.fd < 0:
            return
        last = b"%x\r\n%b\r\n" % (len(data), data) if self._chunked and data else data
        self._add(last + (b"0\r\n\r\n" if self._chunked else b""), position, finished=True)

    async def room(self) -> None:
        """Return when the client has taken enough for more to be produced. ClientGone when it is gone."""
        await self._until(lambda: self._file.unsent < _MOST_UNSENT)

    async def flushed(self) -> None:
        """Return when the socket has taken everything. ClientGone when the client is gone."""
        await self._until(lambda: self._file.unsent == 0)

    def detach(self) -> None:
        """Let go of the connection without ending it: another process has it. Nothing is kept any more."""
        self._close(end=False)

    def _add(self, data: bytes, position: str, *, finished: bool = False) -> None:
        if self.gone:
            raise ClientGone("the client has closed its connection")
        self._file.append(data, position, finished=finished)
        crashpoint("streams.appended")
        if not self._writing:
            self.send()

    def send(self) -> None:
        """Send what can be sent; ends the connection of a finished reply that is sent whole."""
        try:
            done = self._file.send(self._sock)
        except OSError as error:
            self.drop(error)
            return
        loop = asyncio.get_running_loop()
        if done == self._writing:
            if done:
                loop.remove_writer(self._sock.fileno())
            else:
                loop.add_writer(self._sock.fileno(), self.send)
            self._writing = not done
        if self._file.unsent < _MOST_UNSENT:
            self._wakened.set()
        if done and self._file.finished:
            self._close(end=True)

    def drop(self, error: OSError | None = None) -> None:
        """The client is gone, or nothing can be produced for it."""
        if self.gone:
            return
        self._close(end=True)
        self.gone = True
        self._wakened.set()
        if self.on_gone is not None:
            self.on_gone()
        if self.task is not None and self.task is not asyncio.current_task():
            self.task.cancel()

    async def _until(self, reached: Callable[[], bool]) -> None:
        while True:
            if self.gone or self._file.fd < 0:
                raise ClientGone("the client has closed its connection")
            if reached():
                return
            self._wakened.clear()
            await self._wakened.wait()

    def _close(self, *, end: bool) -> None:
        if self._file.fd < 0:
            return
        if self._writing:
            asyncio.get_running_loop().remove_writer(self._sock.fileno())
            self._writing = False
        if end:
            # The manager holds a copy of the socket: closing ours would not be seen.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
        self._streams.closed(self._name, self._sock)
        crashpoint("streams.forgotten")
        if self._released is not None:
            self._released()
        self._sock.close()
        self._file.close()


Producer = Callable[[ReplyStream], Awaitable[None]]


class Streams:
    """All long replies of this process.

    `producers` by kind: each runs as a task of its stream, from the beginning or from its position.
    """

    def __init__(self, store: FdStore) -> None:
        self._store = store
        self._streams: dict[str, ReplyStream] = {}
        self._by_fd: dict[int, ReplyStream] = {}
        self._producers: dict[str, Producer] = {}
        self._left: list[tuple[str, socket.socket, ReplyFile]] = []
        self._gone = select.epoll()
        self._watching = False
        # Of the streams of the process before: their sockets, and what releases them.
        self._released: dict[int, Callable[[], None] | None] = {}
        self._collect()

    def produce(self, kind: str, producer: Producer) -> None:
        """What runs for the streams of a kind."""
        self._producers[kind] = producer

    def holds(self, inode: int, released: Callable[[], None]) -> bool:
        """Whether the socket of that inode belongs to a stream of the process before, which then calls
        `released` at its end."""
        if inode not in self._released:
            return False
        self._released[inode] = released
        return True

    def begin(
        self, kind: str, taken: Taken, params: Mapping[str, Any], *, head: bytes, chunked: bool = False
    ) -> ReplyStream:
        """Start a reply on a connection that was taken. `head` goes out first, as it is.

        When this returns, the connection outlives the process.
        """
        # A manager keeps an open file once: under a second name it would be lost with the first. So the
        # socket stays what it was kept as when it was accepted, and the file says which that is.
        file = ReplyFile.create(
            {"kind": kind, "params": dict(params), "chunked": chunked, "socket": taken.kept}
        )
        name = f"stream-{secrets.token_hex(4)}"
        try:
            file.append(head, "")
            self._store.keep(name, [file.fd] if taken.kept else [taken.sock.fileno(), file.fd])
            taken.stored()
        except BaseException:
            file.close()
            raise
        crashpoint("streams.kept")
        stream = ReplyStream(self, name, taken.sock, file, taken.released)
        self._run(stream)
        return stream

    def recover(self) -> int:
        """Go on with the streams of the process before; returns how many. Called before anything happens that
        a producer must not miss."""
        for name, sock, file in self._left:
            sock.setblocking(False)
            released = self._released[os.fstat(sock.fileno()).st_ino]
            stream = ReplyStream(self, name, sock, file, released)
            if stream.kind not in self._producers:
                log.error("stream %s: nothing goes on with kind %s", name, stream.kind)
                stream.drop()
                continue
            self._run(stream)
        count = len(self._left)
        self._left.clear()
        self._released.clear()
        return count

    def closed(self, name: str, sock: socket.socket) -> None:
        """A stream has ended or was handed over."""
        self._store.forget(name)
        self._streams.pop(name, None)
        if self._by_fd.pop(sock.fileno(), None) is not None:
            self._gone.unregister(sock.fileno())

    async def close(self) -> None:
        """Stop producing. The connections are left to the next process."""
        tasks = [stream.task for stream in self._streams.values() if stream.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._watching:
            asyncio.get_running_loop().remove_reader(self._gone.fileno())
        self._gone.close()

    def _run(self, stream: ReplyStream) -> None:
        self._streams[stream._name] = stream
        self._watch(stream)
        stream.send()
        if not stream.finished and not stream.gone:
            stream.task = asyncio.create_task(self._produce(stream), name=stream._name)

    async def _produce(self, stream: ReplyStream) -> None:
        try:
            await self._producers[stream.kind](stream)
        except ClientGone:
            pass
        except errdefs.BuoyError as error:
            log.warning("stream %s (%s) ends: %s", stream.id, stream.kind, error)
            stream.drop()
        except Exception:
            log.exception("stream %s (%s) ends", stream.id, stream.kind)
            stream.drop()

    def _watch(self, stream: ReplyStream) -> None:
        """Notice a client that goes away while nothing is sent to it."""
        if not self._watching:
            asyncio.get_running_loop().add_reader(self._gone.fileno(), self._look_gone)
            self._watching = True
        # A Unix socket hangs up when the other side has closed. Of a TCP connection only the end of the
        # client's sending is seen, and taken for its going, as Go's server does.
        unix = stream.sock.family == socket.AF_UNIX
        self._by_fd[stream.sock.fileno()] = stream
        self._gone.register(stream.sock.fileno(), 0 if unix else select.EPOLLRDHUP)

    def _look_gone(self) -> None:
        for fd, _ in self._gone.poll(0):
            stream = self._by_fd.get(fd)
            if stream is not None:
                stream.drop()

    def _collect(self) -> None:
        """Pair up the passed descriptors; their order is not known (systemd hands out the newest first)."""
        for name in [name for name in self._store.passed if name.startswith("stream-")]:
            fds = self._store.passed.pop(name)
            sockets = [fd for fd in fds if stat.S_ISSOCK(os.fstat(fd).st_mode)]
            files = [fd for fd in fds if fd not in sockets]
            file = _open(files[0]) if len(files) == 1 else None
            if file is not None and not sockets:
                kept = self._store.passed.get(str(file.description.get("socket")), [])
                sockets = [os.dup(fd) for fd in kept if stat.S_ISSOCK(os.fstat(fd).st_mode)][:1]
            if file is None or len(sockets) != 1:
                # A client that closed its connection: the manager dropped the socket alone.
                if file is not None:
                    files = []
                    file.close()
                for fd in sockets + files:
                    os.close(fd)
                self._store.forget(name)
                continue
            sock = socket.socket(fileno=sockets[0])
            self._released[os.fstat(sockets[0]).st_ino] = None
            self._left.append((name, sock, file))


def _open(fd: int) -> ReplyFile | None:
    try:
        return ReplyFile.open(fd)
    except ValueError as error:
        log.error("a stored stream cannot be read: %s", error)
        return None


def response_head(
    content_type: str, *, chunked: bool, status: str = "200 OK", headers: Mapping[str, str] | None = None
) -> bytes:
    """Status line and headers of a reply whose connection ends with it."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", "Connection: close"]
    lines += [f"{key}: {value}" for key, value in (headers or {}).items()]
    if chunked:
        lines.append("Transfer-Encoding: chunked")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

"""All of a shim's writing to disk, done by a process of its own, so that a disk that hangs holds up nobody.

A process that waits in write(2) or fsync(2) can do nothing else until the disk answers, not even die, and
whether a write will wait cannot be known before. So the shim never writes: it puts the bytes into a queue in
memory (a memfd, a ring), and a child appends them to the file. The child is forked at the first bytes and let
go when none have come for a while, since it costs memory.

    shim → child   w             bytes are in the queue
                   s position    forget those before it
                   r folder      write this exit record
    child → shim   position in the stream, offset in the file, errno, kind; with the descriptor of a new file

Nothing is lost or doubled when the child is killed: what it has not acknowledged is in the queue still, and
the file's size tells its successor how much of that had been written. When the shim dies the child writes
what is in the queue, and ends.

A queue above `FULL` asks its sources to pause. A disk that takes nothing for `STALL` seconds, or refuses,
makes it drop instead, in whole calls of `append`, and count: nobody waits for ever.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C functions; see forks
import asyncio
import contextlib
import errno
import gc
import logging
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable

from linux.crashpoints import crashpoint
from linux.fds import receive_fds, send_fds

from shim_svc import exit_record
from shim_svc.exit_record import ExitRecord
from shim_svc.forks import fork_child
from shim_svc.log_file import Compression, LogFile
from shim_svc.title import set_title

log = logging.getLogger(__name__)

FULL = 1 << 20  # bytes in the queue above which sources pause, as much as Docker's own buffer holds
STALL = 1.0  # seconds without any progress in which they do
IDLE = 2.0  # seconds after which a child that has nothing to do is let go
_RING = 8 << 20  # bytes that fit: FULL, and the largest entry of one read (64 KiB of newlines)
_CHUNK = 512 << 10
_RETRY = 0.5  # seconds between tries on a disk that refuses, or to fork
_WARN_EVERY = 60.0

_HEADER = struct.Struct("<QQQ")  # behind the ring: position of its first byte, of its end, latest time in it
_ANSWER = struct.Struct("<QQII")  # position, offset, errno, kind
_WRITTEN, _ASLEEP, _DONE = 0, 1, 2
_POSITION = struct.Struct("<Q")


class _Queue:
    """The ring, shared by the shim and its child. Positions are those of the whole stream of bytes."""

    def __init__(self, position: int, size: int) -> None:
        self.fd = os.memfd_create("disk-queue", os.MFD_CLOEXEC)
        self.size = size
        self.origin = self.head = position
        self.latest = 0
        self._tell()

    def _tell(self) -> None:
        os.pwrite(self.fd, _HEADER.pack(self.origin, self.head, self.latest), self.size)

    def put(self, data: bytes, latest: int, *, empty: bool) -> None:
        """Append; empty: whether the child has taken everything, so that the same memory is used again."""
        if empty:
            self.origin = self.head
        self.latest = max(self.latest, latest)
        at = (self.head - self.origin) % self.size
        first = self.size - at
        done = os.pwrite(self.fd, data[:first], at)
        if len(data) > first:
            done += os.pwrite(self.fd, data[first:], 0)
        if done < len(data):
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        self.head += len(data)
        self._tell()

    def look(self) -> None:
        """In the child: learn what the shim has put."""
        self.origin, self.head, self.latest = _HEADER.unpack(os.pread(self.fd, _HEADER.size, self.size))

    def get(self, start: int, end: int) -> bytes:
        """The bytes between two positions."""
        at = (start - self.origin) % self.size
        data = os.pread(self.fd, min(end - start, self.size - at), at)
        if len(data) < end - start:
            data += os.pread(self.fd, end - start - len(data), 0)
        return data


class DiskWriter:
    """The shim's side. file: what is appended to; None: there are only exit records to be written.

    notice: makes the bytes that tell, in the file, how many lines are missing there. lines: counts those in
    bytes that are dropped. buffer: bytes that may wait, above which what comes is dropped at once; None:
    sources are asked to pause instead. Needs a running loop.
    """

    def __init__(
        self,
        file: LogFile | None,
        *,
        notice: Callable[[int], bytes] | None = None,
        lines: Callable[[bytes], int] | None = None,
        buffer: int | None = None,
    ) -> None:
        self.file = file
        self._lines = lines or _newlines
        self._buffer = buffer
        self._ring_size = max(_RING, 2 * (buffer or 0))
        self.dropped_lines = 0
        self.on_room: Callable[[], None] = _nothing
        """Called when sources that were to pause may go on."""
        self.on_drop: Callable[[], None] = _nothing
        """Called when lines begin to be dropped."""
        self._notice = notice
        self._head = self._tail = 0
        self._offset = file.size if file is not None else 0
        self._queue: _Queue | None = None
        self._channel: socket.socket | None = None
        self._asleep = False
        self._errno = 0
        self._answers = 0
        self._spoke = False
        self._request = b""
        self._result = -1
        self._closed = False
        self._dropping = False
        self._untold = 0
        self._stall: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stalled_at = 0
        self._used_at = 0.0
        self._warned_at = 0.0
        self._news: list[asyncio.Future[None]] = []

    # The queue

    def append(self, data: bytes, latest: int = 0) -> bool:
        """Take bytes for the file, or drop them; False when no more should come until `on_room`.

        latest: no time in the data or before it is later.
        """
        most = self._ring_size if self._buffer is None else max(self._buffer, len(data))
        if self._dropping or self._closed or self._head - self._tail + len(data) > most:
            self._drop(data)
            return True
        try:
            self._put(data, latest)
        except OSError as error:  # no memory
            self._drop(data, error.errno or 0)
            return True
        if self._buffer is not None or self._head - self._tail <= FULL:
            return True
        if self._errno:
            self._begin_to_drop()
            return True
        if self._stall is None:
            self._stalled_at = self._tail
            self._stall = asyncio.get_running_loop().call_later(STALL, self._check_progress)
        return False

    def _put(self, data: bytes, latest: int) -> None:
        if self._queue is None:
            self._queue = _Queue(self._head, self._ring_size)
        empty = self._asleep and self._head == self._tail and not self._request
        self._queue.put(data, latest, empty=empty)
        self._head = self._queue.head
        self._ring()

    def _ring(self) -> None:
        """See that the child writes."""
        if self._channel is None:
            if self._timer is None:
                self._start(None)
        elif self._asleep:
            self._send(b"w")

    def prepare(self) -> None:
        """Have the child ready: it will be needed soon, and there is time now."""
        if self._channel is None and self._timer is None and not self._closed:
            self._start(None)

    @property
    def offset(self) -> int:
        """How many bytes of the file are known to be written; `queued` comes behind them."""
        return self._offset

    def queued(self) -> bytes:
        """The bytes that are not known to be in the file yet."""
        return self._queue.get(self._tail, self._head) if self._queue is not None else b""

    # Drops

    def _drop(self, data: bytes, error: int = 0) -> None:
        lines = self._lines(data)
        if lines and not self._untold:
            self.on_drop()
        self.dropped_lines += lines
        self._untold += lines
        now = time.monotonic()
        if lines and (now - self._warned_at > _WARN_EVERY or not self._warned_at):
            self._warned_at = now
            error = error or self._errno
            why = os.strerror(error) if error else "the disk does not answer"
            name = self.file.path if self.file is not None else ""
            log.warning("log %s: %s; %d lines dropped so far", name, why, self.dropped_lines)

    def _begin_to_drop(self) -> None:
        self._dropping = True
        self._stop_watch()
        self.on_room()

    def _check_progress(self) -> None:
        self._stall = None
        if self._tail == self._stalled_at:
            self._begin_to_drop()
        else:
            self._stalled_at = self._tail
            self._stall = asyncio.get_running_loop().call_later(STALL, self._check_progress)

    def _stop_watch(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _made_room(self) -> None:
        most = FULL if self._buffer is None else self._buffer
        if self._errno or self._head - self._tail > most // 2:
            return
        self._dropping = False
        if self._untold:
            lines, self._untold = self._untold, 0
            log.warning("%d lines are missing in the log", lines)
            if self._notice is not None:
                notice = self._notice(lines)
                try:
                    self._put(notice, 0)  # above all limits
                except OSError as error:
                    self._drop(notice, error.errno or 0)
                    self._untold = lines
        if self._stall is not None:
            self._stop_watch()
            self.on_room()

    # The child

    def _start(self, resume: int | None) -> None:
        """Fork a child. resume: behind which offset its dead predecessor may have written."""
        self._timer = None
        file, position = self.file, self._tail
        try:
            queue = self._queue or _Queue(self._head, self._ring_size)
            self._queue = queue
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            keep = [theirs.fileno(), queue.fd, *([file.fd] if file is not None else [])]
            with theirs:
                try:
                    fork_child(lambda: _Child(theirs, queue, file, position).run(resume), keep=keep)
                except OSError:
                    ours.close()
                    raise
        except OSError as error:
            log.warning("no process to write with: %s", error)
            self._timer = asyncio.get_running_loop().call_later(_RETRY, self._start, resume)
            return
        ours.setblocking(False)
        self._channel = ours
        self._spoke = False
        self._asleep = False  # it looks into the queue first
        asyncio.get_running_loop().add_reader(ours.fileno(), self._readable)
        if self._request:
            self._send(self._request)

    def _send(self, message: bytes) -> None:
        assert self._channel is not None
        self._asleep = False
        with contextlib.suppress(OSError):  # it is dead, which is seen when it is read from
            self._channel.send(message)

    def _readable(self) -> None:
        assert self._channel is not None
        try:
            data, fds = receive_fds(self._channel, _ANSWER.size, 1)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._child_ended()
            return
        self._tail, self._offset, self._errno, kind = _ANSWER.unpack(data)
        self._answers += 1
        self._spoke = True
        if fds and self.file is not None:
            self.file.follow(fds[0])
        if kind == _DONE:
            self._result, self._errno, self._request = self._errno, 0, b""
        elif kind == _ASLEEP:
            self._asleep = True
            if self._tail < self._head and not self._errno:
                self._ring()
        self._made_room()
        if self._asleep and self._tail == self._head and not self._request:
            self._used_at = time.monotonic()
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(IDLE, self._idle)
        self._wake()

    def _wake(self) -> None:
        news, self._news = self._news, []
        for future in news:
            if not future.done():
                future.set_result(None)

    def _let_go(self) -> None:
        """Forget the child and the queue; a child that is there writes what is left of it, and ends."""
        self._stop_watch()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._channel is not None:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            self._channel.close()
            self._channel = None
        if self._queue is not None:
            os.close(self._queue.fd)
            self._queue = None
        self._asleep = False

    def _idle(self) -> None:
        self._timer = None
        if self._tail < self._head or self._request or not self._asleep:
            return  # asked again when it sleeps
        left = self._used_at + IDLE - time.monotonic()
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(left, self._idle)
        else:
            self._let_go()

    def _child_ended(self) -> None:
        # Its descriptors are closed, so that no write of its is under way any more.
        assert self._channel is not None
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        self._channel.close()
        self._channel = None
        self._asleep = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._tail < self._head or self._request:
            log.warning("the process that writes to the disk has died; another one goes on")
            # At once the first time; one that dies without a word is not followed by the next in haste.
            delay = 0.0 if self._spoke else _RETRY
            self._timer = asyncio.get_running_loop().call_later(delay, self._start, self._offset)
        else:
            self._let_go()
        self._wake()

    # Waiting

    async def _wait(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._news.append(future)
        await future

    async def flush(self) -> None:
        """Wait until what has been taken is in the file. What a disk refuses now is dropped and counted."""
        end, before, counted = self._head, self._answers, False
        while self._tail < end:
            if self._errno and self._answers > before and self._channel is not None:
                assert self._queue is not None
                if not counted:
                    self._drop(self._queue.get(self._tail, end))
                counted, before = True, self._answers
                self._send(b"s" + _POSITION.pack(end))
            else:
                self._ring()
            await self._wait()

    async def record(self, folder: str, record: ExitRecord) -> None:
        """Make an exit record durable, behind everything that has been taken; OSError."""
        await self.flush()
        self._request, self._result = b"r" + folder.encode() + b"\0" + exit_record.encode(record), -1
        if self._channel is not None:
            self._send(self._request)
        else:
            self._ring()
        while self._result < 0:
            await self._wait()
        if self._result:
            raise OSError(self._result, os.strerror(self._result))

    def close(self) -> None:
        """Let go of the file; what is in the queue is written by the child, which ends then."""
        self._closed = True
        self._let_go()
        self._tail = self._head
        if self.file is not None:
            self.file.close()


def _nothing() -> None:
    return


def _newlines(data: bytes) -> int:
    return data.count(b"\n")


class _Child:
    """The child's side: straight, waiting code."""

    def __init__(self, channel: socket.socket, queue: _Queue, file: LogFile | None, position: int) -> None:
        self._channel = channel
        self._queue = queue
        self._file = file
        self._position = position
        self._errno = 0
        self._compression: Compression | None = None

    def run(self, resume: int | None) -> int:
        """Serve until the shim lets go or dies; returns the exit code."""
        gc.disable()  # it would write to every object, and nothing here needs it
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
            _signal.signal(int(number), int(signal.SIG_IGN))
        set_title("shim-svc disk-writer", "shim-writer")
        if self._file is not None:
            written, rotated = self._file.resume(resume)
            self._position += written
            self._answer(_WRITTEN, self._file.fd if rotated else -1)
        self._write()
        self._answer(_ASLEEP)
        while request := self._receive():
            kind = request[:1]
            if kind == b"s":
                self._position = max(self._position, *_POSITION.unpack(request[1:]))
                self._errno = 0
            elif kind == b"r":
                self._answer(_DONE, error=_exit_record(request[1:]))
            self._write()
            self._answer(_ASLEEP)
        self._write()
        while self._compression is not None:
            self._finish_compression()
        return 0

    def _receive(self) -> bytes:
        while True:
            fds = [self._channel.fileno()]
            if self._compression is not None:
                fds.append(self._compression.pidfd)
            ready, _, _ = select.select(fds, [], [], _RETRY if self._errno else None)
            if self._channel.fileno() in ready:
                try:
                    return self._channel.recv(1 << 16)
                except OSError:
                    return b""
            if not ready:
                return b"w"
            self._finish_compression()

    def _finish_compression(self) -> None:
        assert self._compression is not None
        assert self._file is not None
        done = self._compression.finish()
        self._compression = self._file.begin_compression() if done else None

    def _answer(self, kind: int, fd: int = -1, error: int | None = None) -> None:
        offset = self._file.size if self._file is not None else 0
        data = _ANSWER.pack(self._position, offset, self._errno if error is None else error, kind)
        with contextlib.suppress(OSError):
            if fd >= 0:
                send_fds(self._channel, data, [fd])
            else:
                self._channel.send(data)

    def _write(self) -> None:
        """Write until the queue is empty, or the disk refuses."""
        queue, file = self._queue, self._file
        queue.look()
        if file is None:
            return
        try:
            while self._position < queue.head:
                if file.full:
                    file.rotate()
                    self._answer(_WRITTEN, file.fd)
                    if self._compression is None:
                        self._compression = file.begin_compression()
                data = queue.get(self._position, min(queue.head, self._position + _CHUNK))
                count = file.append(data, queue.latest)
                crashpoint("writer.append.written")
                self._position += count
                self._errno = 0
                queue.look()
                if self._position < queue.head:
                    self._answer(_WRITTEN)
        except OSError as error:
            self._errno = error.errno or errno.EIO


def _exit_record(request: bytes) -> int:
    """Write the record; returns 0 or the errno."""
    folder, _, data = request.partition(b"\0")
    try:
        exit_record.write(folder.decode(), data)
    except OSError as error:
        return error.errno or errno.EIO
    return 0

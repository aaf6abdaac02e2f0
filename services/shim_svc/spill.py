"""Bytes that a slow client has not taken yet, kept out of the shim's memory.

They lie in unnamed files of a few megabytes each, in memory first (memfd). Where there is a folder for it, a
child moves those in the middle to the container's disk, for a disk that hangs must not hold up the shim. A
file is given back when it has been read. Sent by sendfile(2), so that they are not copied in.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable

from linux.fds import receive_fds, send_fds

from shim_svc.forks import fork_child
from shim_svc.title import set_title

SEGMENT = 8 << 20
LIMIT_MEMORY = 64 << 20
LIMIT_DISK = 512 << 20
_BEHIND = LIMIT_MEMORY // 2  # bytes in memory above which sources pause, while files are being moved
STALL = 1.0  # seconds that they pause for one file


class _Segment:
    """One file of the queue."""

    __slots__ = ("fd", "in_memory")

    def __init__(self) -> None:
        self.fd = os.memfd_create("attach-spill", os.MFD_CLOEXEC)
        self.in_memory = True


class Spill:
    """A bounded queue of bytes. folder: where files are moved to; None: they stay in memory.

    on_room: called when `behind` may be over. With a folder it needs a running loop.
    """

    def __init__(self, folder: str | None, on_room: Callable[[], None] | None = None) -> None:
        self._folder = folder
        self._on_room = on_room
        self._segments: deque[_Segment] = deque()
        self._read_at = 0  # in the first segment
        self._written = 0  # in the last segment
        self._mover: socket.socket | None = None
        self._moving: _Segment | None = None
        self._stall: asyncio.TimerHandle | None = None
        self.size = 0
        """Bytes in the queue."""

    @property
    def _memory(self) -> int:
        return SEGMENT * sum(segment.in_memory for segment in self._segments)

    @property
    def behind(self) -> bool:
        """Whether no more should come for a moment: what is to be moved to disk has become much."""
        return self._stall is not None and self._memory > _BEHIND

    def append(self, data: bytes | memoryview) -> bool:
        """Queue the data; False when the limits or memory do not allow it, and then nothing can be added."""
        if self.size + len(data) > (LIMIT_MEMORY if self._folder is None else LIMIT_DISK):
            return False
        view = memoryview(data)
        try:
            while view:
                if not self._segments or self._written >= SEGMENT:
                    if self._memory >= LIMIT_MEMORY:
                        return False
                    self._segments.append(_Segment())
                    self._written = 0
                    self._move()
                count = os.pwrite(self._segments[-1].fd, view[: SEGMENT - self._written], self._written)
                self._written += count
                self.size += count
                view = view[count:]
        except OSError:
            return False
        return True

    def _move(self) -> None:
        """Have a child move a file, neither the one that is read nor the one that is written."""
        if self._folder is None or self._mover is not None:
            return
        middle = list(self._segments)[1:-1]
        segment = next((one for one in middle if one.in_memory), None)
        if segment is None:
            return
        folder = self._folder
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                fork_child(lambda: _be_mover(folder, segment.fd, theirs), keep=(segment.fd, theirs.fileno()))
            except OSError:
                ours.close()
                return  # tried again with the next file
        ours.setblocking(False)
        self._mover, self._moving = ours, segment
        loop = asyncio.get_running_loop()
        loop.add_reader(ours.fileno(), self._moved)
        self._stall = loop.call_later(STALL, self._stalled)

    def _stalled(self) -> None:
        self._stall = None
        self._tell_room()

    def _tell_room(self) -> None:
        if self._on_room is not None:
            self._on_room()

    def _moved(self) -> None:
        assert self._mover is not None
        try:
            _, fds = receive_fds(self._mover, 1, 1)
        except BlockingIOError:
            return
        except OSError:
            fds = []
        segment = self._moving
        self._forget_mover()
        if not fds:
            self._folder = None  # no such files there: memory it is
        elif segment is not None and segment in self._segments:
            os.close(segment.fd)
            segment.fd, segment.in_memory = fds[0], False
        else:
            os.close(fds[0])  # it has been read meanwhile
        self._move()
        self._tell_room()

    def _forget_mover(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self._mover is not None:
            asyncio.get_running_loop().remove_reader(self._mover.fileno())
            self._mover.close()
            self._mover = None
        self._moving = None

    def send(self, sock: socket.socket) -> None:
        """Send until the queue is empty. BlockingIOError when the socket takes no more; OSError when it is
        gone.
        """
        while self.size:
            last = len(self._segments) == 1
            available = (self._written if last else SEGMENT) - self._read_at
            count = os.sendfile(sock.fileno(), self._segments[0].fd, self._read_at, available)
            self._read_at += count
            self.size -= count
            if count == available:
                os.close(self._segments.popleft().fd)
                self._read_at = 0
                if last:
                    self._written = 0

    def close(self) -> None:
        """Drop everything."""
        self._forget_mover()
        while self._segments:
            os.close(self._segments.pop().fd)
        self.size = 0


def _be_mover(folder: str, source: int, channel: socket.socket) -> int:
    """The child: copy a whole segment to the disk, and send the copy's descriptor; returns the exit code."""
    set_title("shim-svc spill-mover", "shim-writer")
    try:
        target = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        at = 0
        while at < SEGMENT:
            at += os.sendfile(target, source, at, SEGMENT - at)
        send_fds(channel, b"m", [target])
    except OSError:
        return 1
    return 0

"""Kept-alive connections across the end of this process.

Each accepted connection gets a slot: its socket is kept by the service manager as `conn-<slot>`, and one byte
of a shared memory file (`connstate`) says whether a request is under way on it. The byte is set before the
first byte of a request is read from the socket, so that the next process knows exactly which connections it
can go on with and which have lost a request.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import select
import socket
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from dockerd_api.streams.fdstore import FdStore

if TYPE_CHECKING:
    from uvicorn import Server

log = logging.getLogger(__name__)

SLOTS = 4096
_FREE, _IDLE, _BUSY, _ANSWERED = 0, 1, 2, 3
#: For a connection that the manager does not keep.
NO_SLOT = -1


class Connections:
    """The slots. One per process; everything runs on the event loop's thread."""

    def __init__(self, store: FdStore) -> None:
        self._store = store
        passed = store.passed.pop("connstate", [])
        self.recovered = bool(passed)
        fd = passed[0] if passed else os.memfd_create("connstate", os.MFD_CLOEXEC)
        for extra in passed[1:]:
            os.close(extra)
        if not passed:
            os.ftruncate(fd, SLOTS)
        self._state = mmap.mmap(fd, SLOTS)
        if not passed:
            store.keep("connstate", [fd])
        os.close(fd)
        self._taken_up: list[tuple[int, socket.socket]] = []
        self._free = list(range(SLOTS - 1, -1, -1))

    def accepted(self, fd: int) -> int:
        """A slot for a new connection, marked as idle."""
        if not self._free:
            return NO_SLOT
        slot = self._free.pop()
        self._state[slot] = _IDLE
        if self._store.keep(f"conn-{slot}", [fd]):
            return slot
        self._state[slot] = _FREE
        self._free.append(slot)
        return NO_SLOT

    def busy(self, slot: int) -> None:
        """To be called before a request's first byte is read."""
        if slot >= 0:
            self._state[slot] = _BUSY

    def answered(self, slot: int) -> None:
        """To be called before the last bytes of a reply are written: it may have arrived from here on."""
        if slot >= 0:
            self._state[slot] = _ANSWERED

    def idle(self, slot: int) -> None:
        """To be called when the reply has left this process."""
        if slot >= 0:
            self._state[slot] = _IDLE

    def release(self, slot: int) -> None:
        """The connection lives on under another name; the manager lets go of its copy."""
        if slot >= 0:
            self._store.forget(f"conn-{slot}")
            self._state[slot] = _FREE
            self._free.append(slot)

    def ended(self, slot: int) -> None:
        """The socket was shut down: the manager's copy hangs up, and leaves its store by that."""
        if slot >= 0:
            self._store.ended(f"conn-{slot}")
            self._state[slot] = _FREE
            self._free.append(slot)

    def recover(self, elsewhere: Callable[[int], bool]) -> None:
        """Take up what the process before left: idle connections wait for `adopt`, those with a request under
        way are ended.

        `elsewhere` says whether an inode is a stream's socket: such a connection was taken over by the stream
        and only its old name is to go.
        """
        names = [name for name in self._store.passed if name.startswith("conn-")]
        for name in names:
            fds = self._store.passed.pop(name)
            sockets = [socket.socket(fileno=fd) for fd in fds if _is_socket(fd)]
            for fd in fds:
                if not _is_socket(fd):
                    os.close(fd)
            slot = int(name[5:]) if name[5:].isdecimal() and int(name[5:]) < SLOTS else NO_SLOT
            living = [sock for sock in sockets if not _hung_up(sock)]
            keep = None
            for sock in living:
                if elsewhere(os.fstat(sock.fileno()).st_ino):
                    continue
                if keep is None and slot != NO_SLOT and self._state[slot] in (_IDLE, _ANSWERED):
                    keep = sock
                    continue
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for sock in sockets:
                if sock is not keep:
                    sock.close()
            if keep is None:
                self._store.forget(name)
                if slot != NO_SLOT:
                    self._state[slot] = _FREE
            else:
                self._free.remove(slot)
                self._taken_up.append((slot, keep))

    async def adopt(self, server: Server) -> int:
        """Serve the connections that were taken up; returns how many. Called once `server` has started."""
        from dockerd_api.hijack import connect_recovered

        count = len(self._taken_up)
        while self._taken_up:
            slot, sock = self._taken_up.pop()
            await connect_recovered(server, sock, slot, doubt=self._state[slot] == _ANSWERED)
        return count


def _is_socket(fd: int) -> bool:
    return stat.S_ISSOCK(os.fstat(fd).st_mode)


def _hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

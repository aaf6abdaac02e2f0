"""Kept-alive connections across the end of this process.

Each accepted connection gets a slot: its socket is kept by the service manager as `conn-<slot>`, and one byte
of a shared memory file (`connstate`) says whether a request is under way on it. The byte is set before the
first byte of a request is read from the socket, so that the next process knows exactly which connections it
can go on with and which have lost a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import mmap
import os
import select
import socket
import stat
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from dockerd_api.streams.fdstore import FdStore

if TYPE_CHECKING:
    from uvicorn import Server

log = logging.getLogger(__name__)

SLOTS = 4096
#: Bytes of a slot: state, how often the request was served again, two of its length, the request that is
#: under way if it can be served again.
_SLOT = 2048
_REQUEST = 4
LONGEST_REQUEST = _SLOT - _REQUEST
#: Seconds that the requests of a process that has ended delay the news that this one is ready.
_TO_ANSWER = 0.25
#: A request that has ended so many processes is not served again.
_MOST_AGAIN = 3
#: ASKED: a request was read that can be served again, no byte of its reply was written and no stream stored.
#: BUSY: any other request is under way. ANSWERED: the end of the reply is being written. TAKEN: a stream has
#: the connection, or had it and gave it to a shim.
_FREE, _IDLE, _BUSY, _ANSWERED, _ASKED, _TAKEN = range(6)
#: For a connection that the manager does not keep.
NO_SLOT = -1


class Connections:
    """The slots. One per process; everything runs on the event loop's thread."""

    def __init__(self, store: FdStore) -> None:
        self._store = store
        self._state = self._map(store)
        self._taken_up: list[tuple[int, socket.socket]] = []
        self._free = list(range(SLOTS - 1, -1, -1))

    @staticmethod
    def _map(store: FdStore) -> mmap.mmap:
        """The state file of the process before, or a new one where there is none of this version's form."""
        size = SLOTS * _SLOT
        for fd in store.passed.pop("connstate", []):
            with open(fd, "r+b") as file:
                if os.fstat(fd).st_size == size:
                    return mmap.mmap(file.fileno(), size)
        store.forget("connstate")
        with open(os.memfd_create("connstate", os.MFD_CLOEXEC), "r+b") as file:
            os.ftruncate(file.fileno(), size)
            store.keep("connstate", [file.fileno()])
            return mmap.mmap(file.fileno(), size)

    def accepted(self, fd: int) -> int:
        """A slot for a new connection, marked as idle."""
        if not self._free:
            return NO_SLOT
        slot = self._free.pop()
        self._state[slot * _SLOT] = _IDLE
        if self._store.keep(f"conn-{slot}", [fd]):
            return slot
        self._state[slot * _SLOT] = _FREE
        self._free.append(slot)
        return NO_SLOT

    def busy(self, slot: int) -> None:
        """To be called before a request's first byte is read."""
        if slot >= 0:
            self._state[slot * _SLOT] = _BUSY
            self._state[slot * _SLOT + 1] = 0

    def asked(self, slot: int, request: bytes) -> None:
        """To be called with a whole request that can be served again, should this process end."""
        if slot >= 0:
            at = slot * _SLOT
            self._state[at + 2 : at + _REQUEST + len(request)] = len(request).to_bytes(2, "little") + request
            self._state[at] = _ASKED

    def begun(self, slot: int) -> None:
        """To be called before a request is worked on: should this process end by it, that counts."""
        if slot >= 0 and self._state[slot * _SLOT] == _ASKED:
            self._state[slot * _SLOT + 1] += 1

    def answered(self, slot: int) -> None:
        """To be called before the last bytes of a reply are written: it may have arrived from here on."""
        if slot >= 0:
            self._state[slot * _SLOT] = _ANSWERED

    def idle(self, slot: int) -> None:
        """To be called when the reply has left this process."""
        if slot >= 0:
            self._state[slot * _SLOT] = _IDLE

    def taken(self, slot: int) -> None:
        """To be called when a stream that goes on with the connection is stored."""
        if slot >= 0:
            self._state[slot * _SLOT] = _TAKEN

    @staticmethod
    def name(slot: int) -> str:
        """What the manager knows the connection by, "" when it does not."""
        return f"conn-{slot}" if slot >= 0 else ""

    def release(self, slot: int) -> None:
        """A connection that was taken is over, or somebody else's; the manager lets go of its copy."""
        if slot >= 0:
            self._store.forget(f"conn-{slot}")
            self._state[slot * _SLOT] = _FREE
            self._free.append(slot)

    def ended(self, slot: int) -> None:
        """The socket was shut down: the manager's copy hangs up, and leaves its store by that."""
        if slot >= 0:
            self._store.ended(f"conn-{slot}")
            self._state[slot * _SLOT] = _FREE
            self._free.append(slot)

    def recover(self, elsewhere: Callable[[int, Callable[[], None]], bool]) -> None:
        """Take up what the process before left: idle connections wait for `adopt`, those with a request under
        way are ended.

        `elsewhere` says whether an inode is a stream's socket: such a connection was taken, and is released
        by the function that `elsewhere` is given.
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
            taken = False
            for sock in living:
                if elsewhere(os.fstat(sock.fileno()).st_ino, functools.partial(self.release, slot)):
                    taken = slot != NO_SLOT
                    continue
                if keep is None and self._goes_on(slot):
                    keep = sock
                    continue
                if slot != NO_SLOT and self._state[slot * _SLOT] == _TAKEN:
                    continue  # Its stream has ended; a shim may be serving the client, so only our copy goes.
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for sock in sockets:
                if sock is not keep:
                    sock.close()
            if taken:
                self.taken(slot)
                self._free.remove(slot)
            elif keep is None:
                self._store.forget(name)
                if slot != NO_SLOT:
                    self._state[slot * _SLOT] = _FREE
            else:
                self._free.remove(slot)
                self._taken_up.append((slot, keep))

    def _goes_on(self, slot: int) -> bool:
        if slot == NO_SLOT:
            return False
        state, again = self._state[slot * _SLOT], self._state[slot * _SLOT + 1]
        return state in (_IDLE, _ANSWERED) or (state == _ASKED and again < _MOST_AGAIN)

    async def adopt(self, server: Server) -> int:
        """Serve the connections that were taken up; returns how many. Called once `server` has started.

        Requests that were under way are answered when this returns, or take their time.
        """
        from dockerd_api.hijack import connect_recovered

        count = len(self._taken_up)
        asked = []
        while self._taken_up:
            slot, sock = self._taken_up.pop()
            at = slot * _SLOT
            state, length, request = self._state[at], 0, b""
            if state == _ASKED:
                length = int.from_bytes(self._state[at + 2 : at + _REQUEST], "little")
                request = self._state[at + _REQUEST : at + _REQUEST + length]
                asked.append(at)
            await connect_recovered(server, sock, slot, request, doubt=state == _ANSWERED)
        until = time.monotonic() + _TO_ANSWER
        while time.monotonic() < until and any(self._state[at] == _ASKED for at in asked):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        return count


def _is_socket(fd: int) -> bool:
    return stat.S_ISSOCK(os.fstat(fd).st_mode)


def _hung_up(sock: socket.socket) -> bool:
    poll = select.poll()
    poll.register(sock, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

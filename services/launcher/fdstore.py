"""Descriptors that a service hands over for its next process, as systemd's store keeps them.

sd_pid_notify_with_fds(3), FileDescriptorStoreMax= in systemd.service(5).
"""

from __future__ import annotations

import os
import select
from dataclasses import dataclass

#: The names of all passed descriptors go into one environment string, which execve(2) limits to 128 KiB.
_MOST_NAME_BYTES = 120 * 1024


@dataclass(frozen=True)
class Stored:
    fd: int
    name: str
    file: tuple[int, int]
    watched: bool


def valid_name(name: str) -> bool:
    """systemd's rule for FDNAME: printable ASCII without a colon, at most 255 characters."""
    return len(name) <= 255 and all(" " <= c <= "~" and c != ":" for c in name)


class FdStore:
    """The descriptors of one service. Those that hang up (EPOLLHUP, EPOLLERR) leave by themselves."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_fd: dict[int, Stored] = {}
        self._by_name: dict[str, dict[tuple[int, int], Stored]] = {}
        self._name_bytes = 0
        # Watched on an epoll of its own, which is itself watched by the supervisor: one descriptor there.
        self._poll = select.epoll()

    def __len__(self) -> int:
        return len(self._by_fd)

    def fileno(self) -> int:
        """Readable when a stored descriptor hung up: call `drop_hung_up`."""
        return self._poll.fileno()

    def add(self, fd: int, name: str, *, poll: bool = True) -> str:
        """Take `fd`, which is ours from now on.

        Returns why it is not kept, empty when it is, or was already: under whatever name, as systemd has it.
        """
        found = os.fstat(fd)
        file = (found.st_dev, found.st_ino)
        refusal = ""
        if len(self._by_fd) >= self._limit:
            refusal = f"the store holds its most, {self._limit}"
        elif self._name_bytes + len(name) + 1 > _MOST_NAME_BYTES:
            refusal = "the names of the store would not fit into the environment of a process"
        if refusal or any(file in same for same in self._by_name.values()):
            os.close(fd)
            return refusal
        watched = False
        if poll:
            try:
                self._poll.register(fd, 0)
                watched = True
            except PermissionError:  # A regular file or memfd never hangs up.
                pass
        one = Stored(fd, name, file, watched)
        self._by_fd[fd] = one
        self._by_name.setdefault(name, {})[file] = one
        self._name_bytes += len(name) + 1
        return ""

    def remove(self, name: str) -> None:
        """Close every descriptor of that name."""
        for one in list(self._by_name.get(name, {}).values()):
            self._drop(one)

    def drop_hung_up(self) -> None:
        for fd, events in self._poll.poll(0):
            if events & (select.EPOLLHUP | select.EPOLLERR):
                self._drop(self._by_fd[fd])

    def passed(self) -> list[tuple[str, int]]:
        """What the next process gets: (name, descriptor). The newest first, as systemd has it: a service must
        not rely on the order in which it stored."""
        return [(one.name, fd) for fd, one in reversed(self._by_fd.items())]

    def close(self) -> None:
        for one in list(self._by_fd.values()):
            self._drop(one)
        self._poll.close()

    def _drop(self, one: Stored) -> None:
        if one.watched:
            # Closing is not enough: the kernel watches the open file, which a service may hold too (epoll(7),
            # Q6).
            self._poll.unregister(one.fd)
        os.close(one.fd)
        del self._by_fd[one.fd]
        same = self._by_name[one.name]
        del same[one.file]
        if not same:
            del self._by_name[one.name]
        self._name_bytes -= len(one.name) + 1

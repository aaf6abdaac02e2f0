"""Descriptors: pidfds, passing them over sockets, sealed memory files, closing what a child must not have."""

from __future__ import annotations

import _socket
import fcntl
import os
import select
import struct
import time
from collections.abc import Iterable, Sequence

from linux import signals
from linux.syscalls import CLOSE_RANGE_CLOEXEC, close_range

F_ADD_SEALS = 1033
F_SEAL_SEAL = 0x1
F_SEAL_SHRINK = 0x2
F_SEAL_GROW = 0x4
F_SEAL_WRITE = 0x8
_INT_SIZE = struct.calcsize("i")


def close_all_but(keep: Iterable[int]) -> None:
    """Close every descriptor of this process but the ones named."""
    first = 0
    for fd in sorted(set(keep)):
        if fd > first:
            close_range(first, fd - 1)
        first = fd + 1
    close_range(first)


def cloexec_from(first: int) -> None:
    """Mark every descriptor from `first` on to be closed at the next exec."""
    close_range(first, flags=CLOSE_RANGE_CLOEXEC)


def open_pidfd(pid: int) -> int:
    """A descriptor of a process (pidfd_open(2)), closed on exec; ProcessLookupError when there is none."""
    return os.pidfd_open(pid)


def signal_pidfd(pidfd: int, number: int) -> None:
    """Send a signal to the process behind a pidfd; ProcessLookupError when it is gone."""
    signals.pidfd_send_signal(pidfd, number)


def has_exited(pidfd: int, timeout: float = 0.0) -> bool:
    """Whether the process behind a pidfd is over (or a zombie), waiting at most `timeout` seconds for it."""
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    deadline = time.monotonic() + timeout
    while True:
        left = max(0.0, deadline - time.monotonic())
        if poller.poll(left * 1000):
            return True
        if left == 0.0:
            return False


def send_fds(sock: _socket.socket, data: bytes, fds: Sequence[int]) -> None:
    """Send bytes (at least one) with descriptors; unix(7), SCM_RIGHTS."""
    rights = struct.pack(f"{len(fds)}i", *fds)
    sock.sendmsg([data], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])


def receive_fds(sock: _socket.socket, size: int, most_fds: int) -> tuple[bytes, list[int]]:
    """Receive up to `size` bytes and the descriptors that came along (closed on exec); empty bytes at end
    of stream.
    """
    data, ancillary, _flags, _address = sock.recvmsg(
        size, _socket.CMSG_SPACE(most_fds * _INT_SIZE), _socket.MSG_CMSG_CLOEXEC
    )
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds.extend(struct.unpack_from(f"{len(payload) // _INT_SIZE}i", payload))
    return data, fds


def sealed_memory_file(name: str, data: bytes) -> int:
    """A memory file with these contents that nobody can change any more; memfd_create(2)."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)
    except BaseException:
        os.close(fd)
        raise
    return fd

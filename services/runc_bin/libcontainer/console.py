"""The terminal of a container: a pair made in the container's own devpts, its master handed to whoever
asked.

See CVE-2025-52565 for why the slave is bound by descriptor and not by name.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import struct

from errdefs import FailedPrecondition, InvalidArgument
from linux import fds, syscalls
from linux import mounts as m

from runc_bin.libcontainer import paths
from runc_bin.libcontainer.failures import step

# include/uapi/asm-generic/ioctls.h
_TIOCSCTTY = 0x540E
_TIOCSWINSZ = 0x5414
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
_PTMX = os.makedev(5, 2)


def connect(path: str) -> _socket.socket:
    """A connection to the socket that waits for a terminal's master (`--console-socket`)."""
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


def open_pair(root_fd: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """(master, slave) in the devpts mounted below `root_fd`; `size` is (rows, columns)."""
    try:
        master = paths.open_in_root(root_fd, "/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY)
    except FileNotFoundError:
        message = "unable to allocate a terminal: the container has no devpts at /dev/pts"
        raise FailedPrecondition(message) from None
    try:
        on_devpts = syscalls.filesystem_type(master) == m.DEVPTS_SUPER_MAGIC
        if not on_devpts or os.fstat(master).st_rdev != _PTMX:
            raise InvalidArgument("the container's /dev/pts/ptmx is not a terminal multiplexer")
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        if size:
            resize(master, *size)
    except BaseException:
        os.close(master)
        raise
    return master, slave


def resize(fd: int, rows: int, columns: int) -> None:
    """Set a terminal's size."""
    fcntl.ioctl(fd, _TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def set_up(root_fd: int, sock: _socket.socket, size: tuple[int, int] | None, *, mount: bool) -> None:
    """Make a terminal, send its master over `sock` and make it this process's controlling one and its
    streams.

    With `mount` it is also the container's /dev/console.
    """
    master, slave = open_pair(root_fd, size)
    try:
        if mount:
            with step("unable to set up /dev/console"):
                _bind_console(root_fd, slave)
        fds.send_fds(sock, b"/dev/ptmx", [master])
        for fd in range(3):
            os.dup2(slave, fd, inheritable=True)
        fcntl.ioctl(0, _TIOCSCTTY, 0)
    finally:
        os.close(master)
        os.close(slave)


def _bind_console(root_fd: int, slave: int) -> None:
    target = paths.make_file(root_fd, "/dev/console", 0o600, no_links=True)
    try:
        cover = m.clone_mount("", dir_fd=slave)
        try:
            m.attach(cover, target)
        finally:
            os.close(cover)
    finally:
        os.close(target)

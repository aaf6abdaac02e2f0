"""What `create`, `run` and `exec` share: terminals, pid files, descriptors of socket activation."""

from __future__ import annotations

import _socket
import os

from errdefs import InvalidArgument
from linux import fds

from runc_bin.cli import Context
from runc_bin.libcontainer import console
from runc_bin.libcontainer.failures import step


def check_terminal(context: Context, *, terminal: bool, detached: bool) -> None:
    """A detached terminal needs a socket for its master, and only that does."""
    wanted = context.text("console-socket")
    if detached and terminal and not wanted:
        raise InvalidArgument("cannot allocate tty if runc will detach without setting console socket")
    if (not detached or not terminal) and wanted:
        raise InvalidArgument("cannot use console socket if runc will not detach or allocate tty")
    if context.flags.get("preserve-fds", 0) < 0:  # restore has no such flag
        raise InvalidArgument("--preserve-fds must not be negative")


def connect_socket(path: str) -> _socket.socket:
    """A connection to `--console-socket` or `--pidfd-socket`."""
    with step(f"dial unix {path}: connect"):
        return console.connect(path)


def pidfd_receiver(context: Context) -> _socket.socket | None:
    """A connection to `--pidfd-socket`, to be made before anything else is; None without the flag."""
    path = context.text("pidfd-socket")
    return connect_socket(path) if path else None


def send_pidfd(receiver: _socket.socket | None, pid: int, kind: bytes) -> None:
    """Send a descriptor of a process, with a word on what kind it is, to who is to have it."""
    if receiver is None:
        return
    pidfd = fds.open_pidfd(pid)
    try:
        with step("unable to send the pidfd"):
            fds.send_fds(receiver, kind, [pidfd])
    finally:
        os.close(pidfd)
        receiver.close()


def activation() -> tuple[int, tuple[str, ...]]:
    """How many descriptors socket activation passes to the container's program, and what its environment says
    of them: they are for its process 1, which the program is.
    """
    count = listen_fds()
    if not count:
        return 0, ()
    names = os.environ.get("LISTEN_FDNAMES")
    said = (f"LISTEN_FDS={count}", "LISTEN_PID=1")
    return count, said if names is None else (*said, f"LISTEN_FDNAMES={names}")


def listen_fds() -> int:
    """How many descriptors socket activation passed to this process; sd_listen_fds(3)."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return 0
    return int(count)


def write_pid_file(path: str, pid: int) -> None:
    """Write a pid in one step: a hidden file beside it, then a rename."""
    if not path:
        return
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, "." + name)
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        os.write(fd, str(pid).encode())
    finally:
        os.close(fd)
    os.rename(temporary, path)


def absolute(path: str) -> str:
    """A path that survives a change of directory; empty stays empty."""
    return os.path.abspath(path) if path else ""

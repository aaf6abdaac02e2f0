"""What a service says to its service manager and gets from it: systemd, or the launcher, which speaks the
same.

sd_notify(3), sd_listen_fds(3), systemd.service(5) (FileDescriptorStoreMax=, WatchdogSec=). Without a manager
(NOTIFY_SOCKET unset) everything here does nothing, so that a daemon started by hand works.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Sequence

import errdefs
from systemd import daemon

log = logging.getLogger(__name__)

_NAME_LIMIT = 255  # bytes of FDNAME (sd_pid_notify_with_fds(3))


def listen_fds() -> dict[str, list[int]]:
    """The descriptors that the manager passed, by name, in their order: sockets and what was stored before.

    They are set close-on-exec. The environment variables are removed, so that the second call, and every
    child, get none. Names that the manager does not give are "unknown".
    """
    passed: dict[str, list[int]] = {}
    for fd, name in sorted(daemon.listen_fds_with_names(unset_environment=True).items()):
        os.set_inheritable(fd, False)
        passed.setdefault(name, []).append(fd)
    for variable in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"):
        os.environ.pop(variable, None)  # the library removed them from libc's environment only
    return passed


def listening_socket(
    passed: dict[str, list[int]], name: str, path: str, *, mode: int = 0o600
) -> socket.socket:
    """The passed listening socket of that name, or a new one bound at `path` with access `mode`.

    A socket file at `path` that nobody listens on is replaced. Raises InvalidArgument for a path that is too
    long for a socket, and FailedPrecondition when another process listens there.
    """
    for fd in passed.get(name, ()):
        return socket.socket(fileno=fd)
    if len(os.fsencode(path)) > 107:
        raise errdefs.InvalidArgument(f"{path}: a socket's path holds at most 107 bytes")
    os.makedirs(os.path.dirname(path) or ".", mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        else:
            raise errdefs.FailedPrecondition(f"{path}: another process listens there")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o777 & ~mode)
    try:
        listener.bind(path)
    finally:
        os.umask(mask)
    listener.listen(4096)
    return listener


def _notify(message: str, fds: Sequence[int] = ()) -> bool:
    """Whether a manager was told."""
    if not os.environ.get("NOTIFY_SOCKET"):
        return False
    try:
        return bool(daemon.notify(message, fds=list(fds)) if fds else daemon.notify(message))
    except OSError as error:
        log.warning("the service manager was not told %s: %s", message.splitlines()[0], error)
        return False


def ready(status: str = "") -> None:
    """The service answers from now on (READY=1); `status` is one line for people."""
    _notify("READY=1\n" + (f"STATUS={status}\n" if status else ""))


def stopping() -> None:
    """The service ends now (STOPPING=1)."""
    _notify("STOPPING=1")


def _checked(name: str) -> str:
    if not name or len(name) > _NAME_LIMIT or ":" in name or not name.isascii() or not name.isprintable():
        raise errdefs.InvalidArgument(f"{name!r} cannot name a stored descriptor")
    return name


async def store_fds(name: str, fds: Sequence[int], *, timeout: float = 5.0) -> bool:
    """Give copies of `fds` to the manager under `name`, to get them back after a restart or a crash.

    Returns once the manager has them (BARRIER=1), True; False without a manager. Raises Unavailable when it
    does not answer within `timeout` seconds.
    """
    if not _notify(f"FDSTORE=1\nFDNAME={_checked(name)}", fds):
        return False
    await barrier(timeout=timeout)
    return True


def remove_fds(name: str) -> None:
    """Take everything stored under `name` out of the manager's store."""
    _notify(f"FDSTOREREMOVE=1\nFDNAME={_checked(name)}")


async def barrier(*, timeout: float = 5.0) -> None:
    """Return once the manager has read every message sent before (sd_notify_barrier(3)).

    The manager gets one end of a pipe and closes it; the other end then reads end of file.
    """
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        told = _notify("BARRIER=1", [write_end])
    finally:
        os.close(write_end)
    try:
        if told:
            await _end_of_file(read_end, timeout)
    finally:
        os.close(read_end)


async def _end_of_file(fd: int, timeout: float) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        async with asyncio.timeout(timeout):
            await ended.wait()
    except TimeoutError:
        raise errdefs.Unavailable(f"the service manager did not answer in {timeout:g} s") from None
    finally:
        loop.remove_reader(fd)


async def watchdog() -> None:
    """Tell the manager at half of WATCHDOG_USEC that the event loop runs; for a task of its own. Ends at once
    without one."""
    period = int(os.environ.get("WATCHDOG_USEC") or 0) / 1e6
    pid = os.environ.get("WATCHDOG_PID")
    if period <= 0 or (pid and int(pid) != os.getpid()):
        return
    while True:
        _notify("WATCHDOG=1")
        await asyncio.sleep(period / 2)

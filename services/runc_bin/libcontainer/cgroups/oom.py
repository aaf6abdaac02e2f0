"""Out-of-memory events of a container as a file descriptor that an event loop can watch.

v1: an eventfd registered through cgroup.event_control on memory.oom_control
(Documentation/admin-guide/cgroup-v1/memory.rst §10). v2: inotify on memory.events, which the kernel reports
as modified (cgroup-v2.rst). Neither starts a thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
from types import TracebackType

from .files import read_table, write

_IN_MODIFY = 2


class OomEvents:
    """`fileno()` becomes readable when the container may have met its memory limit; then call `kills()`.

    `path` is the control file with the `oom_kill` counter, `descriptor` an open eventfd or inotify
    descriptor, which this object closes.
    """

    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor

    def fileno(self) -> int:
        """The descriptor to watch for reading; non-blocking."""
        return self._descriptor

    def kills(self) -> int | None:
        """Swallow what made the descriptor readable; how many processes have been killed for memory so far in
        all.

        None: the cgroup is gone (its removal also makes the descriptor readable), stop watching.
        """
        try:
            while len(os.read(self._descriptor, 4096)) == 4096:
                pass
        except BlockingIOError:
            pass
        try:
            return read_table(self._path).get("oom_kill", 0)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return None
            raise

    def close(self) -> None:
        """Close the descriptor. The loop must have stopped watching it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> OomEvents:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def watch_v1(directory: str) -> OomEvents:
    """Events of a v1 memory cgroup; OSError when it is gone or the host lacks the controller."""
    path = directory + "/memory.oom_control"
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        control = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            write(directory + "/cgroup.event_control", f"{event} {control}")
        finally:
            os.close(control)
    except BaseException:
        os.close(event)
        raise
    return OomEvents(path, event)


def watch_v2(directory: str) -> OomEvents:
    """Events of a v2 cgroup with the memory controller; OSError when it is gone."""
    path = directory + "/memory.events"
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if libc.inotify_add_watch(descriptor, path.encode(), _IN_MODIFY) < 0:
        code = ctypes.get_errno()
        os.close(descriptor)
        raise OSError(code, os.strerror(code), path)
    return OomEvents(path, descriptor)

"""Out-of-memory events of a container as a file descriptor that an event loop can watch.

v1: an eventfd registered through cgroup.event_control on memory.oom_control
(Documentation/admin-guide/cgroup-v1/memory.rst §10). v2: inotify on memory.events, which the kernel reports
as modified (cgroup-v2.rst). Neither starts a thread.
"""

from __future__ import annotations

import errno
import os
from types import TracebackType

from linux import syscalls

from .files import read_table, write

_IN_MODIFY = 2


class OomEvents:
    """`fileno()` becomes readable when the container may have met its memory limit; then call `kills()`.

    `path` is the control file with the `oom_kill` counter, `descriptor` an open eventfd or inotify
    descriptor, which this object closes; `each_is_one`: it is woken by nothing but running out of memory (and
    the cgroup's end).
    """

    def __init__(self, path: str, descriptor: int, *, each_is_one: bool) -> None:
        self._path = path
        self._descriptor = descriptor
        self._each_is_one = each_is_one
        self._seen = 0 if each_is_one else self._times()

    def fileno(self) -> int:
        """The descriptor to watch for reading; non-blocking."""
        return self._descriptor

    def kills(self) -> int | None:
        """Swallow what made the descriptor readable; how many processes have been killed for memory so far in
        all.

        None: the cgroup is gone (its removal also makes the descriptor readable), stop watching.
        """
        self._swallow()
        try:
            return read_table(self._path).get("oom_kill", 0)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return None
            raise

    def happened(self) -> bool | None:
        """Swallow what made the descriptor readable; whether memory has run out since the last call, even if
        nothing was killed for it. None as in `kills`.
        """
        woken = self._swallow()
        try:
            times = self._times()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return None
            raise
        if self._each_is_one:  # v1 tells before it kills, so no counter shows it yet
            return woken
        before, self._seen = self._seen, times
        return times > before

    def _times(self) -> int:
        table = read_table(self._path)
        return table.get("oom", 0) + table.get("oom_kill", 0)

    def _swallow(self) -> bool:
        """Whether there was anything."""
        any_ = False
        try:
            while True:
                size = len(os.read(self._descriptor, 4096))
                any_ = True
                if size < 4096:
                    return any_
        except BlockingIOError:
            return any_

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
    return OomEvents(path, event, each_is_one=True)


def watch_v2(directory: str) -> OomEvents:
    """Events of a v2 cgroup with the memory controller; OSError when it is gone."""
    path = directory + "/memory.events"
    descriptor = syscalls.inotify_init(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        syscalls.inotify_add_watch(descriptor, path, _IN_MODIFY)
        return OomEvents(path, descriptor, each_is_one=False)
    except BaseException:
        os.close(descriptor)
        raise

"""The only place where a shim waits for processes.

A shim is a child subreaper: children of its runtime calls, containers' processes and whatever they leave
behind become its own. SIGCHLD says that some ended; each is waited for once, its status kept for whoever
asked for its pid. While a start is under way the pid of the new process is not known yet, so exits of unknown
processes are kept as long as somebody holds them.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Exit:
    """The end of a process. status: its exit code, or 128 + the signal that killed it. at: ns since 1970."""

    pid: int
    status: int
    at: int


def exit_status(wait_status: int) -> int:
    """The shell's number for a status of waitpid(2)."""
    code = os.waitstatus_to_exitcode(wait_status)
    return code if code >= 0 else 128 - code


class Reaper:
    """Waits for all children of this process; needs a running event loop, in the main thread.

    As a context manager it keeps what has ended before it is watched.
    """

    def __init__(self) -> None:
        self._watched: dict[int, Callable[[Exit], None]] = {}
        self._early: dict[int, Exit] = {}
        self._holds = 0

    def watch(self, pid: int, callback: Callable[[Exit], None]) -> None:
        """Call back once when `pid` has ended: at once when that is known already."""
        early = self._early.pop(pid, None)
        if early is not None:
            callback(early)
        else:
            self._watched[pid] = callback

    def alive(self, pid: int) -> bool:
        """Whether `pid` is a watched process that has not been waited for, so that its number is its own."""
        return pid in self._watched

    def has_ended(self, pid: int) -> bool:
        """Within a hold: whether an unwatched process was waited for, and its number given up."""
        return pid in self._early

    def __enter__(self) -> None:
        """Keep exits of processes that nobody watches yet until all holders are done."""
        self._holds += 1

    def __exit__(self, *error: object) -> None:
        self._holds -= 1
        if not self._holds:
            self._early.clear()

    def exit_of(self, pid: int) -> asyncio.Future[Exit]:
        """The coming exit of a child, asked for without giving up control after its fork, or within
        `hold`.
        """
        future: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

        def done(exit_: Exit) -> None:
            if not future.done():
                future.set_result(exit_)

        self.watch(pid, done)
        return future

    def reap(self) -> None:
        """Wait for all children that have ended; to be called at the start, and at each SIGCHLD."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            exit_ = Exit(pid, exit_status(status), time.time_ns())
            callback = self._watched.pop(pid, None)
            if callback is not None:
                callback(exit_)
            elif self._holds:
                self._early[pid] = exit_

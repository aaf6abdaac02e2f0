"""Named points at which a test has a process killed, to prove that a crash there loses and leaks nothing.

A point is `crashpoint("room.step")` with a literal name, placed between two steps of a change. It costs one
comparison. A process started with BUOY_CRASH_AT=room.step ends itself with SIGKILL when it gets there. With
BUOY_CRASH_ONCE=path it creates that file first, and goes on when the file exists: the next process survives.
BUOY_CRASH_AT=* means every point; BUOY_CRASH_ONCE then names a folder, where each point has a file.
"""

from __future__ import annotations

import os

from linux import signals

_AT = os.environ.get("BUOY_CRASH_AT", "")
_ONCE = os.environ.get("BUOY_CRASH_ONCE", "")


def crashpoint(name: str) -> None:
    """Kill this process when `name` is the point that the environment asks for; else do nothing."""
    if not _AT or _AT not in (name, "*"):
        return
    if _ONCE:
        marker = f"{_ONCE}/{name}" if _AT == "*" else _ONCE
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return
    os.kill(os.getpid(), signals.SIGKILL)


def arm(at: str) -> str:
    """Have this process killed at point `at` from now on, at none when it is empty; returns what was set."""
    global _AT
    before, _AT = _AT, at
    return before

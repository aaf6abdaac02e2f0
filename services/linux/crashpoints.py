"""Named points at which a test can have a process killed, to prove that a crash there loses and leaks nothing.

A point is `crashpoint("room.step")` with a literal name, placed between two steps of a change. It costs one dictionary
look-up. A process started with BUOY_CRASH_AT=room.step ends itself with SIGKILL when it gets there; with
BUOY_CRASH_ONCE=path the file of that name is created first, and a process that finds it goes on: so the service manager's next
process survives the same point.
"""

from __future__ import annotations

import os
import signal

_AT = os.environ.get("BUOY_CRASH_AT", "")
_ONCE = os.environ.get("BUOY_CRASH_ONCE", "")


def crashpoint(name: str) -> None:
    """Kill this process when `name` is the point that the environment asks for; else do nothing."""
    if name != _AT:
        return
    if _ONCE:
        try:
            os.close(os.open(_ONCE, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return
    os.kill(os.getpid(), signal.SIGKILL)

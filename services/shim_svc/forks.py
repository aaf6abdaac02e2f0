"""How every child of the nursery and of a shim begins and ends.

The child of a fork shares the parent's event loop, handlers and descriptors. A signal that reaches it before
they are undone would run the parent's handlers, so all signals are blocked around the fork. Nothing the child
does unwinds into the parent's frames: it ends in os._exit.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable

from linux.fds import close_all_but

_ALL = signal.valid_signals()
_CHANGEABLE = sorted(_ALL - {signal.SIGKILL, signal.SIGSTOP})


def _undo_inherited(stdio: tuple[int, int, int], keep: Iterable[int]) -> None:
    signal.set_wakeup_fd(-1)
    for number in _CHANGEABLE:
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    for target, source in enumerate(stdio):
        if source != target:
            os.dup2(source, target)
        else:
            os.set_inheritable(target, True)
    close_all_but({0, 1, 2, *keep})
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def fork_child(
    run: Callable[[], int], *, stdio: tuple[int, int, int] = (0, 1, 2), keep: Iterable[int] = ()
) -> int:
    """Fork a child that runs `run` and exits with its result; returns the child's pid.

    stdio: descriptors that become 0, 1 and 2 of the child; above 2, or their own number.
    keep: further descriptors that stay open in it. Signals have their default action there, and none is
    blocked. An exception in the child is printed on its standard error and is exit code 70.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ALL)
    pid = -1
    try:
        pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            _undo_inherited(stdio, keep)
            code = run()
        except BaseException:
            traceback.print_exc()
        finally:
            try:
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(code)
    finally:
        if pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

"""How every child of the nursery and of a shim begins and ends.

The child of a fork shares the parent's event loop, handlers and descriptors. A signal that reaches it before
they are undone would run the parent's handlers, so the signals that have some are blocked around the fork.
Nothing the child does unwinds into the parent's frames: it ends in os._exit.

It is libc's fork(3) rather than os.fork: the hooks that Python's modules run there (for threads, random
numbers, logging) cost half a megabyte of private memory in every child, and a process without threads needs
none.
"""

from __future__ import annotations

# The C functions behind `signal`: its wrappers look every number up in an enum, in each child anew.
import _signal  # type: ignore[import-not-found]
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from linux.fds import close_all_but

# PyDLL keeps the interpreter's lock over the call, so that the child owns it too.
_libc = ctypes.PyDLL(None, use_errno=True)

# Those that Python, asyncio or this package handle or ignore; `reset_inherited` has seen to all others.
_HANDLED = tuple(
    int(number)
    for number in (
        signal.SIGCHLD,
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGPIPE,
        signal.SIGXFSZ,
    )
)
_DEFAULT, _BLOCK, _SETMASK = int(signal.SIG_DFL), int(signal.SIG_BLOCK), int(signal.SIG_SETMASK)


def reset_inherited() -> None:
    """Give every signal that this process was started with ignored its default action, once, at its start."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, *_HANDLED}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _undo_inherited(stdio: tuple[int, int, int], keep: Iterable[int]) -> None:
    signal.set_wakeup_fd(-1)
    for number in _HANDLED:
        _signal.signal(number, _DEFAULT)
    set_stdio(stdio)
    close_all_but({0, 1, 2, *keep})
    _signal.pthread_sigmask(_SETMASK, ())


def set_stdio(stdio: tuple[int, int, int]) -> None:
    """Make these descriptors, above 2 or their own number, 0, 1 and 2 of this process."""
    for target, source in enumerate(stdio):
        if source != target:
            os.dup2(source, target)
        else:
            os.set_inheritable(target, True)


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the signals that this process has handlers for, around a fork."""
    mask = _signal.pthread_sigmask(_BLOCK, _HANDLED)
    try:
        yield
    finally:
        _signal.pthread_sigmask(_SETMASK, mask)


def fork_child(
    run: Callable[[], int], *, stdio: tuple[int, int, int] = (0, 1, 2), keep: Iterable[int] = ()
) -> int:
    """Fork a child that runs `run` and exits with its result; returns the child's pid.

    stdio: descriptors that become 0, 1 and 2 of the child; above 2, or their own number.
    keep: further descriptors that stay open in it. Signals have their default action there, and none is
    blocked. An exception in the child is printed on its standard error and is exit code 70.
    """
    mask = _signal.pthread_sigmask(_BLOCK, _HANDLED)
    pid = -1
    try:
        pid = int(_libc.fork())
        if pid < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
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
            _signal.pthread_sigmask(_SETMASK, mask)

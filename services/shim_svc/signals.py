"""Signals as events of the loop.

What asyncio's add_signal_handler does, with less: a signal writes its number into a pipe that the loop reads.
"""

from __future__ import annotations

# The C functions behind `signal`; see forks.
import _signal  # type: ignore[import-not-found]
import asyncio
import os
import signal
from collections.abc import Callable, Mapping


def _nothing(number: int, frame: object) -> None:
    """A handler must be there for the number to be written."""


_IGNORED = (int(signal.SIGPIPE), int(signal.SIGHUP), int(signal.SIGINT))
_IGNORE = int(signal.SIG_IGN)


def ignore_signals() -> None:
    """Ignore what must not end a shim: a terminal's signals, and writes to what is closed."""
    for number in _IGNORED:
        _signal.signal(number, _IGNORE)


def on_signals(handlers: Mapping[int, Callable[[], None]]) -> Callable[[], None]:
    """Call the handler of a signal's number on the running loop, until what is returned is called: after that
    the signals do nothing. Once at a time per process.
    """
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def readable() -> None:
        for number in set(os.read(read_end, 4096)):
            if number in handlers:
                handlers[number]()

    loop = asyncio.get_running_loop()
    loop.add_reader(read_end, readable)
    for number in handlers:
        _signal.signal(int(number), _nothing)
        _signal.siginterrupt(int(number), False)

    def stop() -> None:
        loop.remove_reader(read_end)
        signal.set_wakeup_fd(-1)
        os.close(read_end)
        os.close(write_end)

    return stop

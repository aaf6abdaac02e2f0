"""Which of the nursery's memory pages a shim writes, and so has for itself.

Python writes into whatever it uses, since it counts references: to call a function is to write into its code.
An imported program is laid out in the order of import, so what a shim uses is one object here and one there
among thousands that it does not, and each costs it a page.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType

_SMALL = 512  # bytes; larger ones are not Python's own to place (Objects/obmalloc.c)
_OVERHEAD = sys.getsizeof(b"")

_kept: list[object] = []


def fill_gaps(size: int) -> None:
    """Fill the gaps that there are among Python's objects, with `size` bytes for each size of object.

    What is allocated then lies together on new pages.
    """
    gc.collect()
    for each in range(48, _SMALL + 1, 16):
        _kept.extend(bytes(each - _OVERHEAD) for _ in range(size // each))


def code_of(run: Callable[[], None]) -> set[CodeType]:
    """Run `run`; returns the code of all functions that were called."""
    called = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            called.add(frame.f_code)

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    return called


def bring_together(called: set[CodeType]) -> None:
    """Give each function that has such code a copy of it. To be called behind `fill_gaps`.

    The copies are not specialised yet (PEP 659). The old ones are kept: what is allocated next would else lie
    where they were.
    """
    for function in gc.get_objects():
        if type(function) is FunctionType and function.__code__ in called:
            _kept.append(function.__code__)
            function.__code__ = function.__code__.replace()

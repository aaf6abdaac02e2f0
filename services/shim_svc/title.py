"""What `ps` shows of a process: its name and its command line.

The command line is the memory that the kernel laid the arguments out in (proc(5), arg_start and arg_end in
/proc/self/stat). Writing there needs no capability, prctl(2) PR_SET_MM does. A child of fork has no more room
than its ancestor was started with, hence `ensure_room`.
"""

from __future__ import annotations

import os
import sys

ROOM = 512  # bytes of title that every child has at least
_PADDING = "--title-room="


def ensure_room() -> None:
    """Execute this program again with a long last argument, once, and drop that argument from sys.argv.

    To be called first, before anything costly is imported. Process id and open descriptors stay.
    """
    if sys.argv[-1].startswith(_PADDING):
        del sys.argv[-1]
        return
    # /proc/self/exe, for the file may have been exchanged for a protected one; the name that Python is called
    # by leads it to its libraries.
    os.execv("/proc/self/exe", [sys.executable, *sys.orig_argv[1:], _PADDING + "x" * ROOM])


def _room() -> tuple[int, int]:
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[45]), int(fields[46])


# The addresses are the same in every child of fork.
_start, _end = _room()


def set_title(words: str, name: str) -> None:
    """Show `words` as the command line and `name` (at most 15 bytes) as the process's name.

    Words that do not fit are cut off.
    """
    size = _end - _start
    text = words.encode()[: size - 2]
    # A last byte other than NUL tells the kernel that the string ends at its first NUL (fs/proc/base.c).
    memory = os.open("/proc/self/mem", os.O_WRONLY | os.O_CLOEXEC)
    os.pwrite(memory, text.ljust(size - 1, b"\0") + b" ", _start)
    os.close(memory)
    comm = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    os.write(comm, name.encode())
    os.close(comm)

"""What a command prints, written straight to the descriptor.

In a forked child `sys.stdout` may hold bytes of its parent.
"""

from __future__ import annotations

import os


def emit(text: str, fd: int = 1) -> None:
    """Write all of `text` to standard output (or `fd`)."""
    data = memoryview(text.encode(errors="surrogateescape"))
    while data:
        data = data[os.write(fd, data) :]

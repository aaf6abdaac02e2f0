"""What the `signal` module offers, as the interpreter has it built in.

The module of that name wraps it into enums, which takes a short command 1 of its 25 milliseconds.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from signal import *  # noqa: F403
else:
    from _signal import *  # noqa: F403

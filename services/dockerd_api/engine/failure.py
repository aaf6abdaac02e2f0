"""What a failed start or exec means: the exit code and the error as Docker has them (daemon/errors.go).

The docker CLI reads the text: "executable file not found" makes its exit code 127, "permission denied" 126.
"""

from __future__ import annotations

import errdefs

UNKNOWN, CANNOT_INVOKE, NOT_FOUND = 128, 126, 127


def translate(error: errdefs.BuoyError, *, prefix: str = "") -> tuple[errdefs.BuoyError, int]:
    """The error to answer and the container's exit code, from containerd's error."""
    text = prefix + _worded(error.message)
    if isinstance(error, errdefs.Unavailable | errdefs.DeadlineExceeded | errdefs.Canceled):
        return type(error)(text), UNKNOWN
    lower = text.lower()
    if "permission denied" in lower:
        return errdefs.InvalidArgument(text), CANNOT_INVOKE
    if "is a directory" in lower:
        return errdefs.InvalidArgument(f"{text}: permission denied"), CANNOT_INVOKE
    if "not a directory" in lower:
        return (
            errdefs.InvalidArgument(
                f"{text}: Are you trying to mount a directory onto a file (or vice-versa)? "
                "Check if the specified host path exists and is the expected type"
            ),
            NOT_FOUND,
        )
    if (
        "executable file not found" in lower
        or "no such file or directory" in lower
        or "failed to run runc create/exec call" in lower
    ):
        return errdefs.InvalidArgument(text), NOT_FOUND
    if isinstance(error, errdefs.InvalidArgument | errdefs.NotImplementedHere):
        return type(error)(text), UNKNOWN
    return errdefs.Internal(text), UNKNOWN


def _worded(text: str) -> str:
    """containerd's words around a runtime's failure, which scripts look for, where they are missing."""
    if text.startswith("OCI runtime create failed"):
        text = f"failed to create shim task: {text}"
    if "OCI runtime" in text and not text.endswith(": unknown"):
        text += ": unknown"
    return text

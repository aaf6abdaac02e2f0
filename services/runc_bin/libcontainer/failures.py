"""Errors in the words that callers of OCI runtimes parse: Go's texts for errno, and steps that name
themselves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from errdefs import BuoyError, Internal

from runc_bin.contexts import contextmanager


def reason(error: BaseException) -> str:
    """One line for an error: our own message, or the errno's text in lower case, with its path where it has
    one.
    """
    if isinstance(error, BuoyError):
        return error.message
    if isinstance(error, OSError) and error.errno is not None:
        # A message of the kernel's own (from a file system context) stays as it is.
        standard = os.strerror(error.errno)
        text = standard.lower() if error.strerror == standard else f"{error.strerror}: {standard.lower()}"
        return f"{os.fsdecode(error.filename)}: {text}" if isinstance(error.filename, str | bytes) else text
    return f"{type(error).__name__}: {error}"


@contextmanager
def step(prefix: str) -> Iterator[None]:
    """Put what was being done before the text of an error. The error's kind stays."""
    try:
        yield
    except BuoyError as error:
        raise type(error)(f"{prefix}: {error.message}", detail=error.detail) from error
    except OSError as error:
        raise Internal(f"{prefix}: {reason(error)}") from error

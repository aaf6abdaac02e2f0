"""Functions of the C library as Python calls them, on the interpreter's own `_ctypes`.

The package `ctypes` wraps it, but its import makes types and callbacks that nobody here uses, which takes a
short command 1 of its 20 milliseconds. Types and errno are `ctypes`' own: they work together.
"""

from __future__ import annotations

from _ctypes import (
    FUNCFLAG_CDECL,
    FUNCFLAG_PYTHONAPI,
    FUNCFLAG_USE_ERRNO,
    CFuncPtr,
    _SimpleCData,
    dlopen,
    dlsym,
    get_errno,
)
from typing import Any

__all__ = ["function", "get_errno", "output", "python_function"]


class Char(_SimpleCData):  # type: ignore[type-arg]
    """`char`, of which buffers are made."""

    _type_ = "c"


class Int(_SimpleCData):  # type: ignore[type-arg]
    """`int`."""

    _type_ = "i"


class UInt(_SimpleCData):  # type: ignore[type-arg]
    """`unsigned int`."""

    _type_ = "I"


class Long(_SimpleCData):  # type: ignore[type-arg]
    """`long`."""

    _type_ = "l"


class ULong(_SimpleCData):  # type: ignore[type-arg]
    """`unsigned long`, which `size_t` is too."""

    _type_ = "L"


class Text(_SimpleCData):  # type: ignore[type-arg]
    """`char *`: bytes, a buffer that `output` made, or None."""

    _type_ = "z"


class _Function(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO
    _restype_ = Int


class _PythonFunction(CFuncPtr):
    _flags_ = FUNCFLAG_CDECL | FUNCFLAG_USE_ERRNO | FUNCFLAG_PYTHONAPI
    _restype_ = Int


_program = dlopen(None, 0)  # type: ignore[arg-type]  # the program itself, as in dlopen(3)


def function(name: str, result: Any, *arguments: Any) -> Any:
    """A function of the C library with these types. A call sets the errno that `get_errno` returns."""
    found = _Function(dlsym(_program, name))
    found.argtypes, found.restype = arguments, result
    return found


def python_function(name: str, result: Any, *arguments: Any) -> Any:
    """The same for one that is called with the interpreter's lock held, as those of Python's C API are."""
    found = _PythonFunction(dlsym(_program, name))
    found.argtypes, found.restype = arguments, result
    return found


def output(size: int) -> Any:
    """A buffer of `size` bytes for a function to fill; its `raw` are all of them, `value` those to a NUL."""
    return (Char * size)()

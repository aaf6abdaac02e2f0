"""JSON in and out, by the interpreter's own C functions.

The `json` module wraps them, but brings along regular expressions and enums, which takes a short command 3 of
its 25 milliseconds.
"""

from __future__ import annotations

from _json import encode_basestring, encode_basestring_ascii, make_encoder, make_scanner
from typing import Any

_BLANK = " \t\n\r"


class _Strict:
    """What the scanner is to make of a document: RFC 8259, plain Python objects."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int

    @staticmethod
    def parse_constant(name: str) -> Any:
        raise ValueError(f"{name} is not a JSON value")


def parse(raw: bytes) -> Any:
    """The value of a whole document; ValueError or RecursionError when it is not one."""
    text = raw.decode("utf-8", "surrogatepass")
    start = len(text) - len(text.lstrip(_BLANK))
    try:
        value, end = make_scanner(_Strict)(text, start)  # type: ignore[arg-type]
    except StopIteration as error:
        raise ValueError(f"a value is missing at character {error.value}") from None
    if text[end:].strip(_BLANK):
        raise ValueError(f"something follows the value at character {end}")
    return value


def render(value: Any, *, sort: bool = False, compact: bool = False) -> str:
    """A value of dicts, lists, strings, numbers, booleans and None as one line of ASCII."""
    separators = (":", ",") if compact else (": ", ", ")
    encoder = make_encoder({}, _refuse, encode_basestring_ascii, None, *separators, sort, False, False)
    return "".join(encoder(value, 0))


def render_indented(value: Any, indent: int | str) -> str:
    """The same over many lines."""
    # The C functions have no such form; the verbs that print it are not in anybody's way.
    import json

    return json.dumps(value, indent=indent)


def quote(text: str) -> str:
    """A string as JSON, in whatever letters it is written."""
    return encode_basestring(text)


def _refuse(value: object) -> Any:
    raise TypeError(f"{type(value).__name__} is no JSON value")

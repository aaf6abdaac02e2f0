"""Typed look-ups in JSON documents from outside. Each raises `errdefs.InvalidArgument` naming the field.

`where` is what stands before the field's name in a message, as `process.`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from errdefs import InvalidArgument, NotFound

from runc_bin.document import parse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")

ID_MAX = 0xFFFFFFFE  # the largest id is no id: credentials(7), setuid(2)


def get(document: Mapping[str, Any], key: str, kind: type[T], default: T, where: str) -> T:
    """A member of that type; `default` when it is missing or null."""
    value = document.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidArgument(f"{where}{key} must be of type {kind.__name__}, not {type(value).__name__}")
    return value


def objects(document: Mapping[str, Any], key: str, where: str) -> list[Mapping[str, Any]]:
    """A list of objects."""
    items = get(document, key, list, [], where)
    for item in items:
        if not isinstance(item, dict):
            raise InvalidArgument(f"{where}{key} must hold objects")
    return items


def strings(document: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """A list of strings without null bytes."""
    items = get(document, key, list, [], where)
    for item in items:
        if not isinstance(item, str):
            raise InvalidArgument(f"{where}{key} must hold strings")
        if "\0" in item:
            raise InvalidArgument(f"{where}{key} must not contain a null byte")
    return tuple(items)


def string_map(document: Mapping[str, Any], key: str, where: str) -> Mapping[str, str]:
    """An object whose values are strings."""
    items = get(document, key, dict, {}, where)
    for name, value in items.items():
        if not isinstance(value, str):
            raise InvalidArgument(f"{where}{key}.{name} must be a string")
    return items


def text(document: Mapping[str, Any], key: str, where: str, default: str = "") -> str:
    """A string without null bytes."""
    value = get(document, key, str, default, where)
    if "\0" in value:
        raise InvalidArgument(f"{where}{key} must not contain a null byte")
    return value


def number(document: Mapping[str, Any], key: str, where: str, low: int, high: int, default: int = 0) -> int:
    """An integer from `low` to `high`."""
    value = get(document, key, int, default, where)
    if not low <= value <= high:
        raise InvalidArgument(f"{where}{key} must be between {low} and {high}, not {value}")
    return value


def load_json(path: str, reader: Callable[[Any], T], missing: str) -> T:
    """Read a JSON file and check it with `reader`; `missing` is the message when there is no such file."""
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except FileNotFoundError:
        raise NotFound(missing) from None
    try:
        value = parse(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{path} is not valid JSON: {error}") from None
    return reader(value)

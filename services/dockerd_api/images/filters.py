"""The filters of image lists and of prune."""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import errdefs
from pb.containerd.services.images import v1 as pb

from dockerd_api.images import reference
from dockerd_api.images.catalog import is_dangling

Filters = Mapping[str, Sequence[str]]
# Whether a record, looked at by itself, is wanted.
Wanted = Callable[[pb.Image], bool]

LIST = ("dangling", "label", "label!", "before", "since", "reference", "until")
PRUNE = ("dangling", "label", "label!", "until")
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(h|m|s|ms|us|ns)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}


def parse(text: str, accepted: Sequence[str] = LIST) -> Filters:
    """The `filters` parameter: {"key": ["value"]} or the old {"key": {"value": true}}. Raises
    InvalidArgument.
    """
    if not text:
        return {}
    try:
        document = json.loads(text)
    except ValueError as error:
        raise errdefs.InvalidArgument("invalid filter") from error
    if not isinstance(document, dict):
        raise errdefs.InvalidArgument("invalid filter")
    filters: dict[str, list[str]] = {}
    for key, values in document.items():
        if isinstance(values, dict):
            values = [value for value, wanted in values.items() if wanted]
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise errdefs.InvalidArgument("invalid filter")
        filters[key] = values
    for key in filters:
        if key not in accepted:
            raise errdefs.InvalidArgument(f"invalid filter '{key}'")
    return filters


def boolean(filters: Filters, key: str) -> bool | None:
    """The one truth value of a filter, None when it is not given. Raises InvalidArgument."""
    values = filters.get(key, ())
    if not values:
        return None
    if all(value in _TRUE for value in values):
        return True
    if all(value in _FALSE for value in values):
        return False
    raise errdefs.InvalidArgument(f"invalid filter '{key}=[{' '.join(values)}]'")


def of_records(filters: Filters) -> Wanted:
    """What `dangling`, `until` and `reference` say of a record; `until` goes by when the record was made.
    Raises InvalidArgument.
    """
    dangling = boolean(filters, "dangling")
    limits = [until(text) for text in filters.get("until", ())]
    patterns = [_glob(text) for text in filters.get("reference", ())]

    def wanted(record: pb.Image) -> bool:
        made = record.created_at.timestamp() if record.created_at is not None else 0.0
        return (
            (dangling is None or dangling == is_dangling(record))
            and all(made < limit for limit in limits)
            and (not patterns or (not is_dangling(record) and _matches(record.name, patterns)))
        )

    return wanted


def has_labels(config: Mapping[str, Any], filters: Filters) -> bool:
    """Whether an image's config has the labels that are asked for, and none that is ruled out. `key!=value`
    turns a filter round.
    """
    labels = (config.get("config") or {}).get("Labels") or {}
    return all(
        _has_label(labels, text, negate=key == "label!")
        for key in ("label", "label!")
        for text in filters.get(key, ())
    )


def moment(text: str) -> float | None:
    """Seconds since 1970 of an RFC 3339 time, to the microsecond."""
    trimmed = re.sub(r"(\.\d{6})\d+", r"\1", text)
    try:
        found = datetime.datetime.fromisoformat(trimmed)
        return found.timestamp() if found.year > 1 else None
    except ValueError:
        return None


def until(text: str) -> float:
    """Seconds since 1970 of a Unix time, an RFC 3339 time, or a Go duration before now. Raises
    InvalidArgument.
    """
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", text):
        return float(text)
    found = moment(text)
    if found is not None:
        return found
    parts = _DURATION.findall(text)
    if parts and "".join(f"{number}{unit}" for number, unit in parts) == text:
        return time.time() - sum(float(number) * _SECONDS[unit] for number, unit in parts)
    raise errdefs.InvalidArgument(f"invalid filter 'until=[{text}]'")


def _has_label(labels: Mapping[str, str], text: str, *, negate: bool) -> bool:
    key, equals, value = text.partition("=")
    if key.endswith("!"):
        key, negate = key.removesuffix("!"), not negate
    if not equals:
        return (key in labels) != negate
    return key in labels and (labels[key] == value) != negate


def _matches(name: str, patterns: Sequence[re.Pattern[str]]) -> bool:
    """Whether a pattern matches the familiar name, with or without tag or digest. `*` stops at a slash."""
    try:
        parsed = reference.parse(name)
    except errdefs.InvalidArgument:
        return False
    candidates = (parsed.familiar, parsed.familiar_name)
    return any(pattern.fullmatch(candidate) for pattern in patterns for candidate in candidates)


def _glob(pattern: str) -> re.Pattern[str]:
    """Go's path.Match as a regular expression. Raises InvalidArgument for an unfinished class."""
    parts, at = [], 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            parts.append("[^/]*")
        elif char == "?":
            parts.append("[^/]")
        elif char == "[":
            end = pattern.find("]", at + 1)
            if end < 0:
                raise errdefs.InvalidArgument("syntax error in pattern")
            inner = pattern[at:end].replace("\\", "\\\\").replace("[", "\\[")
            parts.append(f"[{inner}]")
            at = end + 1
        elif char == "\\" and at < len(pattern):
            parts.append(re.escape(pattern[at]))
            at += 1
        else:
            parts.append(re.escape(char))
    try:
        return re.compile("".join(parts))
    except re.error as error:
        raise errdefs.InvalidArgument("syntax error in pattern") from error

"""Times in a log: nanoseconds since 1970, and RFC 3339 as Go prints it."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)\Z")


def timestamp(ns: int) -> bytes:
    """RFC3339Nano in UTC as Go prints it: no trailing zeros. ns: nanoseconds since 1970."""
    seconds, rest = divmod(ns, 1_000_000_000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    fraction = f".{rest:09}".rstrip("0") if rest else ""
    return f"{text}{fraction}Z".encode()


def nanoseconds(rfc3339: str) -> int:
    """An RFC 3339 time in nanoseconds since 1970. ValueError when it is none."""
    found = _TIME.match(rfc3339)
    if found is None:
        raise ValueError(f"{rfc3339!r} is not an RFC 3339 time")
    whole = datetime.fromisoformat(found[1] + ("+00:00" if found[3] == "Z" else found[3]))
    return (whole - _EPOCH) // timedelta(seconds=1) * 1_000_000_000 + int((found[2] or "0").ljust(9, "0"))


def with_all_digits(rfc3339: str) -> str:
    """The time with all nine digits of fraction, as `docker logs --timestamps` shows it."""
    found = _TIME.match(rfc3339)
    if found is None:
        return rfc3339
    return f"{found[1]}.{(found[2] or '').ljust(9, '0')}{found[3]}"

"""Labels, field masks and times, as the rows of every store hold them."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Mapping, Sequence

import errdefs

_LIMIT = 4096  # bytes of key and value together: containerd's pkg/labels


def validate(labels: Mapping[str, str]) -> None:
    """Raise InvalidArgument for a label whose key and value are longer than 4096 bytes together."""
    for key, value in labels.items():
        total = len(key.encode()) + len(value.encode())
        if total > _LIMIT:
            raise errdefs.InvalidArgument(
                f"info.Labels: label key and value length ({total} bytes) greater than maximum size "
                f"({_LIMIT} bytes), key: {key[:64]}: invalid argument"
            )


def dump(labels: Mapping[str, str]) -> str:
    """The labels as a column's text, without those that `kept` leaves out."""
    return json.dumps(kept(labels), sort_keys=True)


def kept(labels: Mapping[str, str]) -> dict[str, str]:
    """The labels without those of an empty value: that is how one is removed."""
    return {key: value for key, value in labels.items() if value}


def load(text: str) -> dict[str, str]:
    """The labels of a column's text."""
    found: dict[str, str] = json.loads(text)
    return found


def masked(
    have: Mapping[str, str], want: Mapping[str, str], paths: Sequence[str], what: str
) -> dict[str, str]:
    """The labels after an update: `want` as a whole without paths or with `labels`, one key with
    `labels.<key>`.

    `what` names the object in the InvalidArgument that any other path gets.
    """
    if not paths:
        return dict(want)
    result = dict(have)
    for path in paths:
        if path == "labels":
            result = dict(want)
        elif path.startswith("labels."):
            key = path.removeprefix("labels.")
            result[key] = want.get(key, "")
        else:
            raise errdefs.InvalidArgument(f'cannot update "{path}" field on {what}: invalid argument')
    return result


def now() -> int:
    """Nanoseconds since 1970."""
    return time.time_ns()


def moment(nanoseconds: int) -> datetime.datetime:
    """The time of a column as messages carry it (to the microsecond)."""
    return datetime.datetime.fromtimestamp(nanoseconds // 10**9, tz=datetime.UTC) + datetime.timedelta(
        microseconds=nanoseconds % 10**9 // 1000
    )

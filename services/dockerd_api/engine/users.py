"""Which uid, gids and home a `user[:group]` means, by the container's own /etc/passwd and /etc/group.

The rules are those of Docker's (moby/sys/user, GetExecUser), but for what a number is: plain decimal digits,
so that no sign, blank or leading zero is another way to write root. Numbers beyond 2^31-1 are refused, so
that none wraps around to it (CVE-2024-40635). A number is always an id: an entry that is called `1000` does
not make it another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import errdefs

FILE_LIMIT = 1 << 20  # bytes: parsed in a fraction of a second, even when it is all short lines
_MOST_LINE = 64 << 10
_HIGHEST = 2**31 - 1
_RANGE = f"uids and gids must be in range 0-{_HIGHEST}"


@dataclass(frozen=True, slots=True)
class User:
    """Who a process runs as. `additional_gids` begins with the primary gid, as Docker sets it."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    home: str


def resolve(text: str, passwd: bytes, group: bytes, group_add: Sequence[str] = ()) -> User:
    """The user that `text` names; Internal (as in Docker) for a name without entry or beyond the range."""
    user_text, colon, group_text = text.partition(":")
    number = _number(user_text) if user_text else 0
    entry = next(
        (
            fields
            for fields in _entries(passwd, 7)
            if (_number(fields[2]) == number if number is not None else fields[0] == user_text)
        ),
        None,
    )
    if entry is not None:
        name, uid, gid, home = entry[0], _number(entry[2]), _number(entry[3]), entry[5]
    elif number is not None:
        name, uid, gid, home = "", number, 0, "/"
    else:
        raise errdefs.Internal(f"unable to find user {user_text}: no matching entries in passwd file")
    uid, gid = _in_range(uid), _in_range(gid)
    additional: list[int] = []
    if colon and group_text:
        gid = _group(group_text, group, "unable to find group")
    elif name:
        for fields in _entries(group, 4):
            if name in fields[3].split(","):
                additional.append(_in_range(_number(fields[2])))
    additional.extend(_group(wanted, group, "Unable to find group") for wanted in group_add)
    return User(uid, gid, tuple(dict.fromkeys([gid, *additional])), home or "/")


def _group(text: str, group: bytes, complaint: str) -> int:
    number = _number(text)
    for fields in _entries(group, 4):
        if _number(fields[2]) == number if number is not None else fields[0] == text:
            return _in_range(_number(fields[2]))
    if number is None:
        raise errdefs.Internal(f"{complaint} {text}: no matching entries in group file")
    return _in_range(number)


def _entries(data: bytes, fields: int) -> Iterator[list[str]]:
    missing = [""] * fields
    for line in data.decode(errors="surrogateescape").split("\n"):
        text = line[:_MOST_LINE].strip()
        if text and text[0] != "#":
            yield (text.split(":", fields) + missing)[:fields]


def _number(text: str) -> int | None:
    """The number that plain decimal digits are; a negative one only to be out of range."""
    return int(text) if re.fullmatch(r"(?:0|-?[1-9][0-9]{0,18})", text) else None


def _in_range(number: int | None) -> int:
    if number is None or not 0 <= number <= _HIGHEST:
        raise errdefs.Internal(_RANGE)
    return number

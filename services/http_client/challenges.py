"""How a server wants to be told who asks: the WWW-Authenticate header (RFC 9110, 11.6.1)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_WORD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PARAMETER = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"]+))")


@dataclass(frozen=True)
class Challenge:
    """One way that a WWW-Authenticate header offers (RFC 9110, 11.6.1); the scheme in small letters."""

    scheme: str
    parameters: dict[str, str]


def challenges(headers: Iterable[str]) -> list[Challenge]:
    """The challenges of WWW-Authenticate headers; what is malformed is passed over."""
    found = []
    for header in headers:
        rest = header.strip()
        while rest:
            scheme = _WORD.match(rest)
            if scheme is None:
                break
            rest = rest[scheme.end() :]
            parameters = {}
            while (parameter := _PARAMETER.match(rest)) is not None:
                name, quoted, plain = parameter.groups()
                parameters[name.lower()] = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
                rest = rest[parameter.end() :]
                comma = re.match(r"\s*,\s*", rest)
                if comma is None:
                    break
                rest = rest[comma.end() :]
            found.append(Challenge(scheme.group().lower(), parameters))
            rest = rest.lstrip(" \t,")
    return found

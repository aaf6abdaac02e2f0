"""Who a registry is told that the client is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Question:
    """A registry wants to know who asks.

    host: as the registry is reached (`registry-1.docker.io`), with its port; reference: host and repository
    as the image is named; challenges: the registry's WWW-Authenticate headers.
    """

    host: str
    reference: str
    challenges: tuple[str, ...] = ()


@dataclass(frozen=True)
class Credentials:
    """At most one of: name and password; a refresh token; a whole Authorization header. All empty: nobody.

    They go to the host that the question named, and to the token server that its challenge names.
    """

    username: str = ""
    password: str = field(default="", repr=False)
    refresh_token: str = field(default="", repr=False)
    header: str = field(default="", repr=False)


NOBODY = Credentials()

Ask = Callable[[Question], Awaitable[Credentials]]


async def ask_nobody(question: Question) -> Credentials:
    """For those who have no credentials."""
    return NOBODY

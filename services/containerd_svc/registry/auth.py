"""Proving to a registry who asks: Basic, and tokens of a token server (distribution: Token Authentication,
and its OAuth2 form).

Credentials go to the host that challenged and to the token server that its challenge names, to nobody else;
only an answer of that very host is a challenge (CVE-2020-15157, CVE-2026-33540).
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import errdefs
import httpx
from http_client.challenges import Challenge, challenges

from containerd_svc.registry import answers
from containerd_svc.registry.credentials import Ask, Credentials, Question
from containerd_svc.registry.hosts import Host, is_loopback

LARGEST_TOKEN = 64 * 1024  # bytes of a token server's answer
_LASTS = 60.0  # seconds of a token that does not say (distribution: token.md)
_EARLY = 5.0  # seconds before its end from which a token is not used any more
_CLIENT_ID = "buoy"
_TOKEN_USER = "<token>"  # the name by which Docker's clients say that the password is a refresh token

# Asks a token server; the answer and its body.
Post = Callable[[str, str, dict[str, str], bytes], Awaitable[tuple[httpx.Response, bytes]]]


@dataclass(frozen=True)
class _Token:
    value: str
    ends: float  # of the monotonic clock


class Authorizer:
    """The Authorization headers for one host. A token is kept for its scopes until it ends."""

    def __init__(self, host: Host, reference: str, ask: Ask, send: Post) -> None:
        self._host = host
        self._reference = reference
        self._ask = ask
        self._send = send
        self._header = ""  # one for everything: Basic, or given whole
        self._bearer: Challenge | None = None
        self._tokens: dict[frozenset[str], _Token] = {}
        self._under_way: dict[frozenset[str], asyncio.Task[str]] = {}
        self._credentials: Credentials | None = None
        self._asking: asyncio.Task[Credentials] | None = None

    async def header(self, scopes: frozenset[str]) -> str:
        """The header for a request that needs these scopes; empty before the host has challenged."""
        if self._header or self._bearer is None:
            return self._header
        return await self._token(self._bearer, scopes)

    async def challenged(self, headers: Sequence[str], scopes: frozenset[str], sent: str) -> str:
        """The header for a second try, after the host has answered 401 to one with the header `sent`.

        Raises PermissionDenied when there is none.
        """
        offered = challenges(headers)
        for challenge in offered:
            if challenge.scheme == "bearer":
                return await self._with_token(challenge, scopes, sent, headers)
        if not any(challenge.scheme == "basic" for challenge in offered):
            raise answers.denied("authorization failed", scopes)
        credentials = await self._who(headers)
        header = credentials.header or _basic(credentials)
        if not header:
            raise answers.denied("authorization failed: no basic auth credentials", scopes)
        if header == sent:
            raise answers.denied("authorization failed: incorrect username or password", scopes)
        self._header = header
        return header

    def forget(self, header: str) -> None:
        """A token that the host does not take any more is not used again."""
        for scopes, token in list(self._tokens.items()):
            if f"Bearer {token.value}" == header:
                del self._tokens[scopes]

    async def close(self) -> None:
        """End what is under way."""
        tasks: list[asyncio.Task[Any]] = [*self._under_way.values()]
        if self._asking is not None:
            tasks.append(self._asking)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _with_token(
        self, challenge: Challenge, scopes: frozenset[str], sent: str, headers: Sequence[str]
    ) -> str:
        _check_realm(challenge, self._host, scopes)
        credentials = await self._who(headers)
        if credentials.header:
            if credentials.header == sent:
                raise answers.denied("authorization failed", scopes)
            self._header = credentials.header
            return self._header
        self._bearer = challenge
        self.forget(sent)
        asked = frozenset(challenge.parameters.get("scope", "").split())
        return await self._token(challenge, merged(scopes | asked))

    async def _who(self, headers: Sequence[str]) -> Credentials:
        """The client's answer: asked for once, however many requests are challenged at a time."""
        if self._credentials is not None:
            return self._credentials
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._asked(tuple(headers)))
        return await asyncio.shield(self._asking)

    async def _asked(self, headers: tuple[str, ...]) -> Credentials:
        found = await self._ask(Question(self._host.address, self._reference, headers))
        if found.username == _TOKEN_USER:
            found = Credentials(refresh_token=found.password)
        self._credentials = found
        return found

    async def _token(self, challenge: Challenge, scopes: frozenset[str]) -> str:
        wanted = merged(scopes)
        for have, token in self._tokens.items():
            if wanted <= have and time.monotonic() < token.ends:
                return f"Bearer {token.value}"
        task = self._under_way.get(wanted)
        if task is None:
            task = self._under_way[wanted] = asyncio.create_task(self._fetched(challenge, wanted))
            task.add_done_callback(lambda _: self._under_way.pop(wanted, None))
        return f"Bearer {await asyncio.shield(task)}"

    async def _fetched(self, challenge: Challenge, scopes: frozenset[str]) -> str:
        who = self._credentials or Credentials()
        realm = challenge.parameters["realm"]
        service = challenge.parameters.get("service", "")
        response, body = None, b""
        if who.refresh_token or who.password:
            fields = {"service": service, "client_id": _CLIENT_ID, "scope": " ".join(sorted(scopes))}
            if who.refresh_token:
                fields |= {"grant_type": "refresh_token", "refresh_token": who.refresh_token}
            else:
                fields |= {"grant_type": "password", "username": who.username, "password": who.password}
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            response, body = await self._send("POST", realm, headers, urlencode(fields).encode())
        # Many token servers only know the older form, and say so by one of these.
        if response is None or (who.password and response.status_code in (400, 401, 404, 405)):
            query = [("service", service)] if service else []
            query += [("scope", scope) for scope in sorted(scopes)]
            if who.password:
                query += [("account", who.username)]
            basic = _basic(who)
            joined = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}" if query else realm
            response, body = await self._send("GET", joined, {"Authorization": basic} if basic else {}, b"")
        if response.status_code != 200:
            kind = "oauth" if who.refresh_token or who.password else "anonymous"
            error = answers.of_answer(response, body, f"token server {urlsplit(realm).netloc}")
            message = error.message if response.status_code != 404 else answers.unexpected(response)
            # What the server refuses with 400 are the credentials too (RFC 6749, 5.2).
            made = (
                errdefs.PermissionDenied if response.status_code in (400, 401, 403) else errdefs.Unavailable
            )
            raise made(
                f"failed to authorize: failed to fetch {kind} token: {message}",
                detail={
                    **error.detail,
                    "registry": "denied" if made is errdefs.PermissionDenied else error.detail["registry"],
                },
            )
        value, lasts = _token_in(body)
        self._tokens[scopes] = _Token(value, time.monotonic() + lasts - _EARLY)
        return value


def merged(scopes: frozenset[str]) -> frozenset[str]:
    """Scopes with the actions on one resource in one (`repository:a:pull` and `…:push` as `…:pull,push`)."""
    actions: dict[str, set[str]] = {}
    other = set()
    for scope in scopes:
        resource, colon, listed = scope.rpartition(":")
        if colon and ":" in resource:
            actions.setdefault(resource, set()).update(listed.split(","))
        elif scope:
            other.add(scope)
    return frozenset(
        {f"{resource}:{','.join(sorted(listed))}" for resource, listed in actions.items()} | other
    )


def _check_realm(challenge: Challenge, host: Host, scopes: frozenset[str]) -> None:
    """Credentials that the registry would get over TLS do not leave without it."""
    realm = challenge.parameters.get("realm", "")
    parts = urlsplit(realm)
    why = ""
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        why = f"realm {realm[:200]!r} is no address of a token server"
    elif host.scheme == "https" and parts.scheme == "http" and not is_loopback(parts.netloc):
        why = f"token server {parts.netloc} does not use TLS"
    if why:
        raise answers.denied(f"authorization failed: {why}", scopes)


def _basic(who: Credentials) -> str:
    if not who.password:
        return ""
    return "Basic " + base64.b64encode(f"{who.username}:{who.password}".encode()).decode()


def _token_in(body: bytes) -> tuple[str, float]:
    """A token and how long it lasts, in seconds."""
    try:
        answer: dict[str, Any] = json.loads(body)
        value = answer.get("token") or answer.get("access_token")
        lasts = float(answer.get("expires_in") or _LASTS)
    except (ValueError, TypeError, AttributeError, RecursionError):
        value, lasts = None, _LASTS
    if not isinstance(value, str) or not re.fullmatch(r"[\x21-\x7e]+", value):
        raise errdefs.Unavailable("authorization server did not include a token in the response")
    return value, max(lasts, _LASTS)

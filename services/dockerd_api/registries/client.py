"""One endpoint of a registry, asked for one user: what Docker's daemon asks itself rather than containerd.

(distribution registry/client/auth, moby registry/auth.go) A password or token goes to the endpoint that it is
for, and to the token server that this endpoint names; a redirect to another host goes there without it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import errdefs
import httpx
from http_client import tls
from http_client.challenges import challenges
from http_client.proxies import Proxies

from dockerd_api.registries import answers
from dockerd_api.registries.credentials import Credentials
from dockerd_api.registries.endpoints import Endpoint

_TIMEOUT = 15.0  # seconds for one request with its answer
_MOST_REDIRECTS = 10
_LARGEST_ERROR = 64 * 1024  # bytes
_LARGEST_TOKEN = 64 * 1024
_CLIENT_ID = "docker"


@dataclass(frozen=True)
class Answer:
    """One answer, read whole. `url` is where it came from in the end."""

    status: int
    headers: httpx.Headers
    body: bytes
    url: str

    def json(self) -> Any:
        """Raises Internal for what is none."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise errdefs.Internal(f"{self.url}: invalid JSON: {error}") from None

    def error(self) -> errdefs.BuoyError:
        return answers.of_answer(self.status, self.headers, self.body)


class Client:
    """Use it in `async with`. `scope` is what a token is asked for, such as `repository:a/b:pull`.

    After `ping`, `identity_token` is what the token server gave for the next time, if it did.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        credentials: Credentials,
        *,
        proxies: Proxies,
        user_agent: str,
        scope: str = "",
        offline: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self.identity_token = credentials.identity_token
        self._credentials = credentials
        self._proxies = proxies
        self._headers = {"User-Agent": user_agent, "Accept-Encoding": "identity"}
        self._scope = scope
        self._offline = offline
        self._challenges: dict[str, dict[str, str]] = {}
        self._token = ""
        # One for each proxy, with our certificate for the endpoint itself and without it for others.
        self._http: dict[tuple[str, bool], httpx.AsyncClient] = {}

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._http.values():
            await client.aclose()

    async def ping(self) -> None:
        """Learn what the registry wants to know of its users. Raises Internal when it does not answer."""
        answer = await self._asked("GET", f"{self.endpoint.url}/v2/", {}, _LARGEST_ERROR)
        if answer.status == 401:
            offered = challenges(answer.headers.get_list("www-authenticate"))
            self._challenges = {each.scheme: each.parameters for each in reversed(offered)}

    async def get(
        self, path: str, *, largest: int, headers: Mapping[str, str] | None = None, basic: bool = False
    ) -> Answer:
        """What stands below the endpoint at a path, or at an address that it gave, with the user's authority:
        with `basic` name and password, otherwise what `ping` has learnt that the registry wants.

        Raises what the token server says, Internal for a registry that is away or wants what we do not have,
        ResourceExhausted for more than `largest` bytes.
        """
        url = urljoin(f"{self.endpoint.url}/", path) if "://" in path else f"{self.endpoint.url}{path}"
        authority = await self._authority(url, basic)
        return await self._asked("GET", url, {**(headers or {}), **authority}, largest)

    async def _authority(self, url: str, basic: bool) -> dict[str, str]:
        if _origin(url) != _origin(self.endpoint.url):
            return {}
        who = self._credentials
        if basic:
            return {"Authorization": _basic(who)}
        if "bearer" in self._challenges:
            if not self._token:
                self._token = who.registry_token or await self._fetched(self._challenges["bearer"])
            return {"Authorization": f"Bearer {self._token}"}
        if "basic" in self._challenges:
            if not who.username and not who.password:
                raise errdefs.Internal(f'Get "{url}": no basic auth credentials')
            return {"Authorization": _basic(who)}
        return {}

    async def _fetched(self, challenge: Mapping[str, str]) -> str:
        """A token of the token server (distribution: Token Authentication, and its OAuth2 form)."""
        realm = challenge.get("realm", "")
        parts = urlsplit(realm)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
            raise errdefs.Internal("no realm specified for token auth challenge")
        if parts.scheme == "http" and self.endpoint.url.startswith("https://") and not self.endpoint.insecure:
            raise errdefs.Internal(
                f"token server {parts.netloc} of {self.endpoint.host} does not use TLS: not asked"
            )
        who, service = self._credentials, challenge.get("service", "")
        if who.identity_token:
            form = {"scope": self._scope, "service": service, "client_id": _CLIENT_ID}
            form |= {"grant_type": "refresh_token", "refresh_token": who.identity_token}
            answer = await self._asked(
                "POST",
                realm,
                {"Content-Type": "application/x-www-form-urlencoded"},
                _LARGEST_TOKEN,
                urlencode(form).encode(),
            )
        else:
            query = [("service", service)] if service else []
            query += [("scope", self._scope)] if self._scope else []
            query += [("offline_token", "true"), ("client_id", _CLIENT_ID)] if self._offline else []
            headers = {}
            if who.username and who.password:
                query.append(("account", who.username))
                headers = {"Authorization": _basic(who)}
            joined = f"{realm}{'&' if parts.query else '?'}{urlencode(query)}" if query else realm
            answer = await self._asked("GET", joined, headers, _LARGEST_TOKEN)
        if answer.status >= 400:
            raise self._token_error(answer.error())
        document = answer.json()
        found = document if isinstance(document, dict) else {}
        token = found.get("access_token") or found.get("token")
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise errdefs.Internal("authorization server did not include a token in the response")
        if isinstance(found.get("refresh_token"), str) and found["refresh_token"]:
            self.identity_token = found["refresh_token"]
        return token

    def _token_error(self, error: errdefs.BuoyError) -> errdefs.BuoyError:
        return type(error)(f'Get "{self.endpoint.url}/v2/": {error.message}', detail=error.detail)

    async def _asked(
        self, method: str, url: str, headers: Mapping[str, str], largest: int, content: bytes | None = None
    ) -> Answer:
        """The answer behind redirects; what only the first host may know stays with it."""
        headers = {**self._headers, **headers}
        try:
            async with asyncio.timeout(_TIMEOUT):
                for _ in range(_MOST_REDIRECTS):
                    answer = await self._exchanged(method, url, headers, largest, content)
                    location = answer.headers.get("location", "")
                    if answer.status not in (301, 302, 303, 307, 308) or not location:
                        return answer
                    there = urljoin(url, location)
                    if urlsplit(there).scheme not in ("http", "https"):
                        raise errdefs.Internal(f"{url} redirects to no address")
                    if _origin(there) != _origin(url):
                        if content is not None:
                            raise errdefs.Internal(f"{url} redirects a form to another host: not followed")
                        headers = {name: value for name, value in headers.items() if name != "Authorization"}
                    if url.startswith("https:") and not there.startswith("https:"):
                        raise errdefs.Internal(f"{url} redirects to an address without TLS: not followed")
                    url = there
        except TimeoutError:
            raise errdefs.Internal(
                f'{method.capitalize()} "{_shown(url)}": context deadline exceeded '
                "(Client.Timeout exceeded while awaiting headers)"
            ) from None
        raise errdefs.Internal(f'{method.capitalize()} "{_shown(url)}": stopped after 10 redirects')

    async def _exchanged(
        self, method: str, url: str, headers: Mapping[str, str], largest: int, content: bytes | None
    ) -> Answer:
        own = _origin(url) == _origin(self.endpoint.url)
        client = await self._client(self._proxies.proxy_for(url), own)
        try:
            async with client.stream(method, url, headers=dict(headers), content=content) as response:
                body = bytearray()
                async for piece in response.aiter_raw():
                    body += piece
                    if len(body) > largest:
                        raise errdefs.ResourceExhausted(f"{_shown(url)}: more than {largest} bytes")
                return Answer(response.status_code, response.headers, bytes(body), url)
        except httpx.InvalidURL as error:
            raise errdefs.Internal(f'{method.capitalize()} "{_shown(url)}": {error}') from None
        except httpx.HTTPError as error:
            raise answers.of_failure(error, method, _shown(url)) from error

    async def _client(self, proxy: str, own: bool) -> httpx.AsyncClient:
        known = self._http.get((proxy, own))
        if known is not None:
            return known
        context = await asyncio.to_thread(
            tls.context,
            self.endpoint.certificates.authorities,
            self.endpoint.certificates.clients if own else (),
            skip_verify=self.endpoint.insecure and own,
        )
        made = httpx.AsyncClient(
            verify=context,
            trust_env=False,
            proxy=proxy or None,
            timeout=_TIMEOUT,
            follow_redirects=False,
        )
        self._http[proxy, own] = made
        return made


def _basic(who: Credentials) -> str:
    return "Basic " + base64.b64encode(f"{who.username}:{who.password}".encode()).decode()


def _origin(url: str) -> tuple[str, str, int]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _shown(url: str) -> str:
    """An address without a name and password in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

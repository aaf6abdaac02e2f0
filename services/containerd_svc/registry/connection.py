"""One host of a registry, spoken to: TLS, proxies, authorization, redirects, tries again, deadlines.

Nothing that proves who we are, and no header that the settings of a host add, goes to another host: neither
by a redirect nor by an address that a document names.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email.utils
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial

import errdefs
import httpx
from http_client import tls
from http_client.challenges import challenges
from http_client.proxies import Proxies

from containerd_svc.registry import answers
from containerd_svc.registry.auth import LARGEST_TOKEN, Authorizer
from containerd_svc.registry.credentials import Ask
from containerd_svc.registry.hosts import Host

log = logging.getLogger(__name__)

# Makes the transport for (whether it presents the client's certificate, proxy's URL or nothing).
MakeTransport = Callable[[bool, str], httpx.AsyncBaseTransport]
Body = Callable[[], AsyncIterator[bytes]]

READ_TIMEOUT = 30.0  # seconds without a byte
_DOCUMENT_TIMEOUT = 120.0  # seconds for a whole document, however slowly it comes
_MOST_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
_TRIES = 5
_TRY_AGAIN = (408, 429, 500, 502, 503, 504)
_FIRST_PAUSE = 0.25  # seconds; doubled each time
_LONGEST_PAUSE = 30.0  # seconds that a registry may ask us to wait for the next try
_ALONE = ("authorization", "cookie")


class Connection:
    """The connections to one host, used for one image. Call `close` after use."""

    def __init__(
        self,
        host: Host,
        *,
        reference: str,
        ask: Ask,
        proxies: Proxies,
        headers: Mapping[str, str],
        trace: bool = False,
        transport: MakeTransport | None = None,
    ) -> None:
        self.host = host
        self._scheme = host.scheme
        self._proxies = proxies
        self._headers = httpx.Headers([*headers.items(), *host.headers])
        self._trace = trace
        self._transport = transport
        self._clients: dict[tuple[bool, str], asyncio.Task[httpx.AsyncClient]] = {}
        self._authorizer = Authorizer(host, reference, ask, self._ask_token)
        self._answered = False
        self._timeout = httpx.Timeout(READ_TIMEOUT, connect=host.dial_timeout, pool=None)

    async def close(self) -> None:
        await self._authorizer.close()
        for client in self._clients.values():
            with contextlib.suppress(Exception):
                await (await client).aclose()

    def url(self, path: str) -> httpx.URL:
        """The address of what stands below the host's path."""
        return httpx.URL(f"{self._scheme}://{self.host.address}{self.host.path}{path}")

    def is_own(self, url: httpx.URL) -> bool:
        """Whether an address is on this host, reached in this way."""
        return _origin(url) == _origin(self.url("/"))

    @contextlib.asynccontextmanager
    async def exchange(
        self,
        method: str,
        target: str | httpx.URL,
        *,
        scopes: frozenset[str],
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        tries: int = _TRIES,
    ) -> AsyncIterator[httpx.Response]:
        """An answer whose body is still to be read, whatever its status but 401.

        `target` is a path of the host, or an address that the host itself has given. `body` makes the body
        anew for each try. Raises Unavailable when there is no connection, PermissionDenied.
        """
        response = await self._tried(method, target, scopes, dict(headers or {}), body, tries)
        try:
            yield response
        except answers.FAILURES as error:
            raise answers.of_failure(error, response.request) from error
        finally:
            await response.aclose()

    async def document(
        self,
        method: str,
        target: str | httpx.URL,
        *,
        scopes: frozenset[str],
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        limit: int,
    ) -> tuple[httpx.Response, bytes]:
        """An answer with its whole body, at most `limit` bytes. Raises as `exchange` does."""
        body = partial(_pieces, content) if content is not None else None
        length = {"Content-Length": str(len(content))} if content is not None else {}
        async with (
            _deadline(_DOCUMENT_TIMEOUT, f"{method} {target}"),
            self.exchange(
                method, target, scopes=scopes, headers={**(headers or {}), **length}, body=body
            ) as response,
        ):
            return response, await read(response, limit)

    @contextlib.asynccontextmanager
    async def elsewhere(self, url: httpx.URL, headers: Mapping[str, str]) -> AsyncIterator[httpx.Response]:
        """The answer of an address that a document names: asked as anybody would, and nobody's challenge."""
        response = await self._sent(httpx.Request("GET", url, headers={**_OURS, **headers}), own=False)
        try:
            yield response
        except answers.FAILURES as error:
            raise answers.of_failure(error, response.request) from error
        finally:
            await response.aclose()

    async def error(self, response: httpx.Response, what: str) -> errdefs.BuoyError:
        """The error that an answer tells."""
        return answers.of_answer(response, await self._explanation(response), what)

    @staticmethod
    async def _explanation(response: httpx.Response) -> bytes:
        with contextlib.suppress(errdefs.BuoyError, *answers.FAILURES):
            return await read(response, answers.LARGEST_ERROR)
        return b""

    async def _tried(
        self,
        method: str,
        target: str | httpx.URL,
        scopes: frozenset[str],
        headers: dict[str, str],
        body: Body | None,
        tries: int,
    ) -> httpx.Response:
        for number in range(1, tries + 1):
            last = number == tries
            try:
                response = await self._authorized(method, target, scopes, headers, body)
            except errdefs.Unavailable as error:
                # A host that never answered is not waited for: its name or port may just be wrong.
                if last or not self._answered or error.detail.get("registry") != "away":
                    raise
                pause = _pause(number)
            else:
                self._answered = True
                if response.status_code not in _TRY_AGAIN or last:
                    return response
                asked = _asked_pause(response)
                if asked is not None and asked > _LONGEST_PAUSE:
                    return response
                pause = asked if asked is not None else _pause(number)
                await response.aclose()
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _authorized(
        self,
        method: str,
        target: str | httpx.URL,
        scopes: frozenset[str],
        headers: dict[str, str],
        body: Body | None,
    ) -> httpx.Response:
        """One try, and another with what a challenge asks for."""
        authorization = await self._authorizer.header(scopes)
        for challenged in (False, True):
            response, own = await self._followed(method, target, headers, authorization, body)
            if response.status_code != 401:
                return response
            offered = response.headers.get_list("www-authenticate")
            said = answers.server_message(await self._explanation(response))
            await response.aclose()
            if not own or challenged:
                raise _refused(offered, said, scopes)
            authorization = await self._authorizer.challenged(offered, scopes, authorization)
        raise AssertionError("unreachable")

    async def _followed(
        self,
        method: str,
        target: str | httpx.URL,
        headers: dict[str, str],
        authorization: str,
        body: Body | None,
    ) -> tuple[httpx.Response, bool]:
        """The answer behind redirects, and whether this host gave it."""
        url = self.url(target) if isinstance(target, str) else target
        for _ in range(_MOST_REDIRECTS):
            own = self.is_own(url)
            sent = httpx.Headers({**_OURS, **headers})
            if own:
                sent.update(self._headers)
                if authorization:
                    sent["authorization"] = authorization
            request = httpx.Request(method, url, headers=sent, content=body() if body else None)
            try:
                response = await self._sent(request, own=own)
            except errdefs.Unavailable as error:
                if not (own and self.host.try_plain and url.scheme == "https" and _no_tls(error)):
                    raise
                self._scheme = "http"
                url = url.copy_with(scheme="http")
                continue
            if response.status_code not in _REDIRECTS or "location" not in response.headers:
                return response, own
            await response.aclose()
            there = _joined(url, response.headers["location"])
            if body is not None and not self.is_own(there):
                # What is uploaded is the user's, and a token server's form holds a password.
                raise errdefs.PermissionDenied(
                    f"{url.host} redirects a {method} request to {there.host}: not followed"
                )
            if url.scheme == "https" and there.scheme != "https":
                raise errdefs.PermissionDenied(
                    f"{url.host} redirects to {there.host} without TLS: not followed"
                )
            if response.status_code == 303 and method != "HEAD":
                method, body = "GET", None
            url = there
        raise errdefs.Unavailable(f"{self.host.address}: stopped after {_MOST_REDIRECTS} redirects")

    async def _sent(self, request: httpx.Request, *, own: bool) -> httpx.Response:
        url = request.url
        proxy = self._proxies.proxy_for(str(url))
        client = await self._client(own, proxy)
        request.extensions["timeout"] = self._timeout.as_dict()
        try:
            response = await client.send(request, stream=True)
        except answers.FAILURES as error:
            raise answers.of_failure(error, request) from error
        if self._trace:
            shown = url.copy_with(query=None)
            log.info("%s %s: %d %s", request.method, shown, response.status_code, response.http_version)
        return response

    async def _client(self, own: bool, proxy: str) -> httpx.AsyncClient:
        """One client for what presents our certificate, one for what does not, and each proxy."""
        own = own and self.host.tls.client is not None
        making = self._clients.get((own, proxy))
        if making is None:
            making = self._clients[own, proxy] = asyncio.create_task(self._made(own, proxy))
        return await asyncio.shield(making)

    async def _made(self, own: bool, proxy: str) -> httpx.AsyncClient:
        if self._transport is not None:
            transport = self._transport(own, proxy)
        else:
            context = await asyncio.to_thread(
                tls.context,
                self.host.tls.authorities,
                [self.host.tls.client] if own and self.host.tls.client else [],
                skip_verify=self.host.tls.skip_verify,
            )
            transport = httpx.AsyncHTTPTransport(
                verify=context,
                http2=True,
                trust_env=False,
                proxy=proxy or None,
                limits=httpx.Limits(keepalive_expiry=60),
            )
        return httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=False)

    async def _ask_token(
        self, method: str, url: str, headers: dict[str, str], content: bytes
    ) -> tuple[httpx.Response, bytes]:
        """Ask a token server, for the authorizer; a redirect of what holds a password is not followed."""
        target = httpx.URL(url)
        async with _deadline(_DOCUMENT_TIMEOUT, f"{method} {target.host}"):
            for number in range(1, _TRIES + 1):
                request = httpx.Request(method, target, headers={**_OURS, **headers}, content=content or None)
                response = await self._sent(request, own=self.is_own(target))
                try:
                    body = await read(response, LARGEST_TOKEN)
                except answers.FAILURES as error:
                    raise answers.of_failure(error, request) from error
                finally:
                    await response.aclose()
                if response.status_code not in _TRY_AGAIN or number == _TRIES:
                    break
                await asyncio.sleep(min(_asked_pause(response) or _pause(number), _LONGEST_PAUSE))
        return response, body


_OURS = {"Accept-Encoding": "identity", "User-Agent": "buoy"}


async def read(response: httpx.Response, limit: int) -> bytes:
    """A body of at most `limit` bytes. Raises ResourceExhausted for more."""
    found = bytearray()
    async for piece in response.aiter_raw():
        found += piece
        if len(found) > limit:
            raise errdefs.ResourceExhausted(
                f"{response.url.host} sent more than {limit} bytes: resource exhausted"
            )
    return bytes(found)


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


@contextlib.asynccontextmanager
async def _deadline(seconds: float, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise errdefs.Unavailable(
            f"{what}: no whole answer in {seconds:.0f} seconds", detail={"registry": "away"}
        ) from None


def _refused(offered: list[str], said: str, scopes: frozenset[str]) -> errdefs.PermissionDenied:
    """A second 401, in the words of the registry."""
    for challenge in challenges(offered):
        error = challenge.parameters.get("error", "")
        if error:
            return answers.denied(f"server message: {error[:200]}: authorization failed", scopes)
    return answers.denied(f"authorization failed{answers.server_said(said)}", scopes)


def _no_tls(error: errdefs.Unavailable) -> bool:
    return error.__cause__ is not None and tls.is_no_tls(error.__cause__)


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host.lower(), url.port or (443 if url.scheme == "https" else 80)


def _joined(url: httpx.URL, location: str) -> httpx.URL:
    try:
        there = url.join(location)
    except (httpx.InvalidURL, ValueError):
        there = httpx.URL("")
    if there.scheme not in ("http", "https") or not there.host:
        raise errdefs.Unavailable(f"{url.host} redirects to no address: {location[:200]!r}")
    return there


def _pause(number: int) -> float:
    return _FIRST_PAUSE * float(2 ** (number - 1)) * random.uniform(0.75, 1.25)


def _asked_pause(response: httpx.Response) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3), if there is a usable one."""
    value = response.headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value[:9])
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError):
        return None
    if moment.tzinfo is None:
        return None
    return max((moment - datetime.datetime.now(datetime.UTC)).total_seconds(), 0.0)

"""A registry as one image's source or destination.

Mirrors are asked in order, then the registry itself; what one does not have or cannot give, the next is asked
for. Errors are those of `registry.answers`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import errdefs
import httpx
from http_client.proxies import Proxies

from containerd_svc.ingest import check_digest
from containerd_svc.registry import answers, documents
from containerd_svc.registry.connection import Connection, MakeTransport
from containerd_svc.registry.credentials import Ask, ask_nobody
from containerd_svc.registry.hosts import PULL, REFERRERS, RESOLVE, hosts_of
from containerd_svc.registry.reference import Reference
from containerd_svc.registry.uploads import OpenAt, Uploads

T = TypeVar("T")

Descriptor = dict[str, Any]

_PIECE = 1024 * 1024  # bytes; the most that one step of a blob's iteration gives
_MOST_PAGES = 10_000
_LARGEST_LIST = 4 * 1024 * 1024  # bytes of one page of tags
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_ACCEPT = ", ".join((*documents.KNOWN, "*/*"))


@dataclass(frozen=True)
class Resolver:
    """How registries are reached.

    host_dir: folder with one of settings for each registry (`registry.hosts`); default_scheme: `http` or
    `https` for those without settings, empty for https, and on loopback whichever is spoken; headers: sent to
    the registry's hosts alone; trace: each request is logged.
    """

    host_dir: str = ""
    default_scheme: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    credentials: Ask = ask_nobody
    proxies: Proxies = field(default_factory=Proxies)
    trace: bool = False
    transport: MakeTransport | None = None  # instead of the network's own


class Blob(Protocol):
    """Bytes on their way: `offset` is where they begin in the blob, 0 where the host gives no part of it;
    `size` is the whole blob's, in bytes, -1 when the host does not say."""

    offset: int
    size: int

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class _Body:
    def __init__(self, response: httpx.Response, offset: int, size: int) -> None:
        self._response = response
        self.offset = offset
        self.size = size

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for data in self._response.aiter_raw():
                for start in range(0, len(data), _PIECE):
                    yield data[start : start + _PIECE] if len(data) > _PIECE else data
        except answers.FAILURES as error:
            raise answers.of_failure(error, self._response.request) from error


class Registry:
    """The registry of one image: `async with Registry("docker.io/library/busybox:latest", resolver) as r`."""

    def __init__(self, reference: str, resolver: Resolver) -> None:
        """Raises InvalidArgument for a reference that is not normal, or for settings that cannot be read."""
        self.reference = Reference.parse(reference)
        self._connections = [
            Connection(
                host,
                reference=self.reference.name,
                ask=resolver.credentials,
                proxies=resolver.proxies,
                headers=resolver.headers,
                trace=resolver.trace,
                transport=resolver.transport,
            )
            for host in hosts_of(self.reference.host, resolver.host_dir, resolver.default_scheme)
        ]
        self._scopes = frozenset((f"repository:{self.reference.repository}:pull",))
        self._uploads = Uploads(self._connections, self.reference)

    async def __aenter__(self) -> Registry:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for connection in self._connections:
            await connection.close()

    # Pull.

    async def resolve(self) -> Descriptor:
        """{mediaType, digest, size} of what the reference names. Raises NotFound, PermissionDenied, …

        The digest is the one asked for, or the host's word: `manifest` checks it.
        """
        name = str(self.reference)
        try:
            return await self._first(RESOLVE, self._resolve_at, name)
        except errdefs.BuoyError as error:
            raise type(error)(
                f'failed to resolve reference "{name}": {error.message}', detail=error.detail
            ) from error

    @contextlib.asynccontextmanager
    async def fetch(
        self, descriptor: Mapping[str, Any], offset: int = 0, end: int | None = None
    ) -> AsyncIterator[Blob]:
        """A blob or manifest as it lies there, from `offset` up to `end` (without it), in pieces of at most
        1 MiB; nothing of it is checked here.

        Raises Unavailable, also from the iteration when the connection breaks; NotFound; OutOfRange.
        """
        digest = check_digest(str(descriptor.get("digest")))
        wanted = f"bytes={offset}-{'' if end is None else end - 1}"
        headers = {"Range": wanted} if offset or end is not None else {}
        async with contextlib.AsyncExitStack() as stack:

            async def at(connection: Connection) -> _Body:
                kind = str(descriptor.get("mediaType"))
                folder = "manifests" if kind in documents.KNOWN else "blobs"
                path = self._path(connection, f"{folder}/{digest}")
                accept = {"Accept": f"{kind or '*/*'}, */*" if folder == "manifests" else "*/*"}
                opened = contextlib.AsyncExitStack()
                async with opened:
                    response = await opened.enter_async_context(
                        connection.exchange("GET", path, scopes=self._scopes, headers={**accept, **headers})
                    )
                    body = await self._body(connection, response, offset, digest)
                    stack.push_async_exit(opened.pop_all())
                    return body

            async def foreign(url: httpx.URL) -> _Body:
                opened = contextlib.AsyncExitStack()
                async with opened:
                    connection = self._connections[-1]
                    response = await opened.enter_async_context(connection.elsewhere(url, headers))
                    body = await self._body(connection, response, offset, digest)
                    stack.push_async_exit(opened.pop_all())
                    return body

            try:
                body = await self._first(PULL, at, f"{self.reference.name}@{digest}")
            except errdefs.NotFound:
                urls = _urls(descriptor)
                if not urls:
                    raise
                body = await _any_of([partial(foreign, url) for url in urls])
            yield body

    async def manifest(self, descriptor: Mapping[str, Any]) -> bytes:
        """The document of a descriptor: an index, a manifest, or another of at most 20 MiB.

        Raises InvalidArgument for one that is ambiguous, or of another media type than the host or the
        descriptor says; DataLoss for one that is not of its digest or size.
        """
        digest = check_digest(str(descriptor.get("digest")))

        async def at(connection: Connection) -> bytes:
            kind = str(descriptor.get("mediaType") or "")
            response, body = await connection.document(
                "GET",
                self._path(connection, f"manifests/{digest}"),
                scopes=self._scopes,
                headers={"Accept": f"{kind}, */*" if kind else _ACCEPT},
                limit=documents.LARGEST,
            )
            if response.status_code != 200:
                raise answers.of_answer(response, body, f"{self.reference.name}@{digest}")
            documents.check(body, digest=digest, size=descriptor.get("size"))
            documents.check_kind(body, kind, documents.media_type(response.headers))
            return body

        return await self._first(PULL, at, f"{self.reference.name}@{digest}")

    async def tags(self) -> list[str]:
        """The repository's tags, in the registry's order."""

        async def at(connection: Connection) -> list[str]:
            return await self._listed(connection, "tags/list", "tags", str)

        return await self._first(RESOLVE, at, self.reference.name)

    async def referrers(self, digest: str, artifact_type: str = "") -> list[Descriptor]:
        """Descriptors of what refers to a manifest (OCI distribution: Listing Referrers), also where the
        registry only knows them by the tag that stands for its digest."""
        check_digest(digest)

        async def at(connection: Connection) -> list[Descriptor]:
            try:
                return await self._listed(connection, f"referrers/{digest}", "manifests", dict)
            except errdefs.NotFound:
                path = self._path(connection, f"manifests/{digest.replace(':', '-')}")
                response, body = await connection.document(
                    "GET", path, scopes=self._scopes, headers={"Accept": _ACCEPT}, limit=documents.LARGEST
                )
                if response.status_code == 404:
                    return []
                if response.status_code != 200:
                    raise answers.of_answer(response, body, path) from None
                found = documents.parsed(body).get("manifests")
                return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []

        found: list[Descriptor] = await self._first(REFERRERS, at, digest)
        return [each for each in found if not artifact_type or each.get("artifactType") == artifact_type]

    # Push: to the registry itself, or what its settings say takes pushes.

    async def has(self, descriptor: Mapping[str, Any]) -> bool:
        """Whether the repository has a blob or a manifest."""
        return await self._uploads.has(descriptor)

    async def mount(self, descriptor: Mapping[str, Any], from_repository: str) -> bool:
        """Have the registry take a blob from another repository of its own (`library/busybox`); whether it
        did."""
        return await self._uploads.mount(descriptor, from_repository)

    async def upload(
        self,
        descriptor: Mapping[str, Any],
        open_at: OpenAt,
        tell: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """Send a blob. `open_at(offset)` gives its bytes from there, and may be asked several times; `tell`
        hears how many bytes the registry has been sent, which may go back."""
        await self._uploads.upload(descriptor, open_at, tell)

    async def put_manifest(self, reference: str, media_type: str, data: bytes) -> None:
        """Store a manifest by a tag or by its digest. Raises DataLoss when the registry has got another."""
        await self._uploads.put_manifest(reference, media_type, data)

    # Parts.

    def _path(self, connection: Connection, rest: str) -> str:
        """The path below a host; a mirror is told whose images are asked for, as containerd's clients do."""
        asked = f"?ns={quote(self.reference.host, safe=':')}" if connection.host.mirror else ""
        return f"/{self.reference.repository}/{rest}{asked}"

    async def _first(self, capability: str, ask: Callable[[Connection], Awaitable[T]], what: str) -> T:
        """What the first host gives that can; the most telling error when none does."""
        able = [each for each in self._connections if capability in each.host.capabilities]
        if not able:
            raise errdefs.InvalidArgument(
                f"no host of {self.reference.host} may {capability}: invalid argument"
            )
        return await _any_of([partial(ask, each) for each in able])

    async def _resolve_at(self, connection: Connection) -> Descriptor:
        path = self._path(connection, f"manifests/{self.reference.object}")
        async with connection.exchange(
            "HEAD", path, scopes=self._scopes, headers={"Accept": _ACCEPT}
        ) as response:
            found = documents.described(response.headers, self.reference.digest)
            if response.status_code == 200 and found is not None:
                return documents.supported(found)
            if response.status_code not in (200, 400, 403, 405, 501):
                raise await connection.error(response, str(self.reference))
        # Some hosts do not answer HEAD, or do not say the digest then; the error of a GET has a body.
        response, body = await connection.document(
            "GET", path, scopes=self._scopes, headers={"Accept": _ACCEPT}, limit=documents.LARGEST
        )
        if response.status_code != 200:
            raise answers.of_answer(response, body, str(self.reference))
        kind = documents.media_type(response.headers) or str(documents.parsed(body).get("mediaType") or "")
        digest = self.reference.digest or documents.digest_of(body)
        documents.check(body, digest=digest, size=len(body))
        return documents.supported({"mediaType": kind, "digest": digest, "size": len(body)})

    async def _body(
        self, connection: Connection, response: httpx.Response, offset: int, digest: str
    ) -> _Body:
        length = response.headers.get("content-length", "")
        if response.status_code == 200:
            return _Body(response, 0, int(length) if length.isdigit() else -1)
        if response.status_code == 206:
            found = _RANGE.fullmatch(response.headers.get("content-range", ""))
            if found is None or int(found[1]) > offset:
                raise errdefs.Unavailable(
                    f"{digest}: the registry sent another part than was asked for",
                    detail={"registry": "failed"},
                )
            return _Body(response, int(found[1]), int(found[3]) if found[3] != "*" else -1)
        if response.status_code == 416:
            raise errdefs.OutOfRange(f"{digest}: nothing from {offset} on: out of range")
        raise await connection.error(response, f"{self.reference.name}@{digest}")

    async def _listed(self, connection: Connection, path: str, key: str, kind: type[T]) -> list[T]:
        """The entries under `key` of a document that comes in pages (Link header, RFC 8288)."""
        target: str | httpx.URL = self._path(connection, path)
        found: list[T] = []
        for _ in range(_MOST_PAGES):
            response, body = await connection.document(
                "GET", target, scopes=self._scopes, headers={"Accept": _ACCEPT}, limit=_LARGEST_LIST
            )
            if response.status_code != 200:
                raise answers.of_answer(response, body, self.reference.name)
            entries = documents.parsed(body).get(key) or []
            if not isinstance(entries, list) or not all(isinstance(each, kind) for each in entries):
                raise errdefs.InvalidArgument(f"{self.reference.name}: {key} is no list: invalid argument")
            found += entries
            following = re.match(r"\s*<([^>]*)>\s*;.*\brel=\"?next\b", response.headers.get("link", ""))
            if following is None:
                return found
            target = response.url.join(following[1])
            if not connection.is_own(target):
                raise errdefs.PermissionDenied(
                    f"{self.reference.name}: the list goes on at {target.host}: not followed"
                )
        raise errdefs.ResourceExhausted(f"{self.reference.name}: more than {_MOST_PAGES} pages of {key}")


async def _any_of(ways: Sequence[Callable[[], Awaitable[T]]]) -> T:
    """What the first way gives; else the last error that is more than "not found", as the registry itself
    comes last."""
    worst: errdefs.BuoyError | None = None
    for way in ways:
        try:
            return await way()
        except errdefs.BuoyError as error:
            if worst is None or not isinstance(error, errdefs.NotFound):
                worst = error
    assert worst is not None
    raise worst


def _urls(descriptor: Mapping[str, Any]) -> list[httpx.URL]:
    """The addresses outside of the registry that a descriptor names (OCI image-spec: descriptor.md, urls)."""
    found = []
    value = descriptor.get("urls")
    for each in value if isinstance(value, list) else []:
        with contextlib.suppress(httpx.InvalidURL, TypeError):
            url = httpx.URL(each)
            if url.scheme in ("http", "https") and url.host and not url.userinfo:
                found.append(url)
    return found

"""Sending blobs and manifests to a registry (OCI distribution: Push)."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import errdefs
import httpx

from containerd_svc.ingest import check_digest
from containerd_svc.registry import answers, documents
from containerd_svc.registry.connection import Connection
from containerd_svc.registry.hosts import PUSH
from containerd_svc.registry.reference import Reference

OpenAt = Callable[[int], AsyncGenerator[bytes, None]]
Tell = Callable[[int], Awaitable[None]]

_ATTEMPTS = 5  # to go on with one blob
_PAUSE = 0.25  # seconds before the second attempt, doubled each time
_CHUNK = 8 * 1024 * 1024  # bytes of one request to a host that does not take the whole blob in one
_LARGEST_ANSWER = 64 * 1024  # bytes
_RANGE = re.compile(r"(?:bytes=)?0-(\d+)")
_BINARY = {"Content-Type": "application/octet-stream"}


class Uploads:
    """What is sent to the one host of `connections` that takes pushes."""

    def __init__(self, connections: Sequence[Connection], reference: Reference) -> None:
        self._connections = connections
        self._reference = reference
        self._scopes = frozenset((f"repository:{reference.repository}:pull,push",))
        self._begun: dict[str, httpx.URL] = {}  # uploads that a refused mount has opened, by digest

    async def has(self, descriptor: Mapping[str, Any]) -> bool:
        digest = check_digest(str(descriptor.get("digest")))
        folder = "manifests" if descriptor.get("mediaType") in documents.KNOWN else "blobs"
        connection = self._connection()
        async with connection.exchange(
            "HEAD",
            self._path(f"{folder}/{digest}"),
            scopes=self._scopes,
            headers={"Accept": f"{descriptor.get('mediaType')}, */*"},
        ) as response:
            if response.status_code == 404:
                return False
            if response.status_code != 200:
                raise await connection.error(response, digest)
            told = response.headers.get("docker-content-digest", digest)
            return bool(told == digest)

    async def mount(self, descriptor: Mapping[str, Any], from_repository: str) -> bool:
        digest = check_digest(str(descriptor.get("digest")))
        asked = f"mount={quote(digest)}&from={quote(from_repository)}"
        scopes = self._scopes | {f"repository:{from_repository}:pull"}
        try:
            response = await self._small("POST", self._path(f"blobs/uploads/?{asked}"), scopes)
        except errdefs.PermissionDenied:  # we may not read there
            return False
        if response.status_code == 201:
            return True
        if response.status_code == 202:
            self._begun[digest] = _location(response)
        return False

    async def upload(self, descriptor: Mapping[str, Any], open_at: OpenAt, tell: Tell | None) -> None:
        digest, size = check_digest(str(descriptor.get("digest"))), int(descriptor["size"])
        sending = _Sending(self._connection(), self._scopes, digest, size, open_at, tell)
        location, offset = self._begun.pop(digest, None), 0
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                if location is None:
                    location = await self._opened()
                    offset = 0
                await sending.send(location, offset)
                return
            except errdefs.Unavailable:
                if attempt == _ATTEMPTS:
                    raise
                await asyncio.sleep(_PAUSE * 2 ** (attempt - 1))
                if await self.has(descriptor):  # it had arrived, only the answer was lost
                    return
                location, offset = await self._state(location)

    async def put_manifest(self, reference: str, media_type: str, data: bytes) -> None:
        digest = documents.digest_of(data)
        connection = self._connection()
        response, body = await connection.document(
            "PUT",
            self._path(f"manifests/{reference}"),
            scopes=self._scopes,
            headers={"Content-Type": media_type},
            content=data,
            limit=_LARGEST_ANSWER,
        )
        if response.status_code not in (200, 201, 202):
            raise answers.of_answer(response, body, self._reference.name)
        told = response.headers.get("docker-content-digest", "")
        if told.startswith("sha256:") and told != digest:
            raise errdefs.DataLoss(f"the registry stored {told} instead of {digest}")

    def _connection(self) -> Connection:
        for connection in self._connections:
            if PUSH in connection.host.capabilities and not connection.host.mirror:
                return connection
        for connection in self._connections:
            if PUSH in connection.host.capabilities:
                return connection
        raise errdefs.InvalidArgument(f"no host of {self._reference.host} may push: invalid argument")

    def _path(self, rest: str) -> str:
        return f"/{self._reference.repository}/{rest}"

    async def _small(self, method: str, target: str | httpx.URL, scopes: frozenset[str]) -> httpx.Response:
        response, body = await self._connection().document(
            method, target, scopes=scopes, content=b"" if method == "POST" else None, limit=_LARGEST_ANSWER
        )
        if response.status_code >= 400:
            raise answers.of_answer(response, body, self._reference.name)
        return response

    async def _opened(self) -> httpx.URL:
        response = await self._small("POST", self._path("blobs/uploads/"), self._scopes)
        if response.status_code != 202:
            raise answers.of_answer(response, b"", self._reference.name)
        return _location(response)

    async def _state(self, location: httpx.URL | None) -> tuple[httpx.URL | None, int]:
        """Where an upload that broke goes on, and from which byte; nothing when it has to begin anew."""
        if location is None:
            return None, 0
        with contextlib.suppress(errdefs.NotFound, errdefs.InvalidArgument):
            response = await self._small("GET", location, self._scopes)
            found = _RANGE.fullmatch(response.headers.get("range", ""))
            if found is not None and "location" in response.headers:
                have = int(found[1])
                return _location(response), have + 1 if have else 0
        return None, 0


class _Sending:
    """One blob on its way."""

    def __init__(
        self,
        connection: Connection,
        scopes: frozenset[str],
        digest: str,
        size: int,
        open_at: OpenAt,
        tell: Tell | None,
    ) -> None:
        self._connection = connection
        self._scopes = scopes
        self._digest = digest
        self._size = size
        self._open_at = open_at
        self._tell = tell
        self._chunked = False

    async def send(self, location: httpx.URL, offset: int) -> None:
        """The whole blob in one request; the rest of one, or what the host finds too large, in chunks."""
        if offset == 0 and not self._chunked:
            finish = location.copy_merge_params({"digest": self._digest})
            answer = await self._request("PUT", finish, 0, self._size, {})
            if answer.status_code in (201, 204):
                return
            if answer.status_code != 413:
                raise self._error
            self._chunked = True
        while offset < self._size:
            end = min(offset + _CHUNK, self._size)
            span = {"Content-Range": f"{offset}-{end - 1}"}
            answer = await self._request("PATCH", location, offset, end, span)
            if answer.status_code not in (202, 204):
                raise self._error
            location, offset = _location(answer), end
        finish = location.copy_merge_params({"digest": self._digest})
        answer = await self._request("PUT", finish, self._size, self._size, {})
        if answer.status_code not in (201, 204):
            raise self._error

    async def _request(
        self, method: str, target: httpx.URL, start: int, end: int, headers: dict[str, str]
    ) -> httpx.Response:
        async with self._connection.exchange(
            method,
            target,
            scopes=self._scopes,
            headers={**_BINARY, **headers, "Content-Length": str(end - start)},
            body=lambda: self._bytes(start, end),
            tries=1,
        ) as response:
            if response.status_code >= 400:
                self._error = await self._connection.error(response, self._digest)
            else:
                self._error = answers.of_answer(response, b"", self._digest)
            return response

    async def _bytes(self, start: int, end: int) -> AsyncIterator[bytes]:
        position = start
        if start == end:
            return
        async with contextlib.aclosing(self._open_at(start)) as source:
            async for data in source:
                piece = data[: end - position]
                yield piece
                position += len(piece)
                if self._tell is not None:
                    await self._tell(position)
                if position == end:
                    return
        raise errdefs.DataLoss(f"{self._digest} ends at {position} of {end} bytes")


def _location(response: httpx.Response) -> httpx.URL:
    try:
        return response.url.join(response.headers["location"])
    except (KeyError, httpx.InvalidURL):
        raise errdefs.Unavailable(f"{response.url.host} does not say where the upload goes on") from None

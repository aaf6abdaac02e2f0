"""Blobs on their way from a registry into the content store.

A blob has one ingest, named as containerd's clients name theirs, whoever wants it: who comes later waits for
the one who fetches it, and goes on himself when that one is cancelled or fails. What has come so far stays,
over a cut, a kill and a restart, and only the rest is asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import errdefs
from linux.crashpoints import crashpoint

from containerd_svc.content import ContentStore
from containerd_svc.ingest import Ingest
from containerd_svc.transfer.descriptors import Descriptor, ref_key

_PIECE = 512 * 1024  # bytes that are written at a time
_TRIES = 6  # without a byte in between
_FIRST_PAUSE = 0.2  # seconds; doubled each time
_BUSY_PAUSE = 0.2  # seconds between looks at an ingest that a client writes itself


class Blob(Protocol):
    """Bytes on their way; `offset` is where they begin in the blob."""

    offset: int

    def __aiter__(self) -> AsyncIterator[bytes]: ...


class Source(Protocol):
    """Where an image comes from (registry.Registry)."""

    async def resolve(self) -> Descriptor: ...

    async def manifest(self, descriptor: Mapping[str, Any]) -> bytes: ...

    def fetch(
        self, descriptor: Mapping[str, Any], offset: int = 0, end: int | None = None
    ) -> AbstractAsyncContextManager[Blob]: ...


@dataclass
class _Running:
    """A blob that is being fetched, and how many of its bytes are there."""

    ended: asyncio.Event = field(default_factory=asyncio.Event)
    offset: int = 0


class Fetcher:
    """Fetches blobs into the store, each once."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content
        self._running: dict[tuple[str, str], _Running] = {}

    def offset(self, namespace: str, digest: str) -> int | None:
        """How many bytes of a blob are there while it is being fetched, else None."""
        running = self._running.get((namespace, digest))
        return running.offset if running is not None else None

    async def fetch(
        self,
        namespace: str,
        source: Source,
        descriptor: Descriptor,
        lease: str,
        labels: Mapping[str, str],
    ) -> bool:
        """Have the blob in the store, checked against digest and size; False when it was there before.

        Raises the source's errors, FailedPrecondition for other bytes than the descriptor's, which are thrown
        away, InvalidArgument for a descriptor without a size, ResourceExhausted for a full disk.
        """
        digest = str(descriptor.get("digest"))
        size = descriptor.get("size")
        if type(size) is not int or size <= 0:
            raise errdefs.InvalidArgument(
                f"unable to fetch descriptor ({digest}) which reports content size of zero: invalid argument"
            )
        place = (namespace, digest)
        waited = False
        while True:
            with contextlib.suppress(errdefs.NotFound):
                await self._content.info(namespace, digest)
                return waited
            running = self._running.get(place)
            if running is not None:
                waited = True
                await running.ended.wait()
                continue
            running = self._running[place] = _Running()
            try:
                await self._download(namespace, source, descriptor, running, lease, labels)
                return True
            except errdefs.AlreadyExists:
                return waited
            finally:
                del self._running[place]
                running.ended.set()

    async def _download(
        self,
        namespace: str,
        source: Source,
        descriptor: Descriptor,
        running: _Running,
        lease: str,
        labels: Mapping[str, str],
    ) -> None:
        ref, digest, size = ref_key(descriptor), descriptor["digest"], descriptor["size"]
        while True:
            wrong: errdefs.FailedPrecondition | None = None
            resumed = False
            try:
                async with self._content.writer(
                    namespace, ref, total=size, expected=digest, lease=lease
                ) as ingest:
                    resumed = ingest.offset > 0
                    try:
                        await self._fill(ingest, source, descriptor, running)
                        crashpoint("fetching.downloaded")
                        await self._content.commit(
                            namespace, ingest, size=size, expected=digest, wanted=labels, lease=lease
                        )
                        return
                    except errdefs.FailedPrecondition as error:
                        wrong = error
            except errdefs.Unavailable as error:
                if "locked" not in error.message:
                    raise
                await asyncio.sleep(_BUSY_PAUSE)  # a client writes it by itself
                continue
            # None of it is of use: what is kept would spoil the next try.
            with contextlib.suppress(errdefs.NotFound):
                await self._content.abort(namespace, ref)
            if not resumed:
                raise errdefs.FailedPrecondition(f'failed commit on ref "{ref}": {wrong.message}')
            # What was there before may have been damaged by a power cut.

    async def _fill(self, ingest: Ingest, source: Source, descriptor: Descriptor, running: _Running) -> None:
        """Have all bytes in the ingest. Raises FailedPrecondition for more than the descriptor's size."""
        size, failed = descriptor["size"], 0
        if ingest.offset > size:
            await ingest.restart()
        while ingest.offset < size:
            before = running.offset = ingest.offset
            try:
                await self._receive(ingest, source, descriptor, running)
                cut: errdefs.BuoyError = errdefs.Unavailable(
                    f"{descriptor['digest']}: unexpected EOF after {ingest.offset} of {size} bytes"
                )
            except errdefs.OutOfRange:
                raise errdefs.FailedPrecondition(
                    f"{descriptor['digest']} has {ingest.offset} bytes, not {size}: failed precondition"
                ) from None
            except errdefs.Unavailable as error:
                if error.detail.get("registry", "away") != "away":
                    raise
                cut = error
            if ingest.offset >= size:
                return
            failed = failed + 1 if ingest.offset <= before else 1
            if failed >= _TRIES:
                raise cut
            crashpoint("fetching.cut")
            await asyncio.sleep(_FIRST_PAUSE * 2 ** (failed - 1) * random.uniform(0.75, 1.25))

    async def _receive(
        self, ingest: Ingest, source: Source, descriptor: Descriptor, running: _Running
    ) -> None:
        """Write what one answer brings; also what came before it broke."""
        size = descriptor["size"]
        async with source.fetch(descriptor, offset=ingest.offset) as body:
            if body.offset != ingest.offset:
                await ingest.restart()  # the host gives no parts
                running.offset = 0
            waiting = bytearray()
            try:
                async for data in body:
                    waiting += data
                    if ingest.offset + len(waiting) > size:
                        waiting.clear()
                        raise errdefs.FailedPrecondition(
                            f"{descriptor['digest']} has more than {size} bytes: failed precondition"
                        )
                    if len(waiting) >= _PIECE:
                        await ingest.write(bytes(waiting))
                        waiting.clear()
                        running.offset = ingest.offset
            finally:
                if waiting:
                    await ingest.write(bytes(waiting))
                    running.offset = ingest.offset

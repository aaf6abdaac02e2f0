"""What of an image is here, byte by byte: every manifest below its target with what it needs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dockerd_api.images.blobs import Blobs
from dockerd_api.images.catalog import UNREADABLE, Catalog
from dockerd_api.images.documents import Descriptor
from dockerd_api.images.model import Manifest
from dockerd_api.images.platforms import Platform

_AT_ONCE = 32  # blobs that are asked for together


@dataclass(frozen=True)
class Part:
    """One manifest below a target. `blobs` are the manifest itself and what it names, as far as it could be
    read; `manifest` is empty when it is no image, or its documents are not here.
    """

    descriptor: Descriptor
    blobs: tuple[Descriptor, ...]
    missing: tuple[Descriptor, ...]
    manifest: Manifest | None

    @property
    def available(self) -> bool:
        """Whether everything is here."""
        return not self.missing

    @property
    def content(self) -> int:
        """Bytes of its blobs that are here."""
        gone = {blob.digest for blob in self.missing}
        return sum(blob.size for blob in self.blobs if blob.digest not in gone)

    @property
    def kind(self) -> str:
        """`image`, `attestation` or `unknown`, as the API has it."""
        if self.descriptor.attests:
            return "attestation"
        if self.descriptor.is_pseudo or (self.manifest is None and self.available):
            return "unknown"
        return "image"

    @property
    def platform(self) -> Platform:
        """As its index or its config says."""
        return self.descriptor.platform or (self.manifest.platform if self.manifest else Platform())


@dataclass(frozen=True)
class Walk:
    """All that a target leads to: indexes (the target among them, if it is one) and manifests."""

    target: Descriptor
    indexes: tuple[Descriptor, ...] = ()
    missing_indexes: tuple[Descriptor, ...] = ()
    parts: tuple[Part, ...] = field(default=())

    def present(self) -> list[Descriptor]:
        """Every blob that is here, each once."""
        gone = {blob.digest for blob in self.missing()}
        found = [*self.indexes, *(blob for part in self.parts for blob in part.blobs)]
        return list({blob.digest: blob for blob in found if blob.digest not in gone}.values())

    def missing(self) -> list[Descriptor]:
        """Every blob that is known of and not here, each once."""
        found = [*self.missing_indexes, *(blob for part in self.parts for blob in part.missing)]
        return list({blob.digest: blob for blob in found}.values())


class Walker:
    """Walks through images; what is here is asked of the content store blob by blob, or once for all."""

    def __init__(self, catalog: Catalog, blobs: Blobs) -> None:
        self._catalog = catalog
        self._blobs = blobs

    async def everything(self) -> Mapping[str, int]:
        """The digests of all blobs of the content store, with their sizes: for `walk`, when it is called for
        many.
        """
        return await self._blobs.all()

    async def walk(self, target: Descriptor, present: Mapping[str, int] | None = None) -> Walk:
        """What the target leads to. `present` as `everything` answers it."""
        indexes, missing_indexes = await self._indexes(target)
        parts = []
        for descriptor in await self._catalog.manifests(target):
            blobs = [descriptor]
            manifest = None
            try:
                config, layers = await self._catalog.manifest_parts(descriptor)
                blobs += [config, *layers]
                manifest = None if descriptor.is_pseudo else await self._catalog.manifest(descriptor)
            except UNREADABLE:
                pass
            missing = await self._missing(blobs, present)
            parts.append(Part(descriptor, tuple(blobs), tuple(missing), manifest))
        return Walk(target, tuple(indexes), tuple(missing_indexes), tuple(parts))

    async def _indexes(self, target: Descriptor) -> tuple[list[Descriptor], list[Descriptor]]:
        """The indexes, and those among them that are not here."""
        found: list[Descriptor] = []
        missing: list[Descriptor] = []
        queue = [target] if target.is_index else []
        while queue:
            descriptor = queue.pop(0)
            if descriptor.digest in {known.digest for known in found}:
                continue
            found.append(descriptor)
            try:
                below = await self._catalog.index(descriptor)
            except UNREADABLE:
                missing.append(descriptor)
                continue
            queue += [entry for entry in below if entry.is_index]
        return found, missing

    async def _missing(
        self, blobs: Sequence[Descriptor], present: Mapping[str, int] | None
    ) -> list[Descriptor]:
        if present is not None:
            return [blob for blob in blobs if blob.digest not in present]
        gate = asyncio.Semaphore(_AT_ONCE)

        async def has(blob: Descriptor) -> bool:
            async with gate:
                return await self._blobs.has(blob.digest)

        there = await asyncio.gather(*(has(blob) for blob in blobs))
        return [blob for blob, here in zip(blobs, there, strict=True) if not here]

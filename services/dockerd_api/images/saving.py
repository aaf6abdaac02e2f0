"""`docker save`: images as one archive that is an OCI layout and has Docker's manifest.json, too.

The order of its parts depends on nothing but the images, so that one image always makes one archive.
(moby daemon/containerd/image_exporter.go; image-spec image-layout.md)
"""

from __future__ import annotations

import contextlib
import json
import tarfile
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import errdefs
from pb.containerd.services.images import v1 as pb

from dockerd_api.images import documents, platforms, reference, resolution
from dockerd_api.images.blobs import Blobs
from dockerd_api.images.catalog import Catalog, familiar
from dockerd_api.images.documents import Descriptor
from dockerd_api.images.leases import Leases
from dockerd_api.images.model import Publish
from dockerd_api.images.platforms import Platform
from dockerd_api.images.reference import Reference
from dockerd_api.images.walking import Part, Walk, Walker

_BLOCK = 512  # bytes; the unit of tar
_INDEX = "application/vnd.oci.image.index.v1+json"
_NAME = "io.containerd.image.name"
_REF_NAME = "org.opencontainers.image.ref.name"
_FOREIGN = (
    "application/vnd.docker.image.rootfs.foreign.",
    "application/vnd.oci.image.layer.nondistributable.",
)


@dataclass(frozen=True)
class _Saved:
    """What one name or id leads to, under the name that the archive tells (None: none)."""

    walk: Walk
    name: Reference | None

    @property
    def target(self) -> Descriptor:
        return self.walk.target


class Saver:
    """Writes archives of images."""

    def __init__(
        self, leases: Leases, blobs: Blobs, catalog: Catalog, walker: Walker, publish: Publish
    ) -> None:
        self._leases = leases
        self._blobs = blobs
        self._catalog = catalog
        self._walker = walker
        self._publish = publish

    async def save(self, refs: Sequence[str], platform: Platform | None) -> AsyncGenerator[bytes]:
        """The archive's bytes, in pieces; the first comes when all is known to be here.

        A name without a tag means every tag of the repository, an id or a digest the image without a name;
        with `platform` only that part of each image. What is not here of an image of several platforms is
        left out. Raises NotFound, InvalidArgument.
        """
        async with self._leases.held() as lease:
            saved = [found for ref in refs for found in await self._found(ref, platform)]
            blobs: dict[str, Descriptor] = {}
            entries: dict[str, dict[str, Any]] = {}
            for each in saved:
                present = [blob for blob in each.walk.present() if not blob.media_type.startswith(_FOREIGN)]
                await self._leases.hold_blobs(lease, (blob.digest for blob in present))
                blobs |= {blob.digest: blob for blob in present}
                self._add_entry(entries, each, self._best(each.walk.parts, platform), blobs)
                await self._publish("image", "save", each.target.digest, {"name": each.target.digest})
            index = {
                "schemaVersion": 2,
                "mediaType": _INDEX,
                "manifests": [_described(each) for each in saved],
            }
            for folder in ("blobs/", *sorted({f"blobs/{digest.partition(':')[0]}/" for digest in blobs})):
                yield _header(folder, 0o755, kind=tarfile.DIRTYPE)
            for digest in sorted(blobs):
                async for piece in self._blob(blobs[digest]):
                    yield piece
            yield _file("index.json", index)
            yield _file("manifest.json", list(entries.values()))
            yield _file("oci-layout", {"imageLayoutVersion": "1.0.0"}) + bytes(2 * _BLOCK)

    async def _blob(self, blob: Descriptor) -> AsyncGenerator[bytes]:
        yield _header(_path(blob.digest), 0o444, blob.size)
        sent = 0
        async for data in self._blobs.read(blob.digest):
            sent += len(data)
            yield data
        if sent != blob.size:
            raise errdefs.DataLoss(f"{blob.digest} has {sent} bytes, not {blob.size}")
        yield bytes(-sent % _BLOCK)

    async def _found(self, ref: str, platform: Platform | None) -> list[_Saved]:
        name = None
        with contextlib.suppress(errdefs.InvalidArgument):  # an id
            name = reference.parse(ref)
        try:
            record = await resolution.find(self._catalog, ref)
        except errdefs.NotFound:
            record = None
        by_id = record is not None and _is_id(ref, documents.of_message(record.target).digest)
        if name is not None and not by_id and not name.tag and not name.digest:
            return [await self._chosen(each, platform, named=True) for each in await self._repository(name)]
        if record is None:
            record = await resolution.find(self._catalog, ref)
        named = name is not None and not by_id and not name.digest
        return [await self._chosen(record, platform, named=named)]

    async def _repository(self, name: Reference) -> list[pb.Image]:
        records = [
            record
            for record in await self._catalog.records()
            if resolution.repository(record) == name.name and reference.parse(record.name).tag
        ]
        if not records:
            raise errdefs.NotFound(f"No such image: {name.tagged().familiar}")
        return sorted(records, key=lambda record: record.name)

    async def _chosen(self, record: pb.Image, platform: Platform | None, *, named: bool) -> _Saved:
        name = reference.parse(record.name) if named else None
        target = documents.of_message(record.target)
        walk = await self._walker.walk(target)
        if platform is None:
            if not target.is_index and walk.missing():
                raise errdefs.NotFound(f"content digest {walk.missing()[0].digest}: not found")
            return _Saved(walk, name)
        part = self._best(walk.parts, platform)
        if part is None:
            raise errdefs.NotFound(
                f"no suitable export target found: image with reference {familiar(record)} was found but "
                f"does not provide the specified platform ({platform})"
            )
        return _Saved(await self._walker.walk(part.descriptor), name)

    @staticmethod
    def _best(parts: Sequence[Part], platform: Platform | None) -> Part | None:
        """The part for the platform, or for this machine, that is wholly here."""
        choice = platforms.Choice(platform)
        ranked = [
            (rank, number)
            for number, part in enumerate(parts)
            if part.available and part.kind == "image"
            for rank in [choice.rank(part.platform)]
            if rank is not None
        ]
        return parts[min(ranked)[1]] if ranked else None

    @staticmethod
    def _add_entry(
        entries: dict[str, dict[str, Any]], saved: _Saved, part: Part | None, blobs: dict[str, Descriptor]
    ) -> None:
        """The image's place in manifest.json, for those who know no index: one platform, all its names."""
        if part is None or part.manifest is None:
            return
        entry = entries.setdefault(
            part.descriptor.digest,
            {
                "Config": _path(part.manifest.config_descriptor.digest),
                "RepoTags": None,
                "Layers": [_path(layer.digest) for layer in part.manifest.layers if layer.digest in blobs],
            },
        )
        if saved.name is not None:
            entry["RepoTags"] = [*(entry["RepoTags"] or ()), saved.name.familiar]


def _is_id(ref: str, digest: str) -> bool:
    return digest.partition(":")[2].startswith(ref.removeprefix("sha256:"))


def _described(saved: _Saved) -> dict[str, Any]:
    """A descriptor in index.json: with the name by which it is loaded, or with none."""
    kept = {key: text for key, text in saved.target.annotations.items() if key not in (_NAME, _REF_NAME)}
    if saved.name is not None:
        kept |= {_NAME: str(saved.name), _REF_NAME: saved.name.tag}
    return replace(saved.target, annotations=dict(sorted(kept.items()))).document()


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _file(name: str, document: Any) -> bytes:
    data = json.dumps(document, separators=(",", ":")).encode()
    return _header(name, 0o644, len(data)) + data + bytes(-len(data) % _BLOCK)


def _header(name: str, mode: int, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.mode, member.size, member.type = mode, size, kind
    return member.tobuf(tarfile.PAX_FORMAT)

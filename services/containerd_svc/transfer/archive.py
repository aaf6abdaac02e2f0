"""Image archives: an OCI layout or what `docker save` writes, into the content store and out of it.

An archive is spooled to disk first, in a file without a name: what a client sends at its own pace holds no
thread, and an archive that turns out damaged has cost no memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import posixpath
import secrets
import tarfile
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import errdefs
from pb.containerd.types import Platform
from pb.containerd.types.transfer import ImageExportStream

from containerd_svc.content import ContentStore
from containerd_svc.images import Image
from containerd_svc.tarstream import BadArchive, Stream, decompressed, members
from containerd_svc.transfer import naming
from containerd_svc.transfer.descriptors import (
    DOCKER_CONFIG,
    DOCKER_LAYER,
    DOCKER_MANIFEST,
    INDEXES,
    LARGEST_DOCUMENT,
    MANIFESTS,
    OCI_INDEX,
    Descriptor,
    children,
    document,
    go_json,
)
from containerd_svc.transfer.platforms import matches, this_host

T = TypeVar("T")

_MOST_MEMBERS = 100_000
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_BLOCK = 512  # bytes; a tar archive's unit


@dataclass
class _Found:
    """What an archive holds: documents, blobs by the names that they have in it, links."""

    documents: dict[str, Any] = field(default_factory=dict)
    blobs: dict[str, tuple[Descriptor, bytes]] = field(default_factory=dict)  # with their first bytes
    links: dict[str, str] = field(default_factory=dict)


class Importer:
    """Reads archives into the store. `place` is a folder on the disk that the store is on."""

    def __init__(self, content: ContentStore, place: Path) -> None:
        self._content = content
        self._place = place

    async def read(self, namespace: str, archive: AsyncIterator[bytes], lease: str) -> Descriptor:
        """The descriptor of the archive's index, whose blobs are then in the store, held by the lease.

        Raises InvalidArgument for what is no image archive, ResourceExhausted for a full disk.
        """
        with contextlib.closing(self._spool()) as spool:
            async for data in archive:
                await _in_thread(partial(self._append, spool, data))
            spool.seek(0)
            try:
                found = await self._take(namespace, Stream(decompressed(spool)), lease)
            except BadArchive as error:
                raise errdefs.InvalidArgument(f"{error}: invalid argument") from error
        layout = found.documents.get("oci-layout")
        if layout is not None:
            return self._of_layout(found, layout)
        if "manifest.json" not in found.documents:
            raise errdefs.InvalidArgument("unrecognized image format: invalid argument")
        return await self._of_docker(namespace, found, lease)

    def _spool(self) -> BinaryIO:
        return cast(BinaryIO, tempfile.TemporaryFile(dir=self._place, buffering=0))

    @staticmethod
    def _append(spool: BinaryIO, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[spool.write(view) :]
        except OSError as error:
            raise errdefs.ResourceExhausted(f"cannot keep the archive: {error.strerror}") from error

    async def _take(self, namespace: str, stream: Stream, lease: str) -> _Found:
        found = _Found()
        listing = members(stream)
        for _ in range(_MOST_MEMBERS):
            member = await _in_thread(lambda: next(listing, None))
            if member is None:
                return found
            name = posixpath.normpath(member.name)
            if member.issym():
                found.links[name] = posixpath.normpath(
                    posixpath.join(posixpath.dirname(member.name), member.linkname)
                )
            elif not member.isreg():
                continue
            elif name in ("oci-layout", "manifest.json"):
                found.documents[name] = await _in_thread(partial(_json, stream, member, name))
            else:
                found.blobs[name] = await self._blob(namespace, name, stream.chunks(member.size), lease=lease)
        raise errdefs.InvalidArgument(f"more than {_MOST_MEMBERS} files in an archive: invalid argument")

    async def _blob(
        self, namespace: str, name: str, pieces: Iterator[bytes], *, lease: str
    ) -> tuple[Descriptor, bytes]:
        """Store a blob; its descriptor, without a media type, and its first bytes."""
        ref = f"import-{secrets.token_hex(8)}-{name[-200:]}"
        first = b""
        try:
            async with self._content.writer(namespace, ref, lease=lease) as ingest:
                while (piece := await _in_thread(lambda: next(pieces, None))) is not None:
                    first = first or piece[:8]
                    await ingest.write(piece)
                described = {"mediaType": "", "digest": ingest.digest, "size": ingest.offset}
                with contextlib.suppress(errdefs.AlreadyExists):
                    await self._content.commit(namespace, ingest, wanted={}, lease=lease)
        except BaseException:
            with contextlib.suppress(errdefs.BuoyError):
                await self._content.abort(namespace, ref)
            raise
        return described, first

    @staticmethod
    def _of_layout(found: _Found, layout: Any) -> Descriptor:
        version = layout.get("imageLayoutVersion") if isinstance(layout, dict) else None
        if version != "1.0.0":
            raise errdefs.InvalidArgument(f"unsupported OCI version {version}: invalid argument")
        if "index.json" not in found.blobs:
            raise errdefs.InvalidArgument("missing index.json in OCI layout 1.0.0: invalid argument")
        return {**found.blobs["index.json"][0], "mediaType": OCI_INDEX}

    async def _of_docker(self, namespace: str, found: _Found, lease: str) -> Descriptor:
        """Make the manifests and the index that `docker save` leaves out."""
        for name, target in found.links.items():
            if target not in found.blobs:
                raise errdefs.InvalidArgument(
                    f'no target for symlink layer from "{name}" to "{target}": invalid argument'
                )
            found.blobs[name] = found.blobs[target]
        listed: list[Descriptor] = []
        for config_name, tags, layer_names in _docker_images(found.documents["manifest.json"]):
            config = {**_blob_called(found, config_name, "image config")[0], "mediaType": DOCKER_CONFIG}
            layers = []
            for name in layer_names:
                layer, first = _blob_called(found, name, "layer")
                packed = first.startswith((_GZIP, _ZSTD))
                layers.append({**layer, "mediaType": f"{DOCKER_LAYER}.gzip" if packed else DOCKER_LAYER})
            manifest = {
                "schemaVersion": 2,
                "mediaType": DOCKER_MANIFEST,
                "config": config,
                "layers": layers,
            }
            made = {**await self._made(namespace, manifest, lease), "mediaType": DOCKER_MANIFEST}
            platform = _platform(await document(self._content, namespace, config))
            names = [naming.normal(tag) for tag in tags]
            for name in names or [""]:
                annotations = {"annotations": {naming.WHOLE_NAME: name, naming.REF_NAME: naming.tag_of(name)}}
                listed.append({**made, **(annotations if name else {}), **platform})
        index = await self._made(namespace, {"schemaVersion": 2, "manifests": listed}, lease)
        return {**index, "mediaType": OCI_INDEX}

    async def _made(self, namespace: str, value: Mapping[str, Any], lease: str) -> Descriptor:
        return (await self._blob(namespace, "manifest", iter([go_json(value)]), lease=lease))[0]


class Exporter:
    """Writes images of the store as an archive that both containerd and Docker read."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content

    async def write(
        self, namespace: str, images: Sequence[Image], wanted: ImageExportStream
    ) -> AsyncIterator[bytes]:
        """The archive's bytes. Raises NotFound for content that is missing, InvalidArgument."""
        platforms = [] if wanted.all_platforms else (list(wanted.platforms) or [this_host()])
        blobs: dict[str, Descriptor] = {}
        tagged: dict[str, tuple[Descriptor, list[str]]] = {}
        for image in images:
            target = _of_image(image)
            chosen = await self._collect(namespace, target, platforms, wanted, blobs)
            if not chosen:
                raise errdefs.NotFound(f"no manifest of {image.name} found for the platform: not found")
            tagged.setdefault(chosen[0]["digest"], (chosen[0], []))[1].append(image.name)
        index = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [_named(_of_image(image), image.name) for image in images],
        }
        small = {"oci-layout": go_json({"imageLayoutVersion": "1.0.0"}), "index.json": go_json(index)}
        if not wanted.skip_compatibility_manifest:
            listed = [await self._docker(namespace, *each) for each in tagged.values()]
            small["manifest.json"] = go_json(listed)
        algorithms = sorted({digest.partition(":")[0] for digest in blobs})
        for folder in ("blobs/", *(f"blobs/{each}/" for each in algorithms)):
            yield _header(folder, 0o755, kind=tarfile.DIRTYPE)
        for digest in sorted(blobs):
            size = (await self._content.info(namespace, digest)).size
            yield _header(_path(digest), 0o444, size)
            hashed = hashlib.new(digest.partition(":")[0])
            async for _, data in self._content.read(namespace, digest):
                hashed.update(data)
                yield data
            if hashed.hexdigest() != digest.partition(":")[2]:
                raise errdefs.DataLoss(f"content {digest} is damaged")
            yield bytes(-size % _BLOCK)
        for name, data in sorted(small.items()):
            yield _header(name, 0o444 if name == "oci-layout" else 0o644, len(data))
            yield data + bytes(-len(data) % _BLOCK)
        yield bytes(2 * _BLOCK)

    async def _collect(
        self,
        namespace: str,
        descriptor: Descriptor,
        platforms: Sequence[Platform],
        wanted: ImageExportStream,
        blobs: dict[str, Descriptor],
    ) -> list[Descriptor]:
        """Add the blob and all below it; the manifests among them that are for the platforms."""
        kind = descriptor["mediaType"]
        if kind not in (*INDEXES, *MANIFESTS):
            raise errdefs.InvalidArgument("only manifests may be exported: invalid argument")
        blobs[descriptor["digest"]] = descriptor
        below = [each for _, each in await children(self._content, namespace, descriptor)]
        if kind in MANIFESTS:
            for each in below:
                if wanted.skip_non_distributable and "foreign" in str(each.get("mediaType")):
                    continue
                blobs[each["digest"]] = each
            return [descriptor]
        found = []
        for each in below:
            if matches(platforms, each.get("platform")):
                found += await self._collect(namespace, each, platforms, wanted, blobs)
        return found

    async def _docker(self, namespace: str, manifest: Descriptor, names: Sequence[str]) -> dict[str, Any]:
        """One entry of manifest.json."""
        config, *layers = [each for _, each in await children(self._content, namespace, manifest)]
        return {
            "Config": _path(config["digest"]),
            "RepoTags": [naming.familiar(name) for name in names],
            "Layers": [_path(layer["digest"]) for layer in layers],
        }


def _of_image(image: Image) -> Descriptor:
    target = image.target
    annotations = {"annotations": dict(sorted(target.annotations.items()))} if target.annotations else {}
    return {"mediaType": target.media_type, "digest": target.digest, "size": target.size, **annotations}


def _named(descriptor: Descriptor, name: str) -> Descriptor:
    annotations = {
        **descriptor.get("annotations", {}),
        naming.WHOLE_NAME: name,
        naming.REF_NAME: naming.tag_of(name),
    }
    return {**descriptor, "annotations": dict(sorted(annotations.items()))}


def _path(digest: str) -> str:
    return "blobs/" + digest.replace(":", "/")


def _header(name: str, mode: int, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.mode, member.size, member.type = mode, size, kind
    return member.tobuf(tarfile.PAX_FORMAT)


def _json(stream: Stream, member: tarfile.TarInfo, name: str) -> Any:
    if member.size > LARGEST_DOCUMENT:
        raise BadArchive(f"{name} has {member.size} bytes")
    try:
        return json.loads(b"".join(stream.chunks(member.size)))
    except (ValueError, RecursionError) as error:
        raise BadArchive(f"untar {name}: no JSON") from error


def _docker_images(listed: Any) -> Iterator[tuple[str, list[str], list[str]]]:
    """Config's name, tags and layers' names of each image in a manifest.json."""
    if not isinstance(listed, list):
        raise errdefs.InvalidArgument("manifest.json is no list: invalid argument")
    for each in listed:
        entry = each if isinstance(each, dict) else {}
        config, tags, layers = entry.get("Config"), entry.get("RepoTags") or [], entry.get("Layers") or []
        words = (config, *tags, *layers) if isinstance(tags, list) and isinstance(layers, list) else (None,)
        if not all(isinstance(word, str) for word in words):
            raise errdefs.InvalidArgument("manifest.json: an entry is malformed: invalid argument")
        yield str(config), tags, layers


def _blob_called(found: _Found, name: str, what: str) -> tuple[Descriptor, bytes]:
    try:
        return found.blobs[posixpath.normpath(name)]
    except KeyError:
        raise errdefs.InvalidArgument(f'{what} "{name}" not found: invalid argument') from None


def _platform(config: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("architecture", "os", "os.version", "variant")
    found = {key: str(config[key]) for key in keys if config.get(key)}
    return {"platform": found} if found.get("os") and found.get("architecture") else {}


async def _in_thread(work: Callable[[], T]) -> T:
    return await asyncio.to_thread(work)

"""What an uploaded archive holds: the images of `docker save` (manifest.json, or `repositories` before it) or
of an OCI layout (index.json).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import errdefs

from dockerd_api.images import documents, reference
from dockerd_api.images.blobs import DOCUMENT_LIMIT, digest_of
from dockerd_api.images.reference import Reference
from dockerd_api.images.spool import Piece, Spool

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MOST_LAYERS = 127  # as the kernel's overlayfs and the real engine have it
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_NAME = "io.containerd.image.name"
_REF_NAME = "org.opencontainers.image.ref.name"


@dataclass(frozen=True)
class ArchivedLayer:
    """A layer in the spool: its data, the digest of its uncompressed tar, and its own digest where it is
    known.
    """

    piece: Piece
    diff_id: str
    digest: str = ""


@dataclass(frozen=True)
class ArchivedImage:
    """An image to be loaded. `manifest` is empty when the archive has none and one must be made."""

    config: bytes
    document: Mapping[str, Any]
    layers: tuple[ArchivedLayer, ...]
    tags: tuple[Reference, ...]
    manifest: bytes = b""

    @property
    def id(self) -> str:
        """The digest of the config."""
        return digest_of(self.config)


def read_document(spool: Spool, name: str) -> Any:
    """The JSON document `name`, or None when the archive has none. Raises InvalidArgument. Blocks."""
    piece = spool.piece(name)
    return None if piece is None else _document(spool, piece, name)


def read(spool: Spool, architecture: str) -> list[ArchivedImage]:
    """The images, all checked as far as their documents tell. Raises InvalidArgument. Blocks."""
    index = spool.piece("index.json")
    if index is not None and spool.piece("oci-layout") is not None:
        return _oci_images(spool, _document(spool, index, "index.json"), architecture)
    manifest = spool.piece("manifest.json")
    if manifest is not None:
        return _docker_images(spool, _document(spool, manifest, "manifest.json"))
    raise errdefs.InvalidArgument("invalid archive: does not contain a manifest.json")


def parse_config(data: bytes) -> dict[str, Any]:
    """An image's config, checked. Raises InvalidArgument."""
    config = _parse(data, "image config")
    if not isinstance(config, dict):
        raise errdefs.InvalidArgument("invalid image config: not an object")
    rootfs = config.get("rootfs")
    if not isinstance(rootfs, dict):
        raise errdefs.InvalidArgument("invalid image JSON, no RootFS key")
    diff_ids = rootfs.get("diff_ids") or []
    if not isinstance(diff_ids, list) or not all(
        isinstance(diff_id, str) and _DIGEST.fullmatch(diff_id) for diff_id in diff_ids
    ):
        raise errdefs.InvalidArgument("invalid image config: diff_ids are not digests")
    if len(diff_ids) > MOST_LAYERS:
        raise errdefs.InvalidArgument("max depth exceeded")
    for key, kind in (("config", dict), ("history", list), ("created", str), ("architecture", str)):
        if config.get(key) is not None and not isinstance(config[key], kind):
            raise errdefs.InvalidArgument(f"invalid image config: {key} has the wrong type")
    system = config.get("os") or "linux"
    if system != "linux":
        raise errdefs.InvalidArgument(f"cannot load {system} image on linux")
    return config


def diff_ids_of(config: Mapping[str, Any]) -> list[str]:
    """The uncompressed digests of a checked config's layers."""
    return list(config["rootfs"].get("diff_ids") or [])


def _docker_images(spool: Spool, manifest: Any) -> list[ArchivedImage]:
    if manifest is None:
        raise errdefs.InvalidArgument("invalid manifest, manifest cannot be null (but can be [])")
    if not isinstance(manifest, list):
        raise errdefs.InvalidArgument("invalid archive: manifest.json is not a list")
    return [_docker_image(spool, entry) for entry in manifest]


def _docker_image(spool: Spool, entry: Any) -> ArchivedImage:
    if not isinstance(entry, dict) or not isinstance(entry.get("Config"), str):
        raise errdefs.InvalidArgument("invalid archive: manifest.json names no config")
    names, tags = entry.get("Layers") or [], entry.get("RepoTags") or []
    if not all(isinstance(name, str) for name in [*names, *tags]):
        raise errdefs.InvalidArgument("invalid archive: manifest.json has names that are no strings")
    references = [_tag(tag) for tag in tags]
    config = spool.read(_file(spool, entry["Config"]), DOCUMENT_LIMIT, entry["Config"])
    document = parse_config(config)
    diff_ids = diff_ids_of(document)
    if len(names) != len(diff_ids):
        raise errdefs.InvalidArgument(
            f"invalid manifest, layers length mismatch: expected {len(names)}, got {len(diff_ids)}"
        )
    layers = [
        ArchivedLayer(_file(spool, name), diff_id) for name, diff_id in zip(names, diff_ids, strict=True)
    ]
    return ArchivedImage(config, document, tuple(layers), tuple(references))


def _oci_images(spool: Spool, index: Any, architecture: str) -> list[ArchivedImage]:
    found = []
    if isinstance(index, dict) and any(index.get(key) for key in ("layers", "config")):
        raise errdefs.InvalidArgument("invalid archive: index.json is an index and a manifest at once")
    for descriptor in _descriptors(index, "manifests", "index.json"):
        annotations = descriptor.get("annotations") or {}
        name = annotations.get(_NAME) or annotations.get(_REF_NAME) or ""
        tags = (_tag(name),) if "/" in name or ":" in name else ()
        chosen = _chosen(spool, descriptor, architecture)
        if chosen is not None:
            found.append(_oci_image(spool, chosen, tags))
    return found


def _chosen(spool: Spool, descriptor: Mapping[str, Any], architecture: str) -> Mapping[str, Any] | None:
    """The manifest for this machine behind a descriptor that may be an index; None for an attestation."""
    if descriptor.get("mediaType") not in _INDEXES:
        return None if _is_attestation(descriptor) else descriptor
    digest = descriptor["digest"]
    data = _blob(spool, digest)
    documents.index(data, documents.descriptor(descriptor, "index.json"))
    below = _descriptors(_parse(data, digest), "manifests", digest)
    images = [entry for entry in below if not _is_attestation(entry)]
    for entry in images:
        platform = entry.get("platform") or {}
        if platform.get("os", "linux") == "linux" and platform.get("architecture") == architecture:
            return entry
    if len(images) == 1:
        return images[0]
    raise errdefs.InvalidArgument(f"invalid archive: {digest} has no image for linux/{architecture}")


def _is_attestation(descriptor: Mapping[str, Any]) -> bool:
    annotations = descriptor.get("annotations") or {}
    return annotations.get("vnd.docker.reference.type") == "attestation-manifest"


def _oci_image(spool: Spool, descriptor: Mapping[str, Any], tags: tuple[Reference, ...]) -> ArchivedImage:
    data = _blob(spool, descriptor["digest"])
    documents.manifest(data, documents.descriptor(descriptor, "index.json"))
    manifest = _parse(data, descriptor["digest"])
    if not isinstance(manifest, dict) or not isinstance(manifest.get("config"), dict):
        raise errdefs.InvalidArgument(f"invalid archive: {descriptor['digest']} is no image manifest")
    config = _blob(spool, _digest(manifest["config"]))
    document = parse_config(config)
    layers = _descriptors(manifest, "layers", descriptor["digest"])
    diff_ids = diff_ids_of(document)
    if len(layers) != len(diff_ids):
        raise errdefs.InvalidArgument(
            f"invalid manifest, layers length mismatch: expected {len(layers)}, got {len(diff_ids)}"
        )
    archived = [
        ArchivedLayer(_file(spool, _blob_name(layer["digest"])), diff_id, layer["digest"])
        for layer, diff_id in zip(layers, diff_ids, strict=True)
    ]
    return ArchivedImage(config, document, tuple(archived), tags, data)


def _descriptors(document: Any, key: str, where: str) -> Sequence[Mapping[str, Any]]:
    entries = document.get(key) if isinstance(document, dict) else None
    if not isinstance(entries, list):
        raise errdefs.InvalidArgument(f"invalid archive: {where} has no {key}")
    for entry in entries:
        _digest(entry)
    return entries


def _digest(descriptor: Any) -> str:
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise errdefs.InvalidArgument(f"invalid archive: {str(digest)[:100]!r} is no digest")
    return digest


def _blob_name(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _blob(spool: Spool, digest: str) -> bytes:
    data = spool.read(_file(spool, _blob_name(digest)), DOCUMENT_LIMIT, digest)
    if digest_of(data) != digest:
        raise errdefs.InvalidArgument(f"invalid archive: {_blob_name(digest)} has another digest")
    return data


def _file(spool: Spool, name: str) -> Piece:
    piece = spool.piece(name)
    if piece is None:
        raise errdefs.InvalidArgument(f"invalid archive: {name[:200]}: no such file")
    return piece


def _document(spool: Spool, piece: Piece, name: str) -> Any:
    return _parse(spool.read(piece, DOCUMENT_LIMIT, name), name)


def _parse(data: bytes, what: str) -> Any:
    try:
        return json.loads(data, object_pairs_hook=documents.unique_keys)
    except (ValueError, RecursionError) as error:
        raise errdefs.InvalidArgument(f"invalid archive: failed to decode {what}: {error}") from error


def _tag(text: str) -> Reference:
    tag = reference.parse(text)
    if not tag.tag or tag.digest:
        raise errdefs.InvalidArgument(f'invalid tag "{text}"')
    return tag

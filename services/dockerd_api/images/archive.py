"""What an uploaded archive holds that has a manifest.json and is no OCI layout: what `docker save` wrote
before Docker 25.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import errdefs

from dockerd_api.images import documents, reference
from dockerd_api.images.blobs import DOCUMENT_LIMIT
from dockerd_api.images.reference import Reference
from dockerd_api.images.spool import Piece, Spool


@dataclass(frozen=True)
class ArchivedLayer:
    """A layer in the spool: its data, and the digest of its uncompressed tar."""

    piece: Piece
    diff_id: str


@dataclass(frozen=True)
class ArchivedImage:
    """An image to be loaded, for which a manifest must be made."""

    config: bytes
    document: Mapping[str, Any]
    layers: tuple[ArchivedLayer, ...]
    tags: tuple[Reference, ...]


def read_document(spool: Spool, name: str) -> Any:
    """The JSON document `name`, or None when the archive has none. Raises InvalidArgument. Blocks."""
    piece = spool.piece(name)
    return None if piece is None else _document(spool, piece, name)


def read(spool: Spool) -> list[ArchivedImage]:
    """The images, all checked as far as their documents tell. Raises InvalidArgument. Blocks."""
    manifest = spool.piece("manifest.json")
    if manifest is not None:
        return _docker_images(spool, _document(spool, manifest, "manifest.json"))
    raise errdefs.InvalidArgument("invalid archive: does not contain a manifest.json")


def parse_config(data: bytes) -> dict[str, Any]:
    """An image's config, checked, of an image that runs here. Raises InvalidArgument."""
    config = documents.config(data)
    system = config.get("os") or "linux"
    if system != "linux":
        raise errdefs.InvalidArgument(f"cannot load {system} image on linux")
    return config


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
    references = [reference.parse_tag(tag) for tag in tags]
    config = spool.read(_file(spool, entry["Config"]), DOCUMENT_LIMIT, entry["Config"])
    document = parse_config(config)
    diff_ids = documents.diff_ids(document)
    if len(names) != len(diff_ids):
        raise errdefs.InvalidArgument(
            f"invalid manifest, layers length mismatch: expected {len(names)}, got {len(diff_ids)}"
        )
    layers = [
        ArchivedLayer(_file(spool, name), diff_id) for name, diff_id in zip(names, diff_ids, strict=True)
    ]
    return ArchivedImage(config, document, tuple(layers), tuple(references))


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

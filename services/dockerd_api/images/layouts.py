"""What an uploaded OCI layout holds: every image whole, with all its platforms and attestations, so that it
is kept as it is (image-spec image-layout.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import errdefs

from dockerd_api.images import documents, platforms, reference
from dockerd_api.images.blobs import DOCUMENT_LIMIT, digest_of
from dockerd_api.images.documents import Descriptor
from dockerd_api.images.model import Layer, chain_ids
from dockerd_api.images.platforms import Choice, Platform
from dockerd_api.images.reference import Reference
from dockerd_api.images.spool import Piece, Spool

_NAME = "io.containerd.image.name"
_REF_NAME = "org.opencontainers.image.ref.name"
_DEEPEST = 4  # indexes in indexes


@dataclass(frozen=True)
class Document:
    """An index or a manifest; `below` is what it names and the archive has, under the labels that hold it."""

    descriptor: Descriptor
    data: bytes
    below: Mapping[str, Descriptor]


@dataclass
class Layout:
    """One image. `documents` come after those that they name; `blobs` are its configs and layers."""

    target: Descriptor
    tag: Reference | None
    documents: dict[str, Document] = field(default_factory=dict)
    blobs: dict[str, tuple[Descriptor, Piece]] = field(default_factory=dict)
    # What is unpacked of it: the digest of its config, and its layers.
    config: str = ""
    layers: tuple[Layer, ...] = ()

    @property
    def chain_id(self) -> str:
        """The snapshot of all layers; empty for none."""
        return (chain_ids([layer.diff_id for layer in self.layers]) or [""])[-1]


def read(spool: Spool, index: Piece, platform: Platform | None = None) -> list[Layout]:
    """The images that `index.json` names, all checked as far as their documents tell. What of an index the
    archive does not have is left out; with `platform`, so is what is for another one.

    Raises InvalidArgument, and NotFound for an image that is not there for the platform. Blocks.
    """
    choice = platforms.Choice(platform)
    top = documents.parse(spool.read(index, DOCUMENT_LIMIT, "index.json"), "index.json")
    if any(top.get(key) for key in ("layers", "config", "fsLayers")):
        raise errdefs.InvalidArgument("invalid archive: index.json is an index and a manifest at once")
    if not isinstance(top.get("manifests"), list):
        raise errdefs.InvalidArgument("invalid archive: index.json has no manifests")
    return [_layout(spool, entry, choice) for entry in documents.entries(top, "manifests", "index.json")]


def _layout(spool: Spool, entry: Descriptor, choice: Choice) -> Layout:
    name = entry.annotations.get(_NAME) or entry.annotations.get(_REF_NAME) or ""
    layout = Layout(_unnamed(entry), reference.parse_tag(name) if "/" in name or ":" in name else None)
    if spool.piece(_path(entry.digest)) is None:
        raise errdefs.InvalidArgument(f"invalid archive: {_path(entry.digest)}: no such file")
    _walk(spool, layout, entry, choice, 0)
    _choose(spool, layout, choice)
    if choice.wanted is not None and not layout.config:
        what = layout.tag.familiar if layout.tag is not None else entry.digest
        raise errdefs.NotFound(f"image {what} doesn't provide the requested platform ({choice.wanted})")
    return layout


def _walk(spool: Spool, layout: Layout, descriptor: Descriptor, choice: Choice, depth: int) -> None:
    if descriptor.digest in layout.documents:
        return
    if depth > _DEEPEST:
        raise errdefs.InvalidArgument(f"invalid archive: indexes nested more than {_DEEPEST} times")
    data = _document(spool, descriptor)
    below: dict[str, Descriptor] = {}
    if descriptor.is_index:
        for number, each in enumerate(documents.index(data, descriptor)):
            if spool.piece(_path(each.digest)) is None or (each.is_manifest and not _suits(each, choice)):
                continue
            below[f"containerd.io/gc.ref.content.m.{number}"] = each
            if each.is_index or each.is_manifest:
                _walk(spool, layout, each, choice, depth + 1)
            else:
                _add_blob(spool, layout, each)
    elif descriptor.is_manifest:
        config, layers = documents.manifest(data, descriptor)
        below["containerd.io/gc.ref.content.config"] = config
        below |= {f"containerd.io/gc.ref.content.l.{number}": each for number, each in enumerate(layers)}
        for each in below.values():
            _add_blob(spool, layout, each)
    else:
        raise errdefs.InvalidArgument(
            f"invalid archive: {descriptor.digest} is neither index nor manifest, "
            f"but {descriptor.media_type[:100]!r}"
        )
    layout.documents[descriptor.digest] = Document(descriptor, data, below)


def _add_blob(spool: Spool, layout: Layout, descriptor: Descriptor) -> None:
    piece = spool.piece(_path(descriptor.digest))
    if piece is None:
        raise errdefs.InvalidArgument(f"invalid archive: {_path(descriptor.digest)}: no such file")
    if piece.size != descriptor.size:
        raise errdefs.InvalidArgument(
            f"invalid archive: {_path(descriptor.digest)} has {piece.size} bytes, not {descriptor.size}"
        )
    layout.blobs[descriptor.digest] = (descriptor, piece)


def _choose(spool: Spool, layout: Layout, choice: Choice) -> None:
    """Check every image's config, and find what is wanted, or what this machine runs."""
    best: int | None = None
    for document in layout.documents.values():
        if not document.descriptor.is_manifest or document.descriptor.is_pseudo:
            continue
        config_descriptor, layers = documents.manifest(document.data, document.descriptor)
        if layers and not any(layer.is_layer for layer in layers):
            continue  # no image, but something else that is kept in the way of one
        config = documents.config(_document(spool, config_descriptor), config_descriptor.digest)
        diff_ids = documents.diff_ids(config)
        if len(layers) != len(diff_ids):
            raise errdefs.InvalidArgument(
                f"invalid manifest, layers length mismatch: expected {len(layers)}, got {len(diff_ids)}"
            )
        platform = document.descriptor.platform or _platform(config)
        rank = choice.rank(platform)
        if rank is None or not (choice.wanted or platforms.runs_here(platform)):
            continue
        if best is not None and best <= rank:
            continue
        best = rank
        layout.config = config_descriptor.digest
        layout.layers = tuple(
            Layer(layer.media_type, layer.digest, layer.size, diff_id)
            for layer, diff_id in zip(layers, diff_ids, strict=True)
        )


def _suits(manifest: Descriptor, choice: Choice) -> bool:
    """Whether it is to be loaded: without a wish everything is; one that says no platform may be wanted."""
    if choice.wanted is None or manifest.platform is None:
        return True
    return choice.rank(manifest.platform) is not None


def _platform(config: Mapping[str, Any]) -> Platform:
    """A config that says nothing is of this machine's kind."""
    said = platforms.from_document(config)
    here = platforms.host()
    return said if said.architecture else Platform(said.os or here.os, here.architecture)


def _document(spool: Spool, descriptor: Descriptor) -> bytes:
    piece = spool.piece(_path(descriptor.digest))
    if piece is None:
        raise errdefs.InvalidArgument(f"invalid archive: {_path(descriptor.digest)}: no such file")
    data = spool.read(piece, DOCUMENT_LIMIT, descriptor.digest)
    algorithm = descriptor.digest.partition(":")[0]
    if digest_of(data, algorithm) != descriptor.digest:
        raise errdefs.InvalidArgument(f"invalid archive: {_path(descriptor.digest)} has another digest")
    return data


def _unnamed(entry: Descriptor) -> Descriptor:
    """The target of image records: what index.json says of names is no part of the image."""
    kept = {key: text for key, text in entry.annotations.items() if key not in (_NAME, _REF_NAME)}
    return Descriptor(entry.media_type, entry.digest, entry.size, kept)


def _path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"

"""Archives that `docker save` wrote before Docker 1.10: `repositories`, and a folder `<id>/` for each layer
with its `json` and `layer.tar`. Their images had no config of today's kind, so that one is made, as the real
engine makes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import errdefs

from dockerd_api.images import reference
from dockerd_api.images.archive import ArchivedImage, ArchivedLayer, parse_config
from dockerd_api.images.blobs import DOCUMENT_LIMIT
from dockerd_api.images.documents import MOST_LAYERS
from dockerd_api.images.reference import Reference
from dockerd_api.images.spool import Piece, Spool

_ID = re.compile(r"[0-9a-f]{64}")
# What only the old form has, or what the new form says elsewhere.
_DROPPED = ("id", "parent", "Size", "parent_id", "layer_id", "throwaway")


def read(spool: Spool, repositories: Any) -> list[ArchivedImage]:
    """The images that `repositories` names. Raises InvalidArgument. Blocks: every layer is hashed."""
    tags: dict[str, list[Reference]] = {}
    if not isinstance(repositories, dict):
        raise errdefs.InvalidArgument("invalid archive: repositories is not an object")
    for repository, names in repositories.items():
        if not isinstance(names, dict):
            raise errdefs.InvalidArgument(f"invalid archive: {repository[:200]} has no tags")
        for tag, image in names.items():
            name = reference.parse_repository(repository, tag)
            if name is None or not isinstance(image, str) or not _ID.fullmatch(image):
                raise errdefs.InvalidArgument(
                    f"invalid archive: {repository[:200]}:{tag[:128]} names no image"
                )
            tags.setdefault(image, []).append(name)
    return [_image(spool, image, tuple(names)) for image, names in tags.items()]


def _image(spool: Spool, image: str, tags: tuple[Reference, ...]) -> ArchivedImage:
    documents = _ancestry(spool, image)
    layers, history = [], []
    for name, document in documents:
        empty = document.get("throwaway") is True
        step = {
            "created": document.get("created"),
            "created_by": _command(document),
            "author": document.get("author"),
            "comment": document.get("comment"),
            "empty_layer": empty or None,
        }
        history.append({key: value for key, value in step.items() if value})
        if not empty:
            piece = _file(spool, f"{name}/layer.tar")
            layers.append(ArchivedLayer(piece, spool.uncompressed_digest(piece)))
    config = {key: value for key, value in documents[-1][1].items() if key not in _DROPPED}
    config.setdefault("os", "linux")
    config["history"] = history
    config["rootfs"] = {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]}
    data = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    return ArchivedImage(data, parse_config(data), tuple(layers), tags)


def _ancestry(spool: Spool, image: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The image and those below it, the lowest first."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    name: Any = image
    while name:
        if not isinstance(name, str) or not _ID.fullmatch(name):
            raise errdefs.InvalidArgument(f"invalid archive: {str(name)[:100]!r} is no image id")
        if len(found) > MOST_LAYERS:  # also where the parents go round in a circle
            raise errdefs.InvalidArgument("max depth exceeded")
        data = spool.read(_file(spool, f"{name}/json"), DOCUMENT_LIMIT, f"{name}/json")
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise errdefs.InvalidArgument(
                f"invalid archive: failed to decode {name}/json: {error}"
            ) from error
        if not isinstance(document, dict):
            raise errdefs.InvalidArgument(f"invalid archive: {name}/json is not an object")
        found.append((name, document))
        name = document.get("parent")
    return found[::-1]


def _command(document: Mapping[str, Any]) -> str:
    container = document.get("container_config")
    words = container.get("Cmd") if isinstance(container, dict) else None
    return " ".join(map(str, words)) if isinstance(words, list) else ""


def _file(spool: Spool, name: str) -> Piece:
    piece = spool.piece(name)
    if piece is None:
        raise errdefs.InvalidArgument(f"invalid archive: {name[:200]}: no such file")
    return piece

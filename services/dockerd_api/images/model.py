"""What an image is, once its manifest and config have been read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Labels on our image records in containerd: bytes of the files that each layer brings, in order,
# comma-separated.
LAYER_SIZES = "dev.buoy.layer-sizes"
# An image without a name keeps a record of this name, so that its blobs are held.
DANGLING = "moby-dangling@"


@dataclass(frozen=True)
class Layer:
    """One layer as a manifest describes it: the blob, and the digest of its tar once it is uncompressed."""

    media_type: str
    digest: str
    size: int
    diff_id: str


@dataclass(frozen=True)
class Image:
    """One image; `id` is the digest of its config, `chain_id` names the snapshot of all its layers (empty for
    none).

    `size` is the bytes of all files in its layers; `tagged_at` seconds since 1970 (0: never).
    """

    id: str
    manifest_digest: str
    repo_tags: tuple[str, ...]
    repo_digests: tuple[str, ...]
    config: Mapping[str, Any]
    chain_id: str
    size: int
    created: str
    architecture: str
    os: str
    layers: tuple[Layer, ...] = ()
    layer_sizes: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    tagged_at: float = 0.0


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain id of each layer with those below it (OCI image-spec config.md, Layer ChainID)."""
    chain: list[str] = []
    for diff_id in diff_ids:
        if not chain:
            chain.append(diff_id)
        else:
            chain.append("sha256:" + hashlib.sha256(f"{chain[-1]} {diff_id}".encode()).hexdigest())
    return chain

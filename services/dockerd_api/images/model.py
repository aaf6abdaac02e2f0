"""What an image is: the target of image records, and below it the manifest that this machine runs."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dockerd_api.images.documents import Descriptor
from dockerd_api.images.platforms import Platform

# An image without a name keeps a record of this name, so that its blobs are held.
DANGLING = "moby-dangling@"
# Label of a record: the image that the classic builder made this one from.
PARENT = "org.mobyproject.image.parent"

# Tells an event: (type, action, id, attributes).
Publish = Callable[[str, str, str, dict[str, str]], Awaitable[None]]


@dataclass(frozen=True)
class Layer:
    """One layer as a manifest describes it: the blob, and the digest of its tar once it is uncompressed."""

    media_type: str
    digest: str
    size: int
    diff_id: str


@dataclass(frozen=True)
class Manifest:
    """The image of one platform, its config read."""

    descriptor: Descriptor
    config_descriptor: Descriptor
    config: Mapping[str, Any]
    layers: tuple[Layer, ...]
    platform: Platform

    @property
    def chains(self) -> list[str]:
        """The names of its snapshots, the lowest first."""
        return chain_ids([layer.diff_id for layer in self.layers])


@dataclass(frozen=True)
class Image:
    """All records with one target. `id` is the target's digest.

    `names` are the records' in containerd, `repo_tags` and `repo_digests` as Docker shows them. `manifest` is
    the one for this machine or for the platform that was asked for; None when it is not here, and then the
    properties that come from it are empty. Times are seconds since 1970, 0: never.
    """

    target: Descriptor
    names: tuple[str, ...] = ()
    repo_tags: tuple[str, ...] = ()
    repo_digests: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    manifest: Manifest | None = None
    created_at: float = 0.0
    tagged_at: float = 0.0

    @property
    def id(self) -> str:
        return self.target.digest

    @property
    def platform(self) -> Platform:
        """The manifest's."""
        return self.manifest.platform if self.manifest else Platform()

    @property
    def config(self) -> Mapping[str, Any]:
        return self.manifest.config if self.manifest else {}

    @property
    def layers(self) -> tuple[Layer, ...]:
        return self.manifest.layers if self.manifest else ()

    @property
    def chain_id(self) -> str:
        """The snapshot of all layers; empty for none."""
        chains = self.manifest.chains if self.manifest else []
        return chains[-1] if chains else ""

    @property
    def created(self) -> str:
        return str(self.config.get("created") or "")

    @property
    def architecture(self) -> str:
        return str(self.config.get("architecture") or "")

    @property
    def os(self) -> str:
        return str(self.config.get("os") or ("linux" if self.manifest else ""))


def chain_ids(diff_ids: Sequence[str]) -> list[str]:
    """The chain id of each layer with those below it (OCI image-spec config.md, Layer ChainID)."""
    chain: list[str] = []
    for diff_id in diff_ids:
        if not chain:
            chain.append(diff_id)
        else:
            chain.append("sha256:" + hashlib.sha256(f"{chain[-1]} {diff_id}".encode()).hexdigest())
    return chain

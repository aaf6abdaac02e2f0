"""What images are made of, as OCI's image-spec and Docker's schema 2 write it: descriptors, indexes,
manifests and configs. Whatever could be read in two ways is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import errdefs
from pb.containerd.types import Descriptor as Message

from dockerd_api.images import platforms
from dockerd_api.images.platforms import Platform

INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
CONFIGS = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_LAYERS = (
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.diff.",
    "application/vnd.docker.image.rootfs.foreign.diff.",
)
MOST_LAYERS = 127  # as the kernel's overlayfs and the real engine have it
_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_REFERENCE_TYPE = "vnd.docker.reference.type"
_REFERENCE_DIGEST = "vnd.docker.reference.digest"


@dataclass(frozen=True)
class Descriptor:
    """A blob that something refers to. `rest` holds further properties (urls, artifactType, data) as they
    were found.
    """

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    rest: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """As the API and other documents show it."""
        found: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        found |= self.rest
        if self.annotations:
            found["annotations"] = dict(self.annotations)
        if self.platform is not None:
            found["platform"] = self.platform.document()
        return found

    def message(self) -> Message:
        """As containerd's image records have it."""
        return Message(
            media_type=self.media_type,
            digest=self.digest,
            size=self.size,
            annotations=dict(self.annotations),
        )

    @property
    def is_index(self) -> bool:
        return self.media_type in INDEXES

    @property
    def is_manifest(self) -> bool:
        return self.media_type in MANIFESTS

    @property
    def is_layer(self) -> bool:
        return self.media_type.startswith(_LAYERS)

    @property
    def attests(self) -> str:
        """The digest of the manifest that this one is an attestation for, or empty."""
        if _REFERENCE_TYPE not in self.annotations:
            return ""
        return self.annotations.get(_REFERENCE_DIGEST, "")

    @property
    def is_pseudo(self) -> bool:
        """Whether it says of itself that it is no image: an attestation, or of no platform."""
        return _REFERENCE_TYPE in self.annotations or (
            self.platform is not None and self.platform.is_unknown()
        )


def of_message(message: Message | None) -> Descriptor:
    """The target of one of containerd's image records."""
    found = message or Message()
    return Descriptor(found.media_type, found.digest, found.size, dict(found.annotations))


def is_digest(text: Any) -> bool:
    """Whether it is the digest of an algorithm that we know."""
    if not isinstance(text, str):
        return False
    algorithm, _, encoded = text.partition(":")
    return len(encoded) == _LENGTHS.get(algorithm) and re.fullmatch(r"[a-f0-9]+", encoded) is not None


def parse(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object, `what` naming it in messages. Raises InvalidArgument, also for a key that is there
    twice.
    """
    try:
        document = json.loads(data, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise errdefs.InvalidArgument(f"failed to decode {what}: {error}") from error
    if not isinstance(document, dict):
        raise errdefs.InvalidArgument(f"failed to decode {what}: not an object")
    return document


def descriptor(document: Any, what: str) -> Descriptor:
    """A descriptor inside the document `what`. Raises InvalidArgument."""
    if not isinstance(document, dict):
        raise errdefs.InvalidArgument(f"{what}: a descriptor is not an object")
    media_type, digest, size = (document.get(key) for key in ("mediaType", "digest", "size"))
    if not is_digest(digest):
        raise errdefs.InvalidArgument(f"{what}: {str(digest)[:100]!r} is no digest of a known algorithm")
    if not isinstance(media_type, str) or not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise errdefs.InvalidArgument(f"{what}: the descriptor of {digest} is damaged")
    annotations = document.get("annotations") or {}
    if not isinstance(annotations, dict) or not all(isinstance(text, str) for text in annotations.values()):
        raise errdefs.InvalidArgument(f"{what}: the annotations of {digest} are no strings")
    platform = document.get("platform")
    if platform is not None and not isinstance(platform, dict):
        raise errdefs.InvalidArgument(f"{what}: the platform of {digest} is not an object")
    rest = {key: document[key] for key in ("urls", "data", "artifactType") if document.get(key)}
    return Descriptor(
        media_type,
        str(digest),
        size,
        annotations,
        None if platform is None else platforms.from_document(platform),
        rest,
    )


def entries(document: Mapping[str, Any], key: str, what: str) -> list[Descriptor]:
    """The descriptors of a list in a document; one that is not there is empty. Raises InvalidArgument."""
    found = document.get(key)
    if found is None:
        return []
    if not isinstance(found, list):
        raise errdefs.InvalidArgument(f"{what}: {key} is not a list")
    return [descriptor(entry, what) for entry in found]


def index(data: bytes, described: Descriptor) -> list[Descriptor]:
    """What an index leads to. Raises InvalidArgument."""
    document = parse(data, described.digest)
    _check_kind(document, described, ("layers", "config", "fsLayers"))
    return entries(document, "manifests", described.digest)


def manifest(data: bytes, described: Descriptor) -> tuple[Descriptor, list[Descriptor]]:
    """The config and the layers of a manifest. Raises InvalidArgument."""
    document = parse(data, described.digest)
    _check_kind(document, described, ("manifests", "fsLayers"))
    if not isinstance(document.get("config"), dict):
        raise errdefs.InvalidArgument(f"{described.digest} is no image manifest: it names no config")
    config = descriptor(document["config"], described.digest)
    return config, entries(document, "layers", described.digest)


def config(data: bytes, what: str = "image config") -> dict[str, Any]:
    """An image's config, checked. Raises InvalidArgument."""
    document = parse(data, what)
    rootfs = document.get("rootfs")
    if not isinstance(rootfs, dict):
        raise errdefs.InvalidArgument("invalid image JSON, no RootFS key")
    diff_ids = rootfs.get("diff_ids") or []
    if not isinstance(diff_ids, list) or not all(is_digest(diff_id) for diff_id in diff_ids):
        raise errdefs.InvalidArgument("invalid image config: diff_ids are not digests")
    if len(diff_ids) > MOST_LAYERS:
        raise errdefs.InvalidArgument("max depth exceeded")
    for key, kind in (("config", dict), ("history", list), ("created", str), ("architecture", str)):
        if document.get(key) is not None and not isinstance(document[key], kind):
            raise errdefs.InvalidArgument(f"invalid image config: {key} has the wrong type")
    if not all(isinstance(step, dict) for step in document.get("history") or ()):
        raise errdefs.InvalidArgument("invalid image config: history has the wrong type")
    return document


def diff_ids(document: Mapping[str, Any]) -> list[str]:
    """The uncompressed digests of a checked config's layers."""
    return list(document["rootfs"].get("diff_ids") or [])


def _check_kind(document: Mapping[str, Any], described: Descriptor, foreign: Sequence[str]) -> None:
    """One document must not be able to pass for another kind (GHSA-mc8v-mgrf-8f4m of OCI, CVE-2021-41190)."""
    said = document.get("mediaType")
    if said is not None and said != described.media_type:
        raise errdefs.InvalidArgument(
            f"{described.digest}: its media type {str(said)[:100]!r} is not {described.media_type!r}"
        )
    for key in foreign:
        if document.get(key) is not None:
            raise errdefs.InvalidArgument(f"{described.digest}: {key} in a {described.media_type}")


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found

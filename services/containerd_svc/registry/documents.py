"""Manifests and indexes as they come from a registry: size, digest, media type, nothing ambiguous."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import errdefs

from containerd_svc.ingest import check_digest

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEXES = (OCI_INDEX, DOCKER_INDEX)
KNOWN = (DOCKER_MANIFEST, DOCKER_INDEX, OCI_MANIFEST, OCI_INDEX)
LARGEST = 20 * 1024 * 1024  # bytes

_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1"
_SAYS_NOTHING = ("", "application/octet-stream", "application/json", "text/plain")


def media_type(headers: Mapping[str, str]) -> str:
    """What a Content-Type header says, without parameters."""
    return headers.get("content-type", "").partition(";")[0].strip()


def digest_of(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def described(headers: Mapping[str, str], asked: str) -> dict[str, Any] | None:
    """The descriptor that an answer's headers tell, or nothing when they do not tell all of it.

    Raises InvalidArgument when they tell of another digest than the one `asked` for.
    """
    digest = headers.get("docker-content-digest", "").strip() or asked
    length, kind = headers.get("content-length", ""), media_type(headers)
    if not digest or not length.isdigit() or kind in _SAYS_NOTHING:
        return None
    if asked and check_digest(digest) != asked:
        raise errdefs.InvalidArgument(f"the registry answers {asked} with {digest}: invalid argument")
    return {"mediaType": kind, "digest": check_digest(digest), "size": int(length)}


def supported(descriptor: dict[str, Any]) -> dict[str, Any]:
    """The descriptor. Raises InvalidArgument for Docker's schema 1, and for what is no manifest or index."""
    kind = descriptor["mediaType"]
    if kind.startswith(_SCHEMA1):
        raise errdefs.InvalidArgument(
            f'media type "{kind}" is no longer supported, please rebuild the image as OCI or Docker Image '
            "Manifest v2, Schema 2: invalid argument"
        )
    if kind not in KNOWN:
        raise errdefs.InvalidArgument(f'unsupported manifest media type "{kind[:200]}": invalid argument')
    return descriptor


def check(body: bytes, *, digest: str, size: object) -> None:
    """Raises DataLoss unless the document is of that digest and, if one is given, of that size in bytes."""
    if isinstance(size, int) and len(body) != size:
        raise errdefs.DataLoss(f"{digest}: {len(body)} bytes came instead of {size}")
    algorithm, _, encoded = digest.partition(":")
    found = hashlib.new(algorithm, body).hexdigest()
    if found != encoded:
        raise errdefs.DataLoss(f"unexpected digest {algorithm}:{found}, expected {digest}")


def parsed(body: bytes) -> dict[str, Any]:
    """The JSON object of a document. Raises InvalidArgument, also for a key that stands twice."""
    try:
        found = json.loads(body, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise errdefs.InvalidArgument(
            f"the registry's document is no JSON: {error}: invalid argument"
        ) from None
    if not isinstance(found, dict):
        raise errdefs.InvalidArgument("the registry's document is no JSON object: invalid argument")
    return found


def check_kind(body: bytes, wanted: str, header: str) -> None:
    """Raises InvalidArgument unless descriptor, header and document agree on what the document is
    (CVE-2021-41190)."""
    document = parsed(body)
    own = document.get("mediaType", "")
    if not isinstance(own, str):
        raise errdefs.InvalidArgument("mediaType is no string: invalid argument")
    told = [kind for kind in (wanted, header, own) if kind not in _SAYS_NOTHING]
    if any(kind != told[0] for kind in told):
        raise errdefs.InvalidArgument(
            f"media types differ: descriptor {wanted!r}, header {header!r}, document {own!r}: "
            "invalid argument"
        )
    kind = told[0] if told else ""
    index = "manifests" in document
    image = "layers" in document or "config" in document
    if (
        (index and image)
        or (kind in INDEXES and image)
        or (kind in (OCI_MANIFEST, DOCKER_MANIFEST) and index)
    ):
        raise errdefs.InvalidArgument("the document is both an image and an index: invalid argument")
    if "fsLayers" in document or "history" in document:
        raise errdefs.InvalidArgument("the document is also one of schema 1: invalid argument")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found

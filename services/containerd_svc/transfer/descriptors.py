"""Descriptors as JSON documents hold them (OCI image-spec: descriptor.md, image-index.md, manifest.md)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import errdefs

from containerd_svc.content import ContentStore

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
INDEXES = (OCI_INDEX, DOCKER_INDEX)
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
CONFIGS = (DOCKER_CONFIG, "application/vnd.oci.image.config.v1+json")

LARGEST_DOCUMENT = 20 * 1024 * 1024  # bytes of one JSON document

Descriptor = dict[str, Any]
Children = list[tuple[str, Descriptor]]


async def document(content: ContentStore, namespace: str, descriptor: Descriptor) -> dict[str, Any]:
    """The JSON object that a descriptor names. Raises NotFound; InvalidArgument for anything else."""
    digest = str(descriptor.get("digest"))
    size = (await content.info(namespace, digest)).size
    if size > LARGEST_DOCUMENT:
        raise errdefs.InvalidArgument(f"{digest}: {size} bytes are no manifest: invalid argument")
    data = b"".join([piece async for _, piece in content.read(namespace, digest)])
    return parsed(data, descriptor)


def parsed(data: bytes, descriptor: Descriptor) -> dict[str, Any]:
    """The JSON object of a descriptor's bytes. Raises InvalidArgument for anything else, and for what two
    readers may understand in two ways (CVE-2021-41190): a key that stands twice, an index that is a manifest
    too, a media type that is not the descriptor's.
    """
    digest = str(descriptor.get("digest"))
    try:
        found = json.loads(data, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise errdefs.InvalidArgument(f"{digest} is no JSON object without ambiguity: invalid argument")
    kind = descriptor.get("mediaType")
    if kind not in (*INDEXES, *MANIFESTS):
        return found
    own = found.get("mediaType") or kind
    if own != kind:
        raise errdefs.InvalidArgument(
            f"{digest}: media type {str(own)[:200]!r} is not the descriptor's {kind!r}: invalid argument"
        )
    other = {"manifests"} if kind in MANIFESTS else {"layers", "config"}
    if not other.isdisjoint(found) or "fsLayers" in found:
        raise errdefs.InvalidArgument(f"{digest} is both an image and an index: invalid argument")
    return found


def ref_key(descriptor: Descriptor) -> str:
    """The name of a descriptor's ingest, as containerd's clients have it (remotes.MakeRefKey)."""
    kind, digest = str(descriptor.get("mediaType")), str(descriptor.get("digest"))
    if kind in MANIFESTS:
        return f"manifest-{digest}"
    if kind in INDEXES:
        return f"index-{digest}"
    if kind in CONFIGS:
        return f"config-{digest}"
    if ".image.layer." in kind or ".image.rootfs." in kind:
        return f"layer-{digest}"
    return f"unknown-{digest}"


async def children(content: ContentStore, namespace: str, descriptor: Descriptor) -> Children:
    """(label by which the collector finds it, descriptor) of all that an index or a manifest names.

    Nothing else has any. Raises NotFound, InvalidArgument.
    """
    if descriptor.get("mediaType") not in (*INDEXES, *MANIFESTS):
        return []
    return children_of(descriptor, await document(content, namespace, descriptor))


def children_of(descriptor: Descriptor, found: Mapping[str, Any]) -> Children:
    """The same of the document `found` that the descriptor names."""
    kind = descriptor.get("mediaType")
    if kind in INDEXES:
        listed = _list(found, "manifests")
        return [(f"containerd.io/gc.ref.content.m.{place}", each) for place, each in enumerate(listed)]
    if kind in MANIFESTS:
        config = found.get("config")
        if not isinstance(config, dict):
            raise errdefs.InvalidArgument(f"{descriptor['digest']} has no config: invalid argument")
        layers = _list(found, "layers")
        return [
            ("containerd.io/gc.ref.content.config", config),
            *((f"containerd.io/gc.ref.content.l.{place}", each) for place, each in enumerate(layers)),
        ]
    return []


def go_json(value: object) -> bytes:
    """JSON as Go's encoder writes it: a document that we make has the digest that containerd's has."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for sign in "<>&":  # which only stand in strings
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text.encode()


def _list(found: Mapping[str, Any], key: str) -> list[Descriptor]:
    value = found.get(key) or []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise errdefs.InvalidArgument(f"{key} is no list of descriptors: invalid argument")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found

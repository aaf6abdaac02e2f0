"""Names of images: those that an archive gives, and those that a client wants them to have."""

from __future__ import annotations

import re
from collections.abc import Mapping

import errdefs
from pb.containerd.types.transfer import ImageReference, ImageStore

# Annotations of a manifest in an index: the whole name (containerd), and the tag or name (OCI image-spec).
WHOLE_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"

_HUB = "docker.io"
_HOST = re.compile(
    r"[a-zA-Z0-9][a-zA-Z0-9-]*(?:\.[a-zA-Z0-9][a-zA-Z0-9-]*)*(?::[0-9]+)?|\[[0-9a-fA-F:]+\](?::[0-9]+)?"
)
_NAME = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*")
_SUFFIX = re.compile(r"(?::(?P<tag>[\w][\w.-]{0,127}))?(?:@(?P<digest>\w+:[0-9a-fA-F]{32,}))?")


def normal(name: str) -> str:
    """Docker's short name in full, `docker.io/library/busybox:latest` for `busybox`; InvalidArgument."""
    first, slash, rest = name.partition("/")
    host = slash and ("." in first or ":" in first or first == "localhost")
    domain, path = (first, rest) if host else (_HUB, name)
    found = _NAME.match(path)
    suffix = _SUFFIX.fullmatch(path[found.end() :]) if found else None
    if found is None or suffix is None or not _HOST.fullmatch(domain):
        raise errdefs.InvalidArgument(f'normalize image ref "{name}": invalid reference format')
    if domain == _HUB and "/" not in found.group():
        path = f"library/{path}"
    whole = f"{domain}/{path}"
    return whole if suffix["tag"] or suffix["digest"] else f"{whole}:latest"


def familiar(name: str) -> str:
    """The short form of a full name, as `docker save` writes it."""
    short = name.removeprefix(f"{_HUB}/")
    if short == name:
        return name
    rest = short.removeprefix("library/")
    return short if "/" in rest else rest


def tag_of(name: str) -> str:
    """What stands behind a full name's colon; the name itself where there is no tag."""
    path, colon, tag = name.rpartition(":")
    return tag if colon and "/" not in tag and "@" not in path else name


def names_in_index(store: ImageStore, digest: str, annotations: Mapping[str, str]) -> list[str]:
    """The names that `store` wants for a manifest which an archive's index lists."""
    found = []
    for reference in store.extra_references:
        if not reference.is_prefix:
            continue
        name = _annotated(reference, annotations)
        if name:
            found.append(name)
        if reference.add_digest and not (name and reference.skip_named_digest):
            found.append(f"{reference.name}@{digest}")
    return found


def names_of_whole(store: ImageStore) -> list[str]:
    """The names that `store` wants for the image as a whole: an archive's index, or the source of a tag."""
    names = [store.name, *(each.name for each in store.extra_references if not each.is_prefix)]
    return [name for name in names if name]


def _annotated(reference: ImageReference, annotations: Mapping[str, str]) -> str:
    """The name by the annotations, empty when they have none that goes with the prefix."""
    whole = annotations.get(WHOLE_NAME, "")
    if whole:
        return whole if _with_prefix(reference, whole) == whole else ""
    short = annotations.get(REF_NAME, "")
    return _with_prefix(reference, short) if short else ""


def _with_prefix(reference: ImageReference, name: str) -> str:
    if not reference.name:
        return ""
    if not any(sign in name for sign in "/:@"):
        return f"{reference.name}:{name}"
    if reference.allow_overwrite:
        return name
    behind = name.removeprefix(reference.name)
    return name if behind != name and (not behind or behind[0] in "/:@") else ""

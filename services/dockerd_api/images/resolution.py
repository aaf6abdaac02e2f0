"""Which image a user means: by name, by digest, by id, or by the beginning of an id (Docker's rules)."""

from __future__ import annotations

import json
import re

import errdefs
from pb.containerd.services.images import v1 as pb

from dockerd_api.images import documents, reference
from dockerd_api.images.catalog import Catalog
from dockerd_api.images.reference import Reference

_TRUNCATED = re.compile(r"(?:sha256:)?([a-f0-9]{4,64})")


async def find(catalog: Catalog, ref: str) -> pb.Image:
    """The one record that the reference leads to. Raises InvalidArgument for what can be none, NotFound for
    what is not here or ambiguous.
    """
    digest = reference.identifier(ref)
    if digest:
        found = await catalog.of_target(digest)
        if not found:
            raise errdefs.NotFound(f"No such image: {digest}")
        return found[0]
    name = reference.parse(ref).tagged()
    if name.digest:
        for record in await catalog.of_target(name.digest):
            if repository(record) == name.name:
                return record
        raise _no_such(name)
    record_ = await catalog.record(str(name))
    if record_ is not None:
        return record_
    matching = await _by_beginning(catalog, ref, name)
    for record in matching:
        if record.name == str(name):
            return record
    if not matching:
        raise _no_such(name)
    return matching[0]


async def find_all(catalog: Catalog, ref: str) -> tuple[pb.Image | None, list[pb.Image]]:
    """The record whose name was meant, or None when an id or a digest was, and all records of that image.
    Raises as `find`.
    """
    digest = reference.identifier(ref)
    if digest:
        found = await catalog.of_target(digest)
        if not found:
            raise errdefs.NotFound(f"No such image: {digest}")
        return None, found
    name = reference.parse(ref).tagged()
    record = await catalog.record(str(name))
    if record is not None:
        return record, await catalog.of_target(documents.of_message(record.target).digest)
    if name.digest:
        found = await catalog.of_target(name.digest)
    else:
        found = await _by_beginning(catalog, ref, name)
    if not found:
        raise _no_such(name)
    return None, found


def repository(record: pb.Image) -> str:
    """`docker.io/library/busybox` of a record; empty for a name that is none of Docker's."""
    try:
        return reference.parse(record.name).name
    except errdefs.InvalidArgument:
        return ""


async def _by_beginning(catalog: Catalog, ref: str, name: Reference) -> list[pb.Image]:
    """The records of the one image whose id begins so. Raises NotFound when there are several."""
    truncated = _TRUNCATED.fullmatch(ref)
    if truncated is None:
        return []
    pattern = f"^sha256:{truncated[1]}[0-9a-fA-F]{{{64 - len(truncated[1])}}}$"
    found = await catalog.records(f"target.digest~={json.dumps(pattern)}")
    if len({documents.of_message(record.target).digest for record in found}) > 1:
        raise errdefs.NotFound("ambiguous reference")
    return found


def _no_such(name: Reference) -> errdefs.NotFound:
    return errdefs.NotFound(f"No such image: {name.familiar}")

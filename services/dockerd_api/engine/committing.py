"""`docker commit`: an image of a container as it is now, which is frozen meanwhile if it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import errdefs

from dockerd_api.engine import merge, options, stopping
from dockerd_api.engine.engine import Engine
from dockerd_api.engine.model import Container, Phase
from dockerd_api.images import changes, documents, reference
from dockerd_api.images.committing import Commit


async def commit(
    engine: Engine,
    ref: str,
    document: Mapping[str, Any] | None,
    *,
    repository: str,
    tag: str,
    comment: str,
    author: str,
    pause: bool,
    instructions: Sequence[str],
) -> str:
    """The new image's id. `document` is the config that it is to have, filled up from the container's; None:
    the container's. Raises NotFound, InvalidArgument, Conflict for a container that is being removed.
    """
    name = reference.parse_repository(repository, tag)
    record = engine.containers.resolve(ref)
    if record.state.phase in (Phase.REMOVING, Phase.GONE):
        raise errdefs.Conflict(f"You cannot commit container {record.id} which is being removed")
    given = options.decode(document, options.CONFIG, "Config") if document else None
    parent = await _parent(engine, record)
    own = await _own_config(engine, record, parent)
    config = _config(given, own, instructions)
    async with _still(engine, record, pause=pause):
        image_id = await engine.images.commit(
            Commit(
                snapshot=record.id,
                parent=parent,
                parent_id=record.image_id,
                config=config,
                created_by=" ".join(own["Cmd"] or ()),
                comment=comment,
                author=author,
                name=name,
            )
        )
    shown = name.familiar if name is not None else ""
    await engine.publish(record, "commit", comment=comment, imageID=image_id, imageRef=shown)
    return image_id


def _config(
    given: Mapping[str, Any] | None, own: dict[str, Any], instructions: Sequence[str]
) -> dict[str, Any]:
    """What the image's config is to be, with every key of a container's."""
    base = own if given is None else given
    empty = options.decode({}, options.CONFIG, "Config")
    changed = {**empty, **changes.apply(instructions, base)}
    volumes = {**(own["Volumes"] or {}), **(changed["Volumes"] or {})}
    triggers = changed["OnBuild"]
    merged = merge.merge(changed, own)
    merged |= {
        "Volumes": volumes or None,
        "OnBuild": triggers,
        "Healthcheck": {**(own["Healthcheck"] or {}), **(changed["Healthcheck"] or {})} or None,
    }
    return merged


async def _parent(engine: Engine, record: Container) -> documents.Descriptor:
    """The manifest that the container was made from."""
    found = record.image_manifest
    if not found:  # made before that was recorded
        image = await engine.images.resolve(record.image_id)
        if image.manifest is None:
            raise errdefs.NotFound(f"No such image: {record.image_id}")
        return image.manifest.descriptor
    return documents.Descriptor(found["mediaType"], found["digest"], found["size"])


async def _own_config(engine: Engine, record: Container, parent: documents.Descriptor) -> dict[str, Any]:
    """The container's config, with what its record leaves to the image, and without triggers: those are not
    inherited.
    """
    image = (await engine.images.catalog.manifest(parent)).config.get("config") or {}
    left = {key: record.config.get(key) or image.get(key) for key in ("Volumes", "Healthcheck")}
    return {**record.config, **left, "OnBuild": None}


@asynccontextmanager
async def _still(engine: Engine, record: Container, *, pause: bool) -> AsyncIterator[None]:
    """The container frozen, if it runs and is not; thawed again whatever happens."""
    frozen = False
    if pause and record.state.phase is Phase.RUNNING:
        with suppress(errdefs.Conflict, errdefs.NotFound):  # it ended, or another froze it
            await stopping.pause(engine, record.id)
            frozen = True
    try:
        yield
    finally:
        if frozen:
            # Killed, removed or thawed by another meanwhile: there is nothing to thaw.
            with suppress(errdefs.Conflict, errdefs.NotFound, errdefs.FailedPrecondition, errdefs.Internal):
                await stopping.unpause(engine, record.id)

"""Giving a container another name."""

from __future__ import annotations

import dataclasses

import errdefs

from dockerd_api.engine import validate
from dockerd_api.engine.engine import Engine


async def rename(engine: Engine, ref: str, wanted: str) -> None:
    """Durable when it returns; Conflict when another container has the name."""
    if not wanted:
        raise errdefs.InvalidArgument("Neither old nor new names may be empty")
    record = engine.containers.resolve(ref)
    try:
        name = validate.name(wanted if wanted.startswith("/") else f"/{wanted}")
    except errdefs.InvalidArgument as error:
        raise errdefs.InvalidArgument(f"Error when allocating new name: {error.message}") from None
    if name == record.name:
        raise errdefs.InvalidArgument("Renaming a container with the same name as its current name")
    async with engine.tokens.hold(record.id):
        record = engine.containers.resolve(record.id)
        try:
            engine.store.reserve_name(name, record.id)
        except errdefs.Conflict as error:
            raise errdefs.Conflict(f"Error when allocating new name: {error.message}") from None
        try:
            renamed = dataclasses.replace(record, name=name)
            told = engine.happened(renamed, "rename", oldName=f"/{record.name}")
            await engine.store.put(renamed, durable=True, events=[told])
        except BaseException:
            engine.store.release_name(name, record.id)
            raise

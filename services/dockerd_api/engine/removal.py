"""Removing a container."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import shutil
from collections.abc import Mapping

import errdefs
from linux.crashpoints import crashpoint

from dockerd_api.engine import filters
from dockerd_api.engine.engine import Engine
from dockerd_api.engine.model import Container, Phase, WaitOutcome
from dockerd_api.engine.release import release
from dockerd_api.engine.stopping import kill_and_wait

log = logging.getLogger(__name__)

_FIRST_RETRY, _LAST_RETRY = 0.2, 30.0  # seconds


async def remove(engine: Engine, ref: str, *, force: bool = False, link: bool = False) -> None:
    """Removes a container that does not run, or with `force` any. The record is gone for good when this
    returns.
    """
    record = engine.containers.resolve(ref)
    if link:
        raise errdefs.Internal("Conflict, cannot remove the default link name of the container")
    if record.state.phase is Phase.REMOVING:
        raise errdefs.Conflict(f"removal of container {ref} is already in progress")
    if record.state.running:
        if not force:
            raise errdefs.Conflict(f'cannot remove container "/{record.name}": container is {_why(record)}')
        await kill_and_wait(engine, record)
    async with engine.tokens.hold(record.id):
        current = engine.store.get(record.id)
        if current is None:  # --rm was quicker
            return
        if current.state.running:
            raise errdefs.Conflict(f'cannot remove container "/{current.name}": container is {_why(current)}')
        await remove_held(engine, current)


def _why(record: Container) -> str:
    if record.state.paused:
        return "paused and must be unpaused first"
    if record.state.restarting:
        return "restarting: stop the container before removing or force remove"
    return "running: stop the container before removing or force remove"


async def remove_held(engine: Engine, record: Container) -> None:
    """Removes under the container's token. An error leaves the intent, which start-up or a later call
    finishes.
    """
    removing = record.with_state(phase=Phase.REMOVING)
    await engine.store.put(removing, durable=False)
    crashpoint("engine.remove.intent")
    try:
        if record.cleanup_due:
            await release(engine, record)
        await forget(engine, dataclasses.replace(removing, cleanup_due=False))
    except errdefs.BuoyError:
        if engine.store.get(record.id) is not None:
            await engine.store.put(record, durable=False)
        raise


async def forget(engine: Engine, record: Container, *, durable: bool = True) -> None:
    """Takes a container without a process out of clients' sight and tells those who wait; what it holds is
    given back behind that.

    Without `durable` a power cut brings the record back, and start-up removes it again.
    """
    engine.store.forget(record.id)
    engine.containers.abandon_attaches(record.id)
    await engine.containers.removed(record.id, WaitOutcome(record.state.exit_code))
    crashpoint("engine.remove.told")
    gone = record.with_state(phase=Phase.GONE)

    await engine.store.bury(gone, durable=durable, events=[engine.happened(record, "destroy")])
    crashpoint("engine.remove.gone")
    engine.give_back(give_back(engine, gone))


async def give_back(engine: Engine, gone: Container) -> None:
    """Gives back what a container that is gone still holds, however often that takes."""
    wait = _FIRST_RETRY
    while True:
        try:
            if gone.cleanup_due:
                await release(engine, gone, kill=wait > _FIRST_RETRY)
            crashpoint("engine.remove.released")
            await asyncio.gather(
                engine.images.remove_snapshot(gone.id),
                asyncio.to_thread(shutil.rmtree, engine.folder(gone.id), ignore_errors=True),
            )
            crashpoint("engine.remove.snapshot")
            await engine.store.delete(gone.id, durable=False)
            return
        except errdefs.BuoyError as error:
            log.warning("container %s is removed, but holds something: %s", gone.id, error)
        await asyncio.sleep(wait)
        wait = min(2 * wait, _LAST_RETRY)


async def prune(engine: Engine, wanted: Mapping[str, list[str]]) -> tuple[list[str], int]:
    """Removes every stopped container that matches; answers their ids and the bytes that they had written."""
    removed: list[str] = []
    reclaimed = 0
    for record in engine.store.all():
        if not filters.prunable(record, wanted):
            continue
        try:
            size = await engine.images.snapshot_usage(record.id)
            await remove(engine, record.id)
        except errdefs.BuoyError as error:
            log.warning("container %s is not pruned: %s", record.id, error)
            continue
        removed.append(record.id)
        reclaimed += size
    return removed, reclaimed


async def remove_exited(engine: Engine, record: Container) -> None:
    """--rm: after the task and the network are given back."""
    left = engine.networks_happened(record, "disconnect")  # of a start that was undone; an exit has told it
    removing = record.with_state(phase=Phase.REMOVING)
    removing = dataclasses.replace(removing, cleanup_due=False, network_settings={})
    await engine.store.put(removing, durable=False, events=left)
    crashpoint("engine.remove.auto")
    await forget(engine, removing, durable=False)

"""Starting is recovering: every intent found in the records is finished or undone, by the code of the
operations.

A container that runs is left alone: the monitor takes up the facts since the last one that was recorded.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import shutil

import errdefs

from dockerd_api.engine import exits, failure, restarts
from dockerd_api.engine.engine import Engine
from dockerd_api.engine.model import Container, Phase, now_rfc3339
from dockerd_api.engine.release import release
from dockerd_api.engine.removal import forget, give_back, remove_exited
from dockerd_api.engine.starting import network_settings, start, tell_failed
from dockerd_api.engine.tasks import is_alive

log = logging.getLogger(__name__)

_AT_ONCE = 8


async def recover(engine: Engine) -> None:
    """Brings every record to a state of rest. Retries in the background what containerd does not answer."""
    before = await engine.store.exchange_boot_id(engine.host.boot_id)
    slots = asyncio.Semaphore(_AT_ONCE)
    undone: list[str] = []

    async def one(record: Container) -> None:
        async with slots:
            try:
                await recover_one(engine, record.id)
            except errdefs.BuoyError as error:
                log.warning("container %s is recovered later: %s", record.id, error)
                undone.append(record.id)

    await asyncio.gather(*(one(record) for record in engine.store.all() if needed(engine, record)))
    for gone in engine.store.gone():
        engine.give_back(give_back(engine, gone))
    if undone:
        engine.spawn(_again(engine, undone))
    if before and before != engine.host.boot_id:
        engine.spawn(_start_after_boot(engine))


async def adopt_image_ids(engine: Engine) -> None:
    """Containers of an earlier Buoy name their image by the digest of its config: give them today's id."""
    images = await engine.images.successors([record.image_id for record in engine.store.all()])
    for container_id in [record.id for record in engine.store.all() if record.image_id in images]:
        async with engine.tokens.hold(container_id):
            record = engine.store.get(container_id)
            image = images.get(record.image_id) if record is not None else None
            if record is not None and image is not None and image.manifest is not None:
                document = image.manifest.descriptor.document()
                renamed = dataclasses.replace(record, image_id=image.id, image_manifest=document)
                await engine.store.put(renamed, durable=True)


def needed(engine: Engine, record: Container) -> bool:
    """Is there anything to finish or undo?"""
    if record.state.phase in (Phase.CREATING, Phase.STARTING, Phase.REMOVING):
        return True
    if record.state.running:
        return record.boot_id != engine.host.boot_id
    return record.cleanup_due or _goes(record)


def _goes(record: Container) -> bool:
    """Is it a --rm container whose process has ended, or could not be started?"""
    ended = record.state.phase is Phase.EXITED or (record.state.phase is Phase.CREATED and record.state.error)
    return record.auto_remove and bool(ended)


async def recover_one(engine: Engine, container_id: str) -> None:
    """One container, under its token."""
    async with engine.tokens.hold(container_id):
        record = engine.store.get(container_id)
        if record is not None:
            await recover_held(engine, record)


async def recover_held(engine: Engine, record: Container) -> None:
    phase = record.state.phase
    if phase is Phase.CREATING:
        await engine.images.remove_snapshot(record.id)
        await asyncio.to_thread(shutil.rmtree, engine.folder(record.id), ignore_errors=True)
        await engine.store.delete(record.id, durable=False)
    elif phase is Phase.STARTING:
        await _starting(engine, record)
    elif phase is Phase.REMOVING:
        if record.cleanup_due:
            await release(engine, record)
        await forget(engine, dataclasses.replace(record, cleanup_due=False))
    elif record.state.running:
        if record.boot_id != engine.host.boot_id:
            await exits.ended_by_reboot(engine, record)
    elif record.cleanup_due:
        await release(engine, record)
        if _goes(record):
            await remove_exited(engine, record)
        elif record.state.error:
            await tell_failed(engine, record)
        else:
            await engine.store.put(dataclasses.replace(record, cleanup_due=False), durable=False)
    elif _goes(record):
        await remove_exited(engine, record)


async def _starting(engine: Engine, record: Container) -> None:
    """Finished when the process runs or has run: everything that must come before has been done then, and
    what a program did cannot be undone. Else undone.
    """
    process = await engine.tasks.get(record.id) if record.boot_id == engine.host.boot_id else None
    began = exits.began(engine, record, process.pid) if process is not None else ""
    if process is not None and (began or is_alive(process)):
        attachment = await engine.networks.resume(record.id)
        running = dataclasses.replace(
            record.with_state(
                phase=Phase.RUNNING, pid=process.pid, exit_code=0, started_at=began or now_rfc3339()
            ),
            runs=record.runs + 1,
            manually_stopped=False,
            network_settings=network_settings(attachment) if attachment else {},
        )
        await engine.store.put(running, durable=True, events=[engine.happened(running, "start")])
        if began:
            engine.spawn(exits.check(engine, record.id))
        return
    await release(engine, record)
    error = "the engine ended while it started the container"
    undone = record.with_state(phase=record.state.before, exit_code=failure.UNKNOWN, error=error)
    if undone.auto_remove:
        await remove_exited(engine, undone)
    else:
        await tell_failed(engine, undone)


async def _again(engine: Engine, container_ids: list[str]) -> None:
    wait = 0.2
    while container_ids:
        await asyncio.sleep(wait)
        wait = min(wait * 2, 5.0)
        for container_id in list(container_ids):
            try:
                await recover_one(engine, container_id)
            except errdefs.BuoyError:
                continue
            container_ids.remove(container_id)


async def _start_after_boot(engine: Engine) -> None:
    for record in engine.store.all():
        if restarts.wanted_after_boot(record):
            try:
                await start(engine, record.id)
            except errdefs.NotModified:
                continue
            except errdefs.BuoyError as error:
                log.warning("container %s is not started after the boot: %s", record.id, error)

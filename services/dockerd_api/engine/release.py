"""Giving back what a task of a container held: the task and its shim, the network, containerd's record."""

from __future__ import annotations

import asyncio
import logging

import errdefs

from dockerd_api.engine import shm
from dockerd_api.engine.engine import Engine
from dockerd_api.engine.model import Container

log = logging.getLogger(__name__)


async def release(engine: Engine, record: Container, *, kill: bool = True) -> None:
    """Idempotent. Does each part though another fails, then raises the first error.

    The caller clears `cleanup_due` in the record: until then start-up and the next operation do this again.
    """
    results = await asyncio.gather(
        engine.tasks.delete_task(record.id, missing_ok=True, kill=kill),
        engine.networks.detach(record.id),
        _unmount(engine, record),
        return_exceptions=True,
    )
    for result in results:
        if isinstance(result, BaseException):
            raise result
    await engine.tasks.delete_container(record.id)


async def release_and_log(engine: Engine, record: Container, *, kill: bool = True) -> bool:
    """`release` for callers that nobody waits for; false when something is left to do."""
    try:
        await release(engine, record, kill=kill)
    except errdefs.BuoyError as error:
        log.warning("container %s: clean-up is put off: %s", record.id, error)
        return False
    return True


async def _unmount(engine: Engine, record: Container) -> None:
    if shm.offers(record):
        await asyncio.to_thread(shm.unmount, engine, record.id)

"""Restart policies, for where containerd does not decide: after a boot, and above a foreign containerd."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime

from dockerd_api.engine.engine import Engine
from dockerd_api.engine.model import Container, Phase, WaitOutcome

log = logging.getLogger(__name__)

_FIRST, _MOST = 0.1, 60.0  # seconds between the end and the next start, doubling
_GOOD_RUN = 10.0  # seconds after which the delay begins anew


def seconds_run(record: Container) -> float:
    """How long the last run took, 0 when it is not known."""
    try:
        began, ended = (datetime.fromisoformat(text[:26] + "+00:00") for text in _times(record))
    except ValueError:
        return 0.0
    return max(0.0, (ended - began).total_seconds())


def _times(record: Container) -> tuple[str, str]:
    return record.state.started_at.rstrip("Z"), record.state.finished_at.rstrip("Z")


def wanted(record: Container) -> bool:
    """Does the policy ask for another start after this end?"""
    name, most = record.restart_policy
    if record.manually_stopped:
        return False
    if name in ("always", "unless-stopped"):
        return True
    return name == "on-failure" and record.state.exit_code != 0 and (not most or record.restart_count < most)


def delay(record: Container) -> float | None:
    """Seconds until the next start, None when there is none."""
    if not wanted(record):
        return None
    if seconds_run(record) >= _GOOD_RUN:
        return _FIRST
    return float(min(_MOST, _FIRST * 2 ** min(record.restart_count, 16)))


def wanted_after_boot(record: Container) -> bool:
    """Docker starts at boot what had run and whose policy says so, "always" even after a manual stop."""
    name, _ = record.restart_policy
    if record.state.phase is not Phase.EXITED:
        return False
    return name == "always" or wanted(record)


async def restart_later(engine: Engine, record: Container, seconds: float) -> None:
    """Starts the container again unless it was stopped or removed meanwhile."""
    from dockerd_api.engine.starting import start_held  # starting needs what this module's users need

    await asyncio.sleep(seconds)
    async with engine.tokens.hold(record.id):
        current = engine.store.get(record.id)
        if current is None or current.state.phase is not Phase.RESTARTING or current.manually_stopped:
            return
        count = current.restart_count
        error = await start_held(engine, current, restart_count=count)
        if error is not None:
            stopped = engine.store.get(record.id) or current
            await engine.store.put(stopped.with_state(phase=Phase.EXITED), durable=False)
            log.warning("container %s is not started again: %s", record.id, error)
            await engine.containers.exited(record.id, WaitOutcome(current.state.exit_code, error.message))

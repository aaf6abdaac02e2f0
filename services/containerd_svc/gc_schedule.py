"""When the collector runs by itself: once after the start, after many changes, and when a lease expires.

The numbers are containerd's defaults (plugins/gc, "scheduler"): a hundred changes of a namespace, and pauses
that leave at least 98% of the time to others. That an expired lease is noticed without a change is ours.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass

import errdefs

from containerd_svc.events import Events, Subscription
from containerd_svc.gc import Collector

log = logging.getLogger(__name__)

# Not the deletion of content, which is what a collection ends with.
_CHANGES = [f"topic~=|^/{prefix}|" for prefix in ("content/create", "images/", "snapshot/")]


@dataclass(frozen=True)
class Settings:
    """Seconds, but for the number of changes."""

    after_start: float = 0.1
    changes: int = 100
    between_looks_at_leases: float = 30.0
    share: float = 0.02  # of the time that collecting may take


class Schedule:
    """Runs the collector until it is cancelled."""

    def __init__(self, collector: Collector, events: Events, settings: Settings | None = None) -> None:
        self._collector = collector
        self._events = events
        self._settings = settings or Settings()

    async def run(self) -> None:
        """Never returns; a collection that fails is logged, and tried again with the next reason."""
        changes = await self._events.subscribe(_CHANGES)
        await asyncio.sleep(self._settings.after_start)
        for namespace in await self._collector.namespaces():
            await self._collect(namespace)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._after_changes(changes))
            group.create_task(self._after_expiry())

    async def _after_changes(self, changes: Subscription) -> None:
        seen: Counter[str] = Counter()
        async for event in changes.follow():
            seen[event.namespace] += 1
            if seen[event.namespace] >= self._settings.changes:
                del seen[event.namespace]
                await self._collect(event.namespace)

    async def _after_expiry(self) -> None:
        while True:
            await asyncio.sleep(self._settings.between_looks_at_leases)
            for namespace in await self._collector.with_expired_leases(time.time()):
                await self._collect(namespace)

    async def _collect(self, namespace: str) -> None:
        began = time.monotonic()
        try:
            await self._collector.collect(namespace)
        except (errdefs.BuoyError, OSError) as error:
            log.warning("namespace %s is not collected: %s", namespace, error)
        await asyncio.sleep((time.monotonic() - began) * (1 / self._settings.share - 1))

"""Containers as the rest of the daemon asks for them: find, wait, attach.

Changes are made by engine/create, lifecycle and removal; they tell this class when a container's process has
begun, ended or gone, and it tells those who wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import errdefs

from dockerd_api.engine.model import Container, Phase, WaitOutcome
from dockerd_api.engine.store import Store

if TYPE_CHECKING:
    from dockerd_api.streams.attach import PendingAttach

log = logging.getLogger(__name__)

CONDITIONS = ("not-running", "next-exit", "removed")

_TO_TELL = 10.0  # seconds that telling those who wait may hold up a removal

Deliver = Callable[[WaitOutcome], Awaitable[None]]
HandOver = Callable[[str, "PendingAttach"], Awaitable[None]]


@dataclass(eq=False, slots=True)
class Waiter:
    """One who waits. `deliver` is awaited with the outcome before a removed container's record is deleted."""

    container_id: str
    condition: str
    deliver: Deliver
    done: bool = False


@dataclass(slots=True)
class _Watched:
    waiters: list[Waiter] = field(default_factory=list)
    attaches: list[PendingAttach] = field(default_factory=list)


class Containers:
    """The public face of the engine's containers."""

    def __init__(self, store: Store, hand_over: HandOver) -> None:
        self._store = store
        self._hand_over = hand_over
        self._watched: dict[str, _Watched] = {}

    def resolve(self, ref: str) -> Container:
        """By id, name or unambiguous id prefix, from memory; NotFound "No such container: x"."""
        return self._store.resolve(ref)

    def all(self) -> list[Container]:
        return list(self._store.all())

    # -- waiting

    def add_waiter(self, container_id: str, condition: str, deliver: Deliver) -> Waiter | WaitOutcome:
        """Registers at once, or answers the outcome that already holds ("not-running" of one that is not).

        Conditions are those of CONDITIONS; another is InvalidArgument. `remove_waiter` takes a waiter back.
        """
        if condition not in CONDITIONS:
            raise errdefs.InvalidArgument(f'invalid condition: "{condition}"')
        record = self._store.resolve(container_id)
        if (
            condition == "not-running"
            and not record.state.running
            and record.state.phase is not Phase.STARTING
        ):
            return WaitOutcome(record.state.exit_code, record.state.error)
        waiter = Waiter(record.id, condition, deliver)
        self._watched.setdefault(record.id, _Watched()).waiters.append(waiter)
        return waiter

    def remove_waiter(self, waiter: Waiter) -> None:
        watched = self._watched.get(waiter.container_id)
        if watched is not None and waiter in watched.waiters:
            watched.waiters.remove(waiter)
            self._drop_if_idle(waiter.container_id)

    async def wait(self, container_id: str, condition: str = "not-running") -> WaitOutcome:
        """Waits without a deadline until the condition holds."""
        reached: asyncio.Future[WaitOutcome] = asyncio.get_running_loop().create_future()

        async def deliver(outcome: WaitOutcome) -> None:
            if not reached.done():
                reached.set_result(outcome)

        waiter = self.add_waiter(container_id, condition, deliver)
        if isinstance(waiter, WaitOutcome):
            return waiter
        try:
            return await reached
        finally:
            self.remove_waiter(waiter)

    async def exited(self, container_id: str, outcome: WaitOutcome) -> None:
        """The process ended and will not be started again by policy, or it could not start."""
        await self._deliver(container_id, ("not-running", "next-exit"), outcome)

    async def exited_for_now(self, container_id: str, outcome: WaitOutcome) -> None:
        """The process ended and policy will start it again."""
        await self._deliver(container_id, ("next-exit",), outcome)

    async def removed(self, container_id: str, outcome: WaitOutcome) -> None:
        """The container is gone for readers; its record is deleted after this returns."""
        await self._deliver(container_id, CONDITIONS, outcome)
        self._watched.pop(container_id, None)

    async def _deliver(self, container_id: str, conditions: tuple[str, ...], outcome: WaitOutcome) -> None:
        watched = self._watched.get(container_id)
        if watched is None:
            return
        due = [waiter for waiter in watched.waiters if waiter.condition in conditions]
        watched.waiters = [waiter for waiter in watched.waiters if waiter.condition not in conditions]
        self._drop_if_idle(container_id)
        if not due:
            return
        told = [asyncio.ensure_future(waiter.deliver(outcome)) for waiter in due]
        _, late = await asyncio.wait(told, timeout=_TO_TELL)
        if late:
            log.warning("%d of those who wait for container %s are not told yet", len(late), container_id)

    # -- attaching

    async def add_attach(self, container_id: str, attach: PendingAttach) -> None:
        """Hands the client to the shim at once when the process exists, else when it is created."""
        record = self._store.resolve(container_id)
        if record.state.alive:
            await self._hand_over(record.attach_socket, attach)
            return
        self._watched.setdefault(record.id, _Watched()).attaches.append(attach)

    def drop_attach(self, container_id: str, attach_id: str) -> None:
        """The client of a kept attach went away."""
        watched = self._watched.get(container_id)
        if watched is not None:
            watched.attaches = [kept for kept in watched.attaches if kept.attach_id != attach_id]
            self._drop_if_idle(container_id)

    async def hand_over(self, attach_socket: str, attach: PendingAttach) -> None:
        """Hands one client to the shim."""
        await self._hand_over(attach_socket, attach)

    async def hand_over_attaches(self, container_id: str, attach_socket: str) -> None:
        """Called between the task's creation and its start, so that a client misses no byte, and once more
        when it runs, for those who came meanwhile."""
        watched = self._watched.get(container_id)
        if watched is None:
            return
        for attach in list(watched.attaches):
            watched.attaches.remove(attach)
            try:
                await self._hand_over(attach_socket, attach)
            except errdefs.BuoyError as error:
                log.warning("a client of container %s is not handed over: %s", container_id, error)
                attach.abandon()
        self._drop_if_idle(container_id)

    def abandon_attaches(self, container_id: str) -> None:
        """Ends the connections of those who wait for a start that failed or will not come."""
        watched = self._watched.get(container_id)
        if watched is None:
            return
        abandoned, watched.attaches = watched.attaches, []
        self._drop_if_idle(container_id)
        for attach in abandoned:
            attach.abandon()

    def _drop_if_idle(self, container_id: str) -> None:
        watched = self._watched.get(container_id)
        if watched is not None and not watched.waiters and not watched.attaches:
            del self._watched[container_id]

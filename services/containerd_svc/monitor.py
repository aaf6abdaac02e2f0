"""Containers that should run and have no task, and those that should not and have one: containerd's restart
labels, for clients that set them and then rely on the daemon alone (its plugins/restart).

What happens after an exit is decided at once, elsewhere (restart_policy). Here is what no exit leads to:
after a boot nothing is left of a task. Docker's own containers have a label more, and are none of this:
`dockerd-api` starts them, with their networks.
"""

from __future__ import annotations

import asyncio
import logging

import errdefs
from pb.containerd.services.tasks.v1 import CreateTaskRequest
from pb.containerd.v1.types import Status

from containerd_svc.containers import Container, Containers
from containerd_svc.restart_policy import BOOT_ID, LOG_URI, POLICY, STATUS, explicitly_stopped
from containerd_svc.snapshots import Snapshots
from containerd_svc.supervisor import Supervisor
from containerd_svc.tasks import Tasks

log = logging.getLogger(__name__)

_EVERY = 10.0  # seconds, as containerd's
_SECOND = 1.0  # seconds from the first look to the second: a daemon that starts should not wait
_KILL = 9

Place = tuple[str, str]


class Monitor:
    """Looks at all containers with a restart label, again and again."""

    def __init__(
        self, containers: Containers, supervisor: Supervisor, tasks: Tasks, snapshots: Snapshots
    ) -> None:
        self._containers = containers
        self._supervisor = supervisor
        self._tasks = tasks
        self._snapshots = snapshots
        self._seen: set[Place] = set()  # to be acted upon when the next look finds them so, too
        self._told: dict[Place, str] = {}

    async def run(self) -> None:
        """Without end."""
        wait = _SECOND
        while True:
            try:
                await self.look()
            except errdefs.BuoyError as error:
                log.error("restart labels: %s", error.message)
            await asyncio.sleep(wait)
            wait = _EVERY

    async def look(self) -> None:
        """One look. A client that has just made a container is about to make its task: what is found for the
        first time is left alone."""
        wrong: set[Place] = set()
        for namespace, container in await self._containers.labelled(STATUS):
            if BOOT_ID in container.labels or not self._differs(namespace, container):
                continue
            place = (namespace, container.id)
            wrong.add(place)
            if place in self._seen:
                await self._change(place, container)
        self._seen = wrong
        self._told = {place: text for place, text in self._told.items() if place in wrong}

    def _differs(self, namespace: str, container: Container) -> bool:
        task = self._supervisor.tasks.get((namespace, container.id))
        if container.labels[STATUS] == "stopped":
            return task is not None and task.init.status in (Status.RUNNING, Status.PAUSED)
        if container.labels[STATUS] != "running" or task is not None:
            return False
        # A task that is not there has not failed: on-failure has nothing to start again.
        policy = container.labels.get(POLICY, "always")
        return policy in ("always", "unless-stopped") and not explicitly_stopped(container.labels)

    async def _change(self, place: Place, container: Container) -> None:
        try:
            if container.labels[STATUS] == "stopped":
                await self._stop(*place)
            else:
                await self._start(place[0], container)
        except errdefs.BuoyError as error:
            if self._told.get(place) != error.message:
                log.warning("%s in %s: %s", container.id, place[0], error.message)
                self._told[place] = error.message

    async def _start(self, namespace: str, container: Container) -> None:
        rootfs = []
        if container.snapshot_key:
            rootfs = await self._snapshots.mounts(namespace, container.snapshotter, container.snapshot_key)
        output = container.labels.get(LOG_URI, "")
        request = CreateTaskRequest(container_id=container.id, rootfs=rootfs, stdout=output, stderr=output)
        await self._tasks.create(namespace, request)
        await self._tasks.start(namespace, container.id, "")
        log.info("%s in %s is started by its restart label", container.id, namespace)

    async def _stop(self, namespace: str, container_id: str) -> None:
        await self._tasks.kill(namespace, container_id, "", _KILL, True)
        await asyncio.wait_for(self._tasks.wait(namespace, container_id, ""), _EVERY)
        await self._tasks.delete(namespace, container_id)
        log.info("%s in %s is stopped by its restart label", container_id, namespace)

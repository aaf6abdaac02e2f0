"""The parts that operations on containers work with, put together once by __main__."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dockerd_api.engine.confinement import Confinement
from dockerd_api.engine.containers import Containers
from dockerd_api.engine.events import Events, Happened
from dockerd_api.engine.host import Host
from dockerd_api.engine.model import Container, Exec
from dockerd_api.engine.store import Store
from dockerd_api.engine.tasks import Tasks
from dockerd_api.engine.tokens import Tokens

if TYPE_CHECKING:
    from dockerd_api.images import Images
    from dockerd_api.network.manager import Networks


@dataclass(frozen=True, slots=True)
class Settings:
    """What operations need of the daemon's configuration. `runtimes` maps a name to a binary ("": built
    in).
    """

    containers: Path  # <data-root>/containers
    exec_root: Path
    sockets: Path
    cgroup_parent: str
    runtimes: Mapping[str, str]
    init: bool = False
    init_path: str = ""
    default_ulimits: Sequence[Mapping[str, Any]] = ()
    log_driver: str = "json-file"
    log_options: Mapping[str, str] = field(default_factory=dict)
    shm_size: int = 64 << 20
    default_runtime: str = "runc"
    cgroupns_mode: str = ""
    ipc_mode: str = "private"


async def _nothing(container_id: str) -> None:
    return


@dataclass(eq=False, slots=True)
class Engine:
    """Collaborators only; what changes lives in them."""

    settings: Settings
    host: Host
    store: Store
    tokens: Tokens
    containers: Containers
    tasks: Tasks
    images: Images
    networks: Networks
    events: Events
    security: Confinement
    # Containers that an API call stops in order to start again: their --rm waits.
    kept: set[str] = field(default_factory=set)
    # Containers that an API call stops: the end of one is told with the stop that it completes.
    stopping: set[str] = field(default_factory=set)
    # Set by __main__: compares a container with containerd's task (engine/exits).
    check_exit: Callable[[str], Awaitable[None]] = field(default=_nothing)
    # Work that nobody waits for; kept so that it is not collected, and awaited at the end.
    background: set[asyncio.Task[None]] = field(default_factory=set)
    # Giving back what removed containers held.
    leaving: set[asyncio.Task[None]] = field(default_factory=set)
    # The upper side of containerd decides restarts (docs/contracts.md); a foreign containerd does not.
    restarts_below: bool = True

    def attach_socket(self, container_id: str) -> str:
        """Where the shim of the container takes clients (docs/contracts.md, Sockets of a shim)."""
        return str(self.settings.sockets / f"{container_id[:16]}.a")

    def folder(self, container_id: str) -> Path:
        return self.settings.containers / container_id

    def attributes(self, record: Container, **more: str) -> dict[str, str]:
        """The actor attributes of an event about a container."""
        return {**record.labels, "image": record.image_ref, "name": record.name, **more}

    def happened(self, record: Container, action: str, **more: str) -> Happened:
        """An event about a container, to be stored with the change that it tells (engine/store)."""
        return Happened("container", action, record.id, self.attributes(record, **more))

    def exec_happened(self, record: Container, run: Exec, action: str, **more: str) -> Happened:
        """An event about an exec: exec_create, exec_start or exec_die."""
        command = "" if action == "exec_die" else ": " + " ".join(run.config["Cmd"])
        return self.happened(record, f"{action}{command}", execID=run.id, **more)

    def networks_happened(self, record: Container, action: str) -> list[Happened]:
        """connect or disconnect, for each network that the container has."""
        return [
            Happened(
                "network",
                action,
                endpoint["network_id"],
                {
                    "container": record.id,
                    "name": endpoint["network_name"],
                    "type": {"none": "null"}.get(endpoint["network_name"], endpoint["network_name"]),
                },
            )
            for endpoint in record.network_settings.get("endpoints") or ()
        ]

    async def publish(self, record: Container, action: str, **more: str) -> None:
        """An event that changes no record."""
        await self.events.publish(*self.happened(record, action, **more))

    def give_back(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs what gives back the parts of a removed container."""
        task = asyncio.get_running_loop().create_task(work)
        self.leaving.add(task)
        task.add_done_callback(self.leaving.discard)

    async def settled(self, timeout: float = 5.0) -> None:
        """Waits, at most `timeout` seconds, until removed containers hold nothing any more."""
        if self.leaving:
            await asyncio.wait(self.leaving, timeout=timeout)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs it beside the request that asked for it."""
        task = asyncio.get_running_loop().create_task(work)
        self.background.add(task)
        task.add_done_callback(self.background.discard)

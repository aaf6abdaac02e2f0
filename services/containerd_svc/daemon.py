"""The daemon's parts put together, and taken apart."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.metadata
import logging
import socket
import sqlite3
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import rpc.ttrpc
from betterproto2.grpclib import ServiceBase
from http_client.proxies import Proxies
from rpc import service_manager
from rpc.grpc import Server
from storage.database import Database

from containerd_svc import quarantine, schema, task_rows
from containerd_svc.api.containers import ContainersService
from containerd_svc.api.content import ContentService
from containerd_svc.api.diff import DiffService
from containerd_svc.api.events import EventsService
from containerd_svc.api.forwarding import ForwardingService
from containerd_svc.api.health import HealthService
from containerd_svc.api.images import ImagesService
from containerd_svc.api.introspection import IntrospectionService
from containerd_svc.api.leases import LeasesService
from containerd_svc.api.namespaces import NamespacesService
from containerd_svc.api.sandboxes import SandboxStoreService
from containerd_svc.api.snapshots import SnapshotsService
from containerd_svc.api.streaming import StreamingService
from containerd_svc.api.tasks import TasksService
from containerd_svc.api.transfer import TransferService
from containerd_svc.api.version import VersionService
from containerd_svc.checkpoints import Checkpoints
from containerd_svc.config import Config
from containerd_svc.containers import Container, Containers
from containerd_svc.content import ContentStore
from containerd_svc.diff import Differ
from containerd_svc.events import Events, Recorder
from containerd_svc.forwarded import Forwarded
from containerd_svc.gc import Collector
from containerd_svc.gc_schedule import Schedule
from containerd_svc.images import ImageStore
from containerd_svc.leases import Leases
from containerd_svc.monitor import Monitor
from containerd_svc.namespaces import Namespaces
from containerd_svc.plugins import GRPC, SCHEDULER
from containerd_svc.recover import Recovery
from containerd_svc.restart_policy import explicitly_stopped
from containerd_svc.sandboxes import Sandboxes
from containerd_svc.shims import Shims
from containerd_svc.snapshots import Snapshots
from containerd_svc.supervisor import Supervisor
from containerd_svc.task_rows import TaskRows
from containerd_svc.tasks import Tasks
from containerd_svc.transfer import Streams, Transfers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """The command line, checked. Paths are absolute."""

    root: Path
    state: Path
    address: str
    sockets: Path
    runtime_root: str
    nursery: str
    debug: bool
    config: Config
    proxies: Proxies = field(default_factory=Proxies)


async def serve(
    settings: Settings, listener: socket.socket, shim_listener: socket.socket, stop: asyncio.Event
) -> None:
    """Recover, then serve `listener`, and `shim_listener` for what shims forward, until `stop` is set.
    Containers are not touched by the end.
    """
    async with contextlib.AsyncExitStack() as stack:
        database = await Database.open(settings.root / "meta.db", schema.MIGRATIONS)
        stack.push_async_callback(database.close)
        await quarantine.set_aside(database)
        events = await Events.open(database)
        containers = Containers(database, events, _on_update)
        shims = Shims(
            nursery=settings.nursery,
            address=settings.address,
            sockets=settings.sockets,
            runtime_root=settings.runtime_root,
            debug=settings.debug,
        )
        stack.push_async_callback(shims.close)
        rows = TaskRows(database, events)
        supervisor = Supervisor(state=settings.state, shims=shims, rows=rows, containers=containers)
        stack.push_async_callback(supervisor.close)
        content = ContentStore(settings.root, database, events)
        await content.start()
        stack.push_async_callback(content.close)
        snapshots = Snapshots(settings.root, database, events)
        await snapshots.start()
        stack.push_async_callback(snapshots.close)
        collector = Collector(database, content, snapshots, events)
        differ = Differ(content, _made(settings.root / "diff"))
        images, held, streams = ImageStore(database, events), Leases(database), Streams()
        transfers = Transfers(
            streams=streams,
            content=content,
            images=images,
            snapshots=snapshots,
            held=held,
            differ=differ,
            place=_made(settings.root / "transfer"),
            proxies=settings.proxies,
        )
        await transfers.start()
        checkpoints = Checkpoints(content, differ, settings.root / "checkpoints")
        tasks = Tasks(
            supervisor,
            containers,
            checkpoints,
            runtime_root=settings.runtime_root,
            shims=settings.config.shims,
        )
        forwarded = Forwarded(events, supervisor)
        disabled = settings.config.disabled
        served: dict[str, ServiceBase] = {
            "version": VersionService(importlib.metadata.version("buoy"), "buoy"),
            "namespaces": NamespacesService(Namespaces(database, events)),
            "containers": ContainersService(containers, images, content),
            "tasks": TasksService(tasks),
            "events": EventsService(events, forwarded),
            "content": ContentService(content),
            "snapshots": SnapshotsService(snapshots),
            "images": ImagesService(images, collector),
            "diff": DiffService(differ),
            "leases": LeasesService(held, collector),
            "sandboxes": SandboxStoreService(Sandboxes(database)),
            "streaming": StreamingService(streams),
            "transfer": TransferService(transfers, streams),
            "introspection": IntrospectionService(await _identity(database), disabled),
        }
        services = [service for id_, service in served.items() if f"{GRPC}.{id_}" not in disabled]
        if f"{GRPC}.healthcheck" not in disabled:
            services.append(HealthService(_names(services)))
        found = await Recovery(supervisor).run()
        server = Server(services)
        await server.serve(listener)
        stack.push_async_callback(server.close)
        for_shims = rpc.ttrpc.Server([ForwardingService(forwarded)])
        await for_shims.serve(shim_listener)
        stack.push_async_callback(for_shims.close)
        stack.callback(asyncio.create_task(service_manager.watchdog()).cancel)
        monitor = Monitor(containers, supervisor, tasks, snapshots)
        stack.callback(asyncio.create_task(monitor.run()).cancel)
        if SCHEDULER not in disabled:
            stack.callback(asyncio.create_task(Schedule(collector, events).run()).cancel)
        gc.freeze()
        service_manager.ready(f"{found} tasks")
        log.info("serving %s, %d tasks", settings.address, found)
        await stop.wait()
        service_manager.stopping()


def _on_update(
    connection: sqlite3.Connection, record: Recorder, namespace: str, have: Container, made: Container
) -> None:
    """A user's stop takes back the restart that is due, in the transaction that keeps the stop."""
    if explicitly_stopped(made.labels) and not explicitly_stopped(have.labels):
        task_rows.cancel_in(connection, record, namespace, made.id)


def _made(folder: Path) -> Path:
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


async def _identity(database: Database) -> str:
    """The daemon's uuid, made at its first start."""
    found = await database.read(lambda connection: connection.execute("SELECT uuid FROM daemon").fetchone())
    if found is not None:
        return str(found[0])
    made = str(uuid.uuid4())
    await database.write(lambda connection: connection.execute("INSERT INTO daemon VALUES (?)", (made,)))
    return made


def _names(services: list[ServiceBase]) -> set[str]:
    """The full names of the services."""
    return {path.split("/")[1] for service in services for path in service.__mapping__()}  # type: ignore[attr-defined]

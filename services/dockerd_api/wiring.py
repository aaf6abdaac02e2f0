"""Puts the daemon's parts together, and takes them apart."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import errdefs
import uvicorn
from http_client.proxies import Proxies
from rpc import service_manager
from rpc.grpc import Channel
from storage.database import Database

from dockerd_api import app as application
from dockerd_api import config as configuration
from dockerd_api import hijack
from dockerd_api.accepting import Acceptor
from dockerd_api.config import Config
from dockerd_api.engine import events, exits, log_drivers, recovery, store
from dockerd_api.engine.confinement import Confinement
from dockerd_api.engine.containers import Containers
from dockerd_api.engine.engine import Engine, Settings
from dockerd_api.engine.execs import Execs
from dockerd_api.engine.host import host
from dockerd_api.engine.monitor import Monitor
from dockerd_api.engine.tasks import Tasks
from dockerd_api.engine.tokens import Tokens
from dockerd_api.images import Images
from dockerd_api.images.pulling import Puller
from dockerd_api.images.pushing import Pusher
from dockerd_api.images.reference import Reference
from dockerd_api.images.removal import User
from dockerd_api.images.transfers import Transfers
from dockerd_api.network.manager import Networks
from dockerd_api.network.netns_helper import NetnsHelper
from dockerd_api.registries import Asking, Credentials, Registries
from dockerd_api.registries.hosts import Hosts
from dockerd_api.replies.producers import Producers
from dockerd_api.security import load_default_profile
from dockerd_api.streams import attach
from dockerd_api.streams.connections import Connections
from dockerd_api.streams.fdstore import FdStore
from dockerd_api.streams.reply import Streams

log = logging.getLogger(__name__)

_CATCH_UP = 2.0  # seconds
_WAIT_FOR_CONTAINERD = 3.0  # seconds; what is not recovered then is recovered beside the first requests


async def serve(config: Config, helper: NetnsHelper, passed: Mapping[str, Sequence[int]]) -> None:
    """Runs the daemon until SIGTERM or SIGINT."""
    data_root = Path(config["data-root"])
    listener = service_manager.listening_socket(
        {name: list(fds) for name, fds in passed.items()}, "docker.sock", config.socket_path, mode=0o660
    )
    fd_store = FdStore(passed)
    connections = Connections(fd_store)
    async with AsyncExitStack() as stack:
        database = await Database.open(data_root / "engine.db", [store.MIGRATION, events.MIGRATION])
        stack.push_async_callback(database.close)
        channel = Channel(config["containerd"], namespace=config["containerd-namespace"])
        stack.callback(channel.close)
        told = await events.Events.open(database)
        networks = await Networks.open(
            database,
            instance=config["instance"],
            exec_root=Path(config["exec-root"]),
            config=config.file,
            helper=helper,
        )
        stack.push_async_callback(networks.close)
        await asyncio.to_thread(load_default_profile)
        engine = await _engine(config, database, channel, told, networks)
        execs = Execs(engine)
        streams = Streams(fd_store)
        producers = Producers(streams, engine.containers, execs, told)
        stack.callback(producers.close)
        stack.push_async_callback(streams.close)
        monitor = Monitor(engine, execs, channel)
        stack.push_async_callback(monitor.close)
        app = application.build()
        app.state.engine, app.state.config, app.state.engine_id = engine, config, _engine_id(data_root)
        app.state.containers, app.state.execs = engine.containers, execs
        app.state.images, app.state.networks = engine.images, networks
        _registries(app.state, config, channel, engine.images, told)
        app.state.events, app.state.streams = told, streams

        connections.recover(streams.holds)
        streams.recover()
        recovered = await _recover(engine, execs)
        monitor.start()
        if recovered:
            await monitor.caught_up(_CATCH_UP)
        stack.callback(asyncio.create_task(service_manager.watchdog()).cancel)
        server = uvicorn.Server(
            uvicorn.Config(
                application.Versions(app),
                http=hijack.protocol(connections),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=3600,
                timeout_graceful_shutdown=1,
            )
        )
        await _run(server, listener, connections)


async def _run(server: uvicorn.Server, listener: socket.socket, connections: Connections) -> None:
    serving = asyncio.create_task(server.serve([]))
    while not server.started and not serving.done():  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.001)
    if not serving.done():
        gc.collect()
        gc.freeze()
        await connections.adopt(server)
        server.servers.append(cast(asyncio.Server, Acceptor(server, listener, connections)))
        service_manager.ready("answers at the API socket")
        log.info("API listens on %s", listener.getsockname())
    await serving
    service_manager.stopping()


async def _engine(
    config: Config, database: Database, channel: Channel, told: events.Events, networks: Networks
) -> Engine:
    data_root = Path(config["data-root"])
    folder = data_root / "containers"
    spool = data_root / "tmp"
    log_drivers.check({"Type": config["log-driver"], "Config": config["log-opts"]})
    for path in (folder, spool):
        path.mkdir(mode=0o710, parents=True, exist_ok=True)
    # Where the installed services share it, it is there; above another containerd nobody else makes it.
    sockets = Path(config["sockets"])
    sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
    records = await store.Store.open(database, told)
    images = Images(channel, told.publish, spool=spool)
    engine = Engine(
        settings=Settings(
            containers=folder,
            exec_root=Path(config["exec-root"]),
            sockets=sockets,
            cgroup_parent=config.cgroup_parent,
            runtimes=configuration.runtimes(config.values),
            init=config["init"],
            init_path=config["init-path"],
            default_ulimits=configuration.ulimits(config.values),
            log_driver=config["log-driver"],
            log_options=config["log-opts"],
            shm_size=config["default-shm-size"],
            default_runtime=config["default-runtime"],
            cgroupns_mode=config["default-cgroupns-mode"],
            ipc_mode=config["default-ipc-mode"],
        ),
        host=host(),
        store=records,
        tokens=Tokens(),
        containers=Containers(records, attach.hand_over),
        tasks=Tasks(channel),
        images=images,
        networks=networks,
        events=told,
        security=Confinement(
            host(), daemon_seccomp=_seccomp(config), no_new_privileges=config["no-new-privileges"]
        ),
    )
    engine.check_exit = lambda container_id: exits.check(engine, container_id)
    images.settled = engine.settled
    images.containers = lambda: [
        User(
            record.id,
            record.state.running,
            record.image_id,
            record.image_ref,
            record.image_manifest.get("digest", ""),
        )
        for record in records.all()
    ]
    return engine


def _registries(state: Any, config: Config, channel: Channel, images: Images, told: events.Events) -> None:
    """What moves images between registries and the store."""
    registries = Registries(
        insecure=config["insecure-registries"],
        mirrors=config["registry-mirrors"],
        per_registry=config["per-registry-mirrors"],
        certs_dir=Path(config["registry-certs-dir"]),
    )
    transfers = Transfers(
        channel,
        Hosts(registries, Path(config["exec-root"]) / "registries"),
        metadata={
            f"buoy-max-concurrent-{what}": str(config[f"max-concurrent-{what}"])
            for what in ("downloads", "uploads")
        },
    )
    asking = Asking(
        registries, Proxies.of(os.environ, {key: str(config[key]) for key in configuration.PROXIES})
    )

    async def tags(name: Reference, who: Credentials, user_agent: str) -> list[str]:
        repository = asking.repository(name.domain, name.path, who, user_agent)
        return await repository.tags(name.familiar_name)

    state.registries, state.asking = registries, asking
    state.puller = Puller(channel, transfers, images.catalog, told.publish, tags)
    state.pusher = Pusher(transfers, images.catalog, images.walker, told.publish)


async def _recover(engine: Engine, execs: Execs) -> bool:
    """Waits a little for containerd, and answers whether it was there; else the rest is done beside the first
    requests.
    """

    async def everything() -> None:
        await recovery.recover(engine)
        try:
            await engine.images.recover()
            await recovery.adopt_image_ids(engine)
        except errdefs.BuoyError as error:
            log.warning("images are not recovered: %s", error)

    await asyncio.sleep(0)  # the recovered streams register their waiters and claim their execs first
    execs.recover()
    task = asyncio.create_task(everything())
    engine.background.add(task)
    task.add_done_callback(engine.background.discard)
    await asyncio.wait({task}, timeout=_WAIT_FOR_CONTAINERD)
    if task.done():
        task.result()
    return task.done()


def _seccomp(config: Config) -> str:
    """The daemon's own profile: a word, or the text of the file that it names."""
    given = str(config["seccomp-profile"])
    if given in ("", "builtin", "unconfined"):
        return given
    try:
        return Path(given).read_text()
    except OSError as error:
        raise errdefs.InvalidArgument(f"opening seccomp profile ({given}) failed: {error}") from error


def _engine_id(data_root: Path) -> str:
    path = data_root / "engine-id"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        made = str(uuid.uuid4())
        path.write_text(made)
        return made

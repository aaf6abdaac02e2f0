"""Starting a container, in the steps of docs/flows/run.md; a failure undoes them."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import errdefs
from linux.crashpoints import crashpoint

from dockerd_api.engine import (
    devices,
    failure,
    mounts,
    ports,
    ports_handover,
    propagation,
    rootfs,
    shm,
    spec,
    users,
)
from dockerd_api.engine.engine import Engine
from dockerd_api.engine.model import Container, Phase, WaitOutcome, now_rfc3339
from dockerd_api.engine.release import release, release_and_log

if TYPE_CHECKING:
    from dockerd_api.network.model import Attachment, AttachRequest

log = logging.getLogger(__name__)

_SYSCTLS = {"net.ipv4.ping_group_range": "0 2147483647", "net.ipv4.ip_unprivileged_port_start": "0"}


async def start(engine: Engine, ref: str, *, restarts: bool = False) -> None:
    """Starts a container that is not running. NotModified when it runs; the error and exit code are
    Docker's. `restarts`: it is the second half of a restart, and told as that too.
    """
    record = engine.containers.resolve(ref)
    async with engine.tokens.hold(record.id):
        record = engine.containers.resolve(record.id)
        match record.state.phase:
            case Phase.RUNNING | Phase.RESTARTING:
                raise errdefs.NotModified("")
            case Phase.STARTING:
                raise errdefs.Unavailable(f"container {record.id} is being recovered; try again")
            case Phase.PAUSED:
                raise errdefs.Conflict("cannot start a paused container, try unpause instead")
            case Phase.REMOVING | Phase.CREATING:
                raise errdefs.Conflict("container is marked for removal and cannot be started")
        failed = await start_held(engine, record, actions=("start", "restart") if restarts else ("start",))
    if failed is not None:
        if record.auto_remove:
            await _remove_failed(engine, record.id)
        raise failed


async def start_held(
    engine: Engine, record: Container, *, restart_count: int = 0, actions: Sequence[str] = ("start",)
) -> errdefs.BuoyError | None:
    """Starts it under its token, told as `actions`; answers the error after having undone and recorded
    it.
    """
    if record.cleanup_due:
        await release(engine, record)
        record = dataclasses.replace(record, cleanup_due=False)
    code = failure.UNKNOWN
    begun = None
    try:
        record = _named_as_donor(engine, record)
        request = attach_request(engine, record)
        await engine.networks.validate(request)
        starting = dataclasses.replace(
            record.with_state(phase=Phase.STARTING, before=record.state.phase, error=""),
            cleanup_due=True,
            attach_socket=engine.attach_socket(record.id),
            boot_id=engine.host.boot_id,
            restart_count=restart_count,
            network_settings={},
        )
        # A container that policy starts again here has had its network until now.
        left = engine.networks_happened(record, "disconnect")
        await engine.store.put(starting, durable=False, events=left)
        begun = starting
        crashpoint("engine.start.intent")
        try:
            await _start(engine, starting, request, actions)
        except _TaskError as error:
            translated, code = failure.translate(error.error, prefix=error.prefix)
            raise translated from error.error
    except errdefs.BuoyError as error:
        undone = begun is None or await release_and_log(engine, begun)
        await _failed(engine, record, error, code, undone=undone)
        return error
    return None


class _TaskError(Exception):
    """containerd's refusal, whose text tells the exit code."""

    def __init__(self, error: errdefs.BuoyError, prefix: str = "") -> None:
        super().__init__(error.message)
        self.error, self.prefix = error, prefix


async def _start(engine: Engine, record: Container, request: AttachRequest, actions: Sequence[str]) -> None:
    attachment, rootfs_mounts = await asyncio.gather(
        engine.networks.attach(request), engine.images.snapshot_mounts(record.id)
    )
    with ExitStack() as ours:
        for _, sock in attachment.listeners:
            ours.callback(sock.close)  # the shim has its own by then
        await _start_attached(engine, record, attachment, rootfs_mounts, actions)


async def _start_attached(
    engine: Engine,
    record: Container,
    attachment: Attachment,
    rootfs_mounts: list[Any],
    actions: Sequence[str],
) -> None:
    crashpoint("engine.start.attached")
    _write_files(engine, record, attachment)
    if shm.offers(record):
        shm.mount(engine, record)
        crashpoint("engine.start.shm")
    around = _surroundings(engine, record, attachment, rootfs_mounts)
    document = spec.build(record, around)
    await engine.tasks.create_container(
        record.id, document, image=record.image_ref, labels=_labels(engine, record)
    )
    crashpoint("engine.start.container")
    try:
        await engine.tasks.create_task(
            record.id,
            rootfs_mounts,
            terminal=record.tty,
            stdin=bool(record.config["OpenStdin"]),
            attach_socket=record.attach_socket,
            runtime_binary=engine.settings.runtimes[record.host_config["Runtime"]],
        )
    except errdefs.BuoyError as error:
        raise _TaskError(error, "failed to create task for container: ") from error
    crashpoint("engine.start.task")
    address = next((e.ip_address for e in attachment.endpoints if e.ip_address), "")
    connected = dataclasses.replace(record, network_settings=network_settings(attachment))
    await asyncio.gather(
        engine.store.put(connected, durable=False, events=engine.networks_happened(connected, "connect")),
        engine.containers.hand_over_attaches(record.id, record.attach_socket),
        ports_handover.hand_over(record.attach_socket, address, attachment.listeners),
    )
    crashpoint("engine.start.handed-over")
    started = now_rfc3339()
    try:
        pid = await engine.tasks.start(record.id)
    except errdefs.BuoyError as error:
        raise _TaskError(error) from error
    crashpoint("engine.start.running")
    running = dataclasses.replace(
        connected.with_state(
            phase=Phase.RUNNING, pid=pid, exit_code=0, error="", oom_killed=False, started_at=started
        ),
        runs=record.runs + 1,
        manually_stopped=False,
    )
    told = [engine.happened(running, action) for action in actions]
    await engine.store.put(running, durable=True, events=told)
    crashpoint("engine.start.recorded")
    await engine.containers.hand_over_attaches(record.id, record.attach_socket)


async def _failed(
    engine: Engine, record: Container, error: errdefs.BuoyError, code: int, *, undone: bool
) -> None:
    state = dataclasses.replace(record.state, exit_code=code, error=error.message, pid=0)
    if state.phase is Phase.STARTING:
        state = dataclasses.replace(state, phase=state.before)
    await tell_failed(engine, dataclasses.replace(record, state=state), undone=undone)
    if not undone:
        from dockerd_api.engine.exits import clean_up_later  # what follows an exit may start again

        engine.spawn(clean_up_later(engine, record.id))


async def tell_failed(engine: Engine, failed: Container, *, undone: bool = True) -> None:
    """Records a start that failed and ends the waiting of its clients. Until they are told, and it is
    `undone`, the record says that something is to be done, so that start-up does it.
    """
    left = engine.networks_happened(engine.store.get(failed.id) or failed, "disconnect")
    failed = dataclasses.replace(failed, cleanup_due=True, network_settings={})
    await engine.store.put(failed, durable=False, events=left)
    engine.containers.abandon_attaches(failed.id)
    await engine.containers.exited(failed.id, WaitOutcome(failed.state.exit_code, failed.state.error))
    if undone:
        await engine.store.put(dataclasses.replace(failed, cleanup_due=False), durable=False)


async def _remove_failed(engine: Engine, container_id: str) -> None:
    from dockerd_api.engine.removal import remove  # removal stops, and so starts from another side

    try:
        await remove(engine, container_id, force=True)
    except errdefs.BuoyError as error:
        log.warning("container %s could not be removed: %s", container_id, error)


def attach_request(engine: Engine, record: Container) -> AttachRequest:
    """What the network room is asked for."""
    from dockerd_api.network.model import AttachRequest, PortRequest

    config, host = record.config, record.host_config
    mode = host["NetworkMode"]
    if mode.startswith("container:"):
        donor = engine.store.resolve(mode.partition(":")[2])
        if not donor.state.alive:
            raise errdefs.Conflict(f"cannot join network namespace of a non running container: {donor.id}")
        mode = f"container:{donor.id}"
    endpoint = (record.networking.get("EndpointsConfig") or {}).get(mode) or {}
    return AttachRequest(
        container_id=record.id,
        name=record.name,
        hostname=config["Hostname"],
        domainname=config["Domainname"],
        mode=mode,
        ports=() if mode == "host" else tuple(PortRequest(**port) for port in ports.requests(config, host)),
        mac_address=config["MacAddress"] or endpoint.get("MacAddress") or "",
        ipv4_address="",
        dns=tuple(host["Dns"] or ()),
        dns_search=tuple(host["DnsSearch"] or ()),
        dns_options=tuple(host["DnsOptions"] or ()),
        extra_hosts=tuple(host["ExtraHosts"] or ()),
    )


def _named_as_donor(engine: Engine, record: Container) -> Container:
    """One that joins another's network has its host name too: both have the same /etc/hosts."""
    kind, colon, ref = record.host_config["NetworkMode"].partition(":")
    if kind != "container" or not colon or record.host_config["UTSMode"] == "host":
        return record
    donor = engine.store.resolve(ref).config
    names = {"Hostname": donor["Hostname"], "Domainname": donor["Domainname"]}
    return dataclasses.replace(record, config={**record.config, **names})


def network_settings(attachment: Attachment) -> dict[str, Any]:
    """What inspect and list need of an attachment, as stored in the record."""
    return {
        "sandbox_id": attachment.sandbox_id,
        "netns_path": attachment.netns_path or "",
        "endpoints": [dataclasses.asdict(endpoint) for endpoint in attachment.endpoints],
        "ports": [dataclasses.asdict(port) for port in attachment.ports],
    }


def _labels(engine: Engine, record: Container) -> dict[str, str]:
    name, most = record.restart_policy
    if name == "no" or not engine.restarts_below:
        return {}
    return {
        "containerd.io/restart.status": "running",
        "containerd.io/restart.policy": f"{name}:{most}" if most else name,
        "dev.buoy.restart.boot-id": engine.host.boot_id,
    }


def _surroundings(
    engine: Engine, record: Container, attachment: Attachment, rootfs_mounts: list[Any]
) -> spec.Surroundings:
    host, settings = record.host_config, engine.settings
    planned = mounts.plan(host, str(settings.containers.parent))
    mounts.create_sources(planned)
    propagation.check(planned, str(settings.containers.parent))
    mode = host["NetworkMode"]
    joined = mode.startswith("container:")
    folder = engine.folder(record.id)
    hosts_dir = engine.folder(engine.store.resolve(mode.partition(":")[2]).id) if joined else folder
    with rootfs.Rootfs(rootfs_mounts) as root:
        passwd = root.read("/etc/passwd", users.FILE_LIMIT) or b""
        group = root.read("/etc/group", users.FILE_LIMIT) or b""
    return spec.Surroundings(
        user=users.resolve(record.config["User"], passwd, group, host["GroupAdd"] or ()),
        security=engine.security.resolve(host),
        mounts=planned,
        devices=devices.resolve(host),
        netns_path=attachment.netns_path,
        new_netns=attachment.netns_path is not None and not joined,
        pid_namespace=_namespace(engine, host["PidMode"], "pid"),
        ipc_namespace=_namespace(engine, host["IpcMode"], "ipc"),
        container_dir=str(folder),
        shm_path=shm.path(engine, record),
        hosts_dir=str(hosts_dir),
        cgroup_parent=host["CgroupParent"] or settings.cgroup_parent,
        init_binary=_init(engine, host),
        sysctls={key: value for key, value in _SYSCTLS.items() if _sysctl_exists(key)},
        recursive_readonly=_built_in(engine, host),
        default_ulimits=settings.default_ulimits,
    )


def _built_in(engine: Engine, host: dict[str, Any]) -> bool:
    """Our runtime and every kernel since 5.12 set mounts read-only recursively; of another runtime it is
    not known.
    """
    return engine.settings.runtimes[host["Runtime"]] == ""


def _init(engine: Engine, host: dict[str, Any]) -> str:
    if not host["Init"] or host["PidMode"]:
        return ""
    for path in (engine.settings.init_path, "/usr/bin/tini-static", "/usr/bin/tini"):
        if path and os.access(path, os.X_OK):
            return path
    raise errdefs.InvalidArgument(
        'exec: "docker-init": executable file not found in $PATH (install the package tini, or set init-path)'
    )


def _namespace(engine: Engine, mode: str, kind: str) -> str:
    word, colon, ref = mode.partition(":")
    if word != "container" or not colon:
        return ""
    donor = engine.store.resolve(ref)
    if not donor.state.alive:
        raise errdefs.Conflict(
            f"failed to join {kind.upper()} namespace: container {donor.id} is not running"
        )
    return f"/proc/{donor.state.pid}/ns/{kind}"


def _write_files(engine: Engine, record: Container, attachment: Attachment) -> None:
    folder = engine.folder(record.id)
    folder.mkdir(mode=0o710, exist_ok=True)
    for name, text in (
        ("hostname", record.config["Hostname"] + "\n"),
        ("hosts", attachment.hosts),
        ("resolv.conf", attachment.resolv_conf),
    ):
        path = folder / name
        path.write_text(text)
        path.chmod(0o644)


def _sysctl_exists(name: str) -> bool:
    return os.path.exists("/proc/sys/" + name.replace(".", "/"))

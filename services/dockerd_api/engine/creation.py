"""Making a container: check everything, then reserve the name, record the intent, prepare the root, record
it made.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import errdefs
from linux.crashpoints import crashpoint

from dockerd_api.engine import merge, mounts, names, older, options, validate
from dockerd_api.engine.engine import Engine
from dockerd_api.engine.model import Container, Phase, now_rfc3339
from dockerd_api.engine.rootfs import Rootfs
from dockerd_api.images import platforms

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A checked request to create. `name` is empty when the engine is to choose one."""

    name: str
    config: dict[str, Any]
    host_config: dict[str, Any]
    networking: dict[str, Any]
    warnings: list[str]


async def create(
    engine: Engine, name: str, platform: str, document: Any, version: older.Version
) -> tuple[str, list[str]]:
    """A new container from the body of POST /containers/create; answers its id and the warnings.

    `version` is the client's of the API.
    """
    wanted = check(engine, name, document, version)
    if not wanted.config["Image"]:
        raise errdefs.InvalidArgument("no command specified")
    asked = platforms.parse(platform) if platform else None
    image = await engine.images.resolve(wanted.config["Image"], asked)
    if asked is None and not platforms.runs_here(image.platform):
        wanted.warnings.append(
            f"The requested image's platform ({image.platform}) does not match the detected host "
            f"platform ({platforms.host()}) and no specific platform was requested"
        )
    image_config = image.config.get("config") or {}
    config = merge.merge(wanted.config, image_config)
    container_id = _new_id(engine)
    host_config = dict(wanted.host_config)
    config["Hostname"] = config["Hostname"] or _hostname(container_id, host_config)
    path, args = merge.path_and_args(config)
    planned = mounts.plan(host_config, str(engine.settings.containers.parent))
    _warn_of_image(config, image_config, wanted, planned)
    folder = engine.settings.containers / container_id
    record = Container(
        id=container_id,
        name=wanted.name or names.choose(engine.store),
        created=now_rfc3339(),
        path=path,
        args=args,
        config=config,
        host_config=host_config,
        networking=wanted.networking,
        image_id=image.id,
        image_ref=wanted.config["Image"],
        image_manifest=image.manifest.descriptor.document() if image.manifest else {},
        log_path=_log_path(folder, container_id, host_config["LogConfig"]["Type"]),
        mounts=tuple(mount.document() for mount in planned if mount.listed),
        apparmor_profile=engine.security.apparmor_profile(host_config),
    )
    engine.store.reserve_name(record.name, container_id)
    async with AsyncExitStack() as undo:
        undo.callback(engine.store.release_name, record.name, container_id)
        with engine.images.reserve(image):
            async with engine.tokens.hold(container_id):
                await _make(engine, record, image, planned, undo, folder)
        undo.pop_all()
    return container_id, wanted.warnings


def check(engine: Engine, name: str, document: Any, version: older.Version) -> Wanted:
    """Everything that can be said about a request without the image; changes nothing."""
    if document is None or document == {}:
        raise errdefs.InvalidArgument("config cannot be empty in order to create a container")
    if not isinstance(document, dict):
        word = "array" if isinstance(document, list) else "string"
        raise errdefs.InvalidArgument(
            f"invalid JSON: json: cannot unmarshal {word} into Go value of type "
            "runconfig.ContainerConfigWrapper"
        )
    bare = validate.name(name) if name else ""
    keys = {key.lower(): value for key, value in document.items()}
    config = options.decode(document, options.CONFIG, "ContainerConfigWrapper.Config")
    host = _object(keys.get("hostconfig"), "ContainerConfigWrapper.HostConfig")
    host_config = options.decode(host, options.HOST_CONFIG, "HostConfig.HostConfig")
    networking = _object(keys.get("networkingconfig"), "ContainerConfigWrapper.NetworkingConfig")
    older.adapt(host_config, version)
    validate.config(config)
    validate.combinations(config, host_config)
    _daemon_defaults(engine, host_config)
    warnings = validate.host_config(host_config, engine.host, engine.settings.runtimes)
    validate.shared_namespaces(host_config, engine.store.resolve)
    endpoints = _endpoints(networking, config, host_config)
    if host_config["CgroupnsMode"] == "":
        private = engine.host.cgroup_version == 2 and not host_config["Privileged"]
        chosen = "" if host_config["Privileged"] else engine.settings.cgroupns_mode
        host_config["CgroupnsMode"] = chosen or ("private" if private else "host")
    if host_config["Init"] is None and engine.settings.init:
        host_config["Init"] = True
    engine.security.check(host_config)
    masked, readonly = engine.security.paths(host_config)
    host_config["MaskedPaths"], host_config["ReadonlyPaths"] = masked, readonly
    planned = mounts.plan(host_config, str(engine.settings.containers.parent))
    bare_volumes = mounts.uncovered(config["Volumes"] or (), planned)
    if bare_volumes:
        raise errdefs.NotImplementedHere(f"anonymous volumes are not implemented: {', '.join(bare_volumes)}")
    return Wanted(bare, config, host_config, {"EndpointsConfig": endpoints}, warnings)


def _daemon_defaults(engine: Engine, host_config: dict[str, Any]) -> None:
    """What daemon.json says of containers that say nothing."""
    settings = engine.settings
    logged = host_config["LogConfig"] or {}
    if logged.get("Type") in (None, "", settings.log_driver):
        own = logged.get("Config") or {}
        host_config["LogConfig"] = {"Type": settings.log_driver, "Config": {**settings.log_options, **own}}
    host_config["ShmSize"] = host_config["ShmSize"] or settings.shm_size
    host_config["Runtime"] = host_config["Runtime"] or settings.default_runtime
    host_config["IpcMode"] = host_config["IpcMode"] or settings.ipc_mode


async def _make(
    engine: Engine,
    record: Container,
    image: Any,
    planned: list[mounts.Mount],
    undo: AsyncExitStack,
    folder: Path,
) -> None:
    await engine.store.put(record, durable=False)
    undo.push_async_callback(engine.store.delete, record.id, durable=False)
    crashpoint("engine.create.intent")
    undo.push_async_callback(asyncio.to_thread, shutil.rmtree, folder, ignore_errors=True)
    os.makedirs(folder, mode=0o710)
    if record.log_path:
        os.makedirs(os.path.dirname(record.log_path), mode=0o710, exist_ok=True)
    mounts.create_sources(planned)
    undo.push_async_callback(engine.images.remove_snapshot, record.id)
    await engine.images.prepare_snapshot(record.id, image)
    crashpoint("engine.create.snapshot")
    if record.config["WorkingDir"]:
        await _check_workdir(engine, record)
    made = record.with_state(phase=Phase.CREATED)
    await engine.store.put(made, durable=True, events=[engine.happened(made, "create")])
    crashpoint("engine.create.created")


async def _check_workdir(engine: Engine, record: Container) -> None:
    """A missing folder is made by the runtime; one that is a file is refused here, as Docker does."""
    path = record.config["WorkingDir"]
    with Rootfs(await engine.images.snapshot_mounts(record.id)) as root:
        if root.kind(path) == "file":
            raise errdefs.Internal(f"Cannot mkdir: {path} is not a directory")


def _warn_of_image(
    config: dict[str, Any], image_config: Mapping[str, Any], wanted: Wanted, planned: list[mounts.Mount]
) -> None:
    """What the image asks for and is not built yet is said: the client did not ask, so it is not refused."""
    bare_volumes = mounts.uncovered(image_config.get("Volumes") or (), planned)
    if bare_volumes:
        wanted.warnings.append(
            "volumes are not implemented: what is written below "
            f"{', '.join(bare_volumes)} stays in the container and goes with it"
        )
    check = image_config.get("Healthcheck")
    if check and wanted.config["Healthcheck"] is None and check.get("Test") not in (None, [], ["NONE"]):
        wanted.warnings.append("health checks are not implemented: the image's HEALTHCHECK is not run")
        config["Healthcheck"] = None


def _object(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise errdefs.InvalidArgument(f"invalid JSON: json: cannot unmarshal into Go struct field {where}")
    return value


def _endpoints(
    networking: dict[str, Any], config: dict[str, Any], host_config: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    decoded = options.decode(networking, options.NETWORKING_CONFIG, "ContainerConfigWrapper.NetworkingConfig")
    mode = host_config["NetworkMode"]
    result: dict[str, dict[str, Any]] = {}
    for name, value in (decoded["EndpointsConfig"] or {}).items():
        network = "bridge" if name == "default" else name
        where = "NetworkingConfig.EndpointsConfig"
        endpoint = options.decode(_object(value, where), options.ENDPOINT, where)
        wrong = f"invalid config for network {network}: invalid endpoint settings:\n* "
        ipam = options.decode(
            _object(endpoint["IPAMConfig"], where), options.IPAM_CONFIG, f"{where}.IPAMConfig"
        )
        if network != mode:
            raise errdefs.NotImplementedHere(
                f"attaching to a network ({network}) besides the network mode ({mode}) is not implemented"
            )
        if ipam["IPv4Address"]:
            raise errdefs.InvalidArgument(
                f"{wrong}user specified IP address is supported on user defined networks only"
            )
        if endpoint["Aliases"]:
            raise errdefs.InvalidArgument(
                f"{wrong}network-scoped aliases are only supported for user-defined networks"
            )
        result[network] = endpoint
    own = config["MacAddress"]
    mac = next((endpoint["MacAddress"] for endpoint in result.values() if endpoint["MacAddress"]), "")
    if own and mac and own.lower() != mac.lower():
        raise errdefs.InvalidArgument(
            "the container-wide MAC address must match the endpoint-specific MAC address for the main "
            "network, or be left empty"
        )
    for text in (own, mac):
        parts = text.split(":")
        if text and (len(parts) != 6 or not all(len(p) == 2 and _is_hex(p) for p in parts)):
            raise errdefs.InvalidArgument(f"invalid config for network {mode}: invalid MAC address {text}")
    if (mode.startswith("container:") or mode in ("host", "none")) and (mac or own):
        raise errdefs.InvalidArgument("conflicting options: mac-address and the network mode")
    return result


def _is_hex(text: str) -> bool:
    return all(character in "0123456789abcdefABCDEF" for character in text)


def _hostname(container_id: str, host_config: Mapping[str, Any]) -> str:
    if host_config["NetworkMode"] == "host" or host_config["UTSMode"] == "host":
        return socket.gethostname()
    return container_id[:12]


def _log_path(folder: Path, container_id: str, driver: str) -> str:
    """Where Docker has the file of that driver; empty when there is none."""
    names = {"json-file": f"{container_id}-json.log", "local": "local-logs/container.log"}
    return str(folder / names[driver]) if driver in names else ""


def _new_id(engine: Engine) -> str:
    """64 hex digits that no container has, and whose first 12 are no number: they serve as a host name."""
    while True:
        candidate = secrets.token_hex(32)
        if engine.store.get(candidate) is None and not candidate[:12].isdecimal():
            return candidate

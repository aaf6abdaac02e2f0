"""Containers and execs as the API shows them (API 1.50: ContainerInspect, ContainerList, ExecInspect)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dockerd_api.engine import ports
from dockerd_api.engine.model import Container, Exec

STORAGE_DRIVER = "overlayfs"


def inspect(record: Container, folder: Path, execs: Sequence[Exec]) -> dict[str, Any]:
    """GET /containers/{id}/json. `folder` is the container's on disk; the size is added by the caller."""
    state = record.state
    started = record.runs > 0
    running_execs = [run.id for run in execs if run.exit_code is None]
    return {
        "Id": record.id,
        "Created": record.created,
        "Path": record.path,
        "Args": list(record.args),
        "State": {
            "Status": state.status,
            "Running": state.running,
            "Paused": state.paused,
            "Restarting": state.restarting,
            "OOMKilled": state.oom_killed,
            "Dead": state.dead,
            "Pid": state.pid,
            "ExitCode": state.exit_code,
            "Error": state.error,
            "StartedAt": state.started_at,
            "FinishedAt": state.finished_at,
        },
        "Image": record.image_id,
        "ResolvConfPath": str(folder / "resolv.conf") if started else "",
        "HostnamePath": str(folder / "hostname") if started else "",
        "HostsPath": str(folder / "hosts") if started else "",
        "LogPath": record.log_path if started and record.log_driver == "json-file" else "",
        "Name": f"/{record.name}",
        "RestartCount": record.restart_count,
        "Driver": STORAGE_DRIVER,
        "Platform": record.platform,
        "MountLabel": record.mount_label,
        "ProcessLabel": record.process_label,
        "AppArmorProfile": record.apparmor_profile,
        "ExecIDs": running_execs or None,
        "HostConfig": _host_config(record.host_config),
        "GraphDriver": {"Data": None, "Name": STORAGE_DRIVER},
        "Mounts": list(record.mounts),
        "Config": _config(record.config),
        "NetworkSettings": _network_settings(record),
    }


def image_manifest(record: Container) -> dict[str, Any]:
    """The descriptor of the manifest that it was made from, as the API has it from 1.48 on; empty where it is
    not known.
    """
    return {"ImageManifestDescriptor": record.image_manifest} if record.image_manifest else {}


_LEFT_OUT_WHEN_EMPTY = (
    "MacAddress",
    "StopSignal",
    "StopTimeout",
    "Shell",
    "NetworkDisabled",
    "Healthcheck",
    "ArgsEscaped",
)


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    shown = {
        key: value
        for key, value in config.items()
        if key not in _LEFT_OUT_WHEN_EMPTY or value not in (None, "", [], False)
    }
    shown["Labels"] = shown["Labels"] or {}
    if not shown["ExposedPorts"]:
        shown.pop("ExposedPorts")
    return shown


_HOST_LEFT_OUT = (
    "Annotations",
    "Mounts",
    "Sysctls",
    "StorageOpt",
    "Init",
    "Tmpfs",
    "KernelMemory",
    "KernelMemoryTCP",
)


def _host_config(host_config: Mapping[str, Any]) -> dict[str, Any]:
    shown = {
        key: value
        for key, value in host_config.items()
        if key not in _HOST_LEFT_OUT or value not in (None, {}, [], 0)
    }
    if host_config["Init"] is not None:
        shown["Init"] = host_config["Init"]
    shown["PortBindings"] = shown["PortBindings"] or {}
    return shown


def _network_settings(record: Container) -> dict[str, Any]:
    networks = endpoints(record)
    first = next(iter(networks.values()), None)
    bridge = networks.get("bridge") or {}
    settings = record.network_settings
    sandbox = settings.get("sandbox_id", "")
    return {
        "Bridge": "",
        "SandboxID": sandbox,
        "SandboxKey": settings.get("netns_path", ""),
        "Ports": published(record) if first and record.state.running else {},
        "HairpinMode": False,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": None,
        "SecondaryIPv6Addresses": None,
        "EndpointID": bridge.get("EndpointID", ""),
        "Gateway": bridge.get("Gateway", ""),
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "IPAddress": bridge.get("IPAddress", ""),
        "IPPrefixLen": bridge.get("IPPrefixLen", 0),
        "IPv6Gateway": "",
        "MacAddress": bridge.get("MacAddress", ""),
        "Networks": networks,
    }


def endpoints(record: Container) -> dict[str, dict[str, Any]]:
    """The container's networks by name; without addresses while it does not run."""
    mode = record.host_config["NetworkMode"]
    if mode.startswith("container:"):
        return {}
    attached = {entry["network_name"]: entry for entry in record.network_settings.get("endpoints") or ()}
    asked = (record.networking.get("EndpointsConfig") or {}).get(mode) or {}
    names = list(attached) or [mode]
    return {name: _endpoint(attached.get(name) or {}, asked) for name in names}


def _endpoint(entry: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "IPAMConfig": asked.get("IPAMConfig"),
        "Links": None,
        "Aliases": None,
        "MacAddress": entry.get("mac_address") or asked.get("MacAddress") or "",
        "DriverOpts": None,
        "GwPriority": asked.get("GwPriority") or 0,
        "NetworkID": entry.get("network_id", ""),
        "EndpointID": entry.get("endpoint_id", ""),
        "Gateway": entry.get("gateway", ""),
        "IPAddress": entry.get("ip_address", ""),
        "IPPrefixLen": entry.get("prefix_len", 0),
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
        "DNSNames": None,
    }


def published(record: Container) -> dict[str, list[dict[str, str]] | None]:
    """Ports by "80/tcp": the bindings, None for one that is exposed only."""
    found: dict[str, list[dict[str, str]] | None] = dict.fromkeys(record.config.get("ExposedPorts") or ())
    for port in record.network_settings.get("ports") or ():
        key = f"{port['container_port']}/{port['protocol']}"
        bound = found.get(key) or []
        bound.append({"HostIp": port["host_ip"], "HostPort": str(port["host_port"])})
        found[key] = bound
    return found


def summary(record: Container, *, now: datetime, size: tuple[int, int] | None) -> dict[str, Any]:
    """One element of GET /containers/json."""
    command = " ".join(
        [record.path, *(f"'{argument}'" if " " in argument else argument for argument in record.args)]
    )
    document: dict[str, Any] = {
        "Id": record.id,
        "Names": [f"/{record.name}"],
        "Image": record.image_ref,
        "ImageID": record.image_id,
        "Command": command,
        "Created": int(_moment(record.created).timestamp()),
        "Ports": _port_list(record),
        "Labels": dict(record.labels),
        "State": record.state.status,
        "Status": status_text(record, now),
        "HostConfig": {"NetworkMode": record.host_config["NetworkMode"]},
        "NetworkSettings": {"Networks": endpoints(record)},
        "Mounts": list(record.mounts),
    }
    if record.host_config.get("Annotations"):
        document["HostConfig"]["Annotations"] = record.host_config["Annotations"]
    if size is not None:
        document["SizeRw"], document["SizeRootFs"] = size
    return document


def _port_list(record: Container) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = []
    if not record.state.running:
        return result
    for key, bound in published(record).items():
        port, protocol = ports.split(key)
        entry = {"PrivatePort": int(port), "Type": protocol}
        if not bound:
            result.append(entry)
        for binding in bound or ():
            result.append({"IP": binding["HostIp"], **entry, "PublicPort": int(binding["HostPort"])})
    return result


def status_text(record: Container, now: datetime) -> str:
    """The column STATUS of `docker ps`."""
    state = record.state
    if state.restarting:
        return f"Restarting ({state.exit_code}) {_ago(state.finished_at, now)} ago"
    if state.running:
        up = f"Up {_ago(state.started_at, now)}"
        return f"{up} (Paused)" if state.paused else up
    if state.status == "removing":
        return "Removal In Progress"
    if state.started_at.startswith("0001"):
        return "Created"
    return f"Exited ({state.exit_code}) {_ago(state.finished_at, now)} ago"


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text[:26].rstrip("Z") + "+00:00").astimezone(UTC)


def _ago(text: str, now: datetime) -> str:
    """A duration in words, as Docker's units.HumanDuration has them."""
    seconds = int((now - _moment(text)).total_seconds())
    if seconds < 1:
        return "Less than a second"
    if seconds == 1:
        return "1 second"
    if seconds < 60:
        return f"{seconds} seconds"
    minutes = seconds // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{hours // 24 // 365} years"


def exec_inspect(record: Exec) -> dict[str, Any]:
    """GET /exec/{id}/json."""
    config = record.config
    process: dict[str, Any] = {
        "tty": record.tty,
        "entrypoint": config["Cmd"][0],
        "arguments": list(config["Cmd"][1:]),
        "privileged": config["Privileged"],
    }
    if config["User"]:
        process["user"] = config["User"]
    return {
        "ID": record.id,
        "Running": record.running,
        "ExitCode": record.exit_code,
        "ProcessConfig": process,
        "OpenStdin": config["AttachStdin"],
        "OpenStderr": config["AttachStderr"],
        "OpenStdout": config["AttachStdout"],
        "CanRemove": False,
        "ContainerID": record.container_id,
        "DetachKeys": config["DetachKeys"],
        "Pid": record.pid,
    }

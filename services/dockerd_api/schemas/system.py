"""The documents of /version and /info (API 1.50: SystemVersion, SystemInfo)."""

from __future__ import annotations

import functools
import os
import platform
import socket
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dockerd_api.config import API_VERSION, LEAST_API_VERSION, VERSION
from dockerd_api.engine import log_drivers
from dockerd_api.engine.host import host
from dockerd_api.engine.model import now_rfc3339

_GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def api_text(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def architecture() -> str:
    """The host's architecture by Go's name."""
    return _GO_NAMES.get(host().machine, host().machine)


@functools.cache
def _built() -> str:
    """When the newest of this package's files was written, by the install that copied it or an editor."""
    package = Path(__file__).resolve().parent.parent
    newest = max(path.stat().st_mtime for path in package.rglob("*.py"))
    return datetime.fromtimestamp(newest, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000+00:00")


def version(containerd: tuple[str, str] | None) -> dict[str, Any]:
    """GET /version; `containerd` is its version and revision, None when it does not answer."""
    about = {
        "ApiVersion": api_text(API_VERSION),
        "Arch": architecture(),
        "BuildTime": _built(),
        "Experimental": "false",
        "GitCommit": "",
        "GoVersion": f"python{platform.python_version()}",
        "KernelVersion": host().kernel,
        "MinAPIVersion": api_text(LEAST_API_VERSION),
        "Os": "linux",
    }
    shown = (
        "ApiVersion",
        "MinAPIVersion",
        "GitCommit",
        "GoVersion",
        "Os",
        "Arch",
        "KernelVersion",
        "BuildTime",
    )
    components: list[dict[str, Any]] = [{"Name": "Engine", "Version": VERSION, "Details": about}]
    if containerd is not None:
        found, revision = containerd
        components.append({"Name": "containerd", "Version": found, "Details": {"GitCommit": revision}})
    return {
        "Platform": {"Name": "Buoy"},
        "Components": components,
        "Version": VERSION,
        **{key: about[key] for key in shown},
    }


async def info(state: Any) -> dict[str, Any]:
    """GET /info. `state` is the application's: engine, images, networks, config."""
    engine, config = state.engine, state.config
    facts = host()
    phases = Counter(record.state.status for record in engine.store.all())
    running = phases["running"] + phases["restarting"]
    paused = phases["paused"]
    total = sum(phases.values())
    security = ["name=seccomp,profile=" + str(config["seccomp-profile"])]
    if facts.apparmor:
        security.insert(0, "name=apparmor")
    if facts.cgroup_version == 2:
        security.append("name=cgroupns")
    commit = {"ID": "", "Expected": ""}
    return {
        "ID": state.engine_id,
        "Containers": total,
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": total - running - paused,
        "Images": await _image_count(state),
        "Driver": "overlayfs",
        "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
        "Plugins": {
            "Volume": [],
            "Network": ["bridge", "host", "null"],
            "Authorization": None,
            "Log": list(log_drivers.BUILT),
        },
        "MemoryLimit": "memory" in facts.controllers,
        "SwapLimit": facts.swap_accounting,
        "CpuCfsPeriod": "cpu" in facts.controllers,
        "CpuCfsQuota": "cpu" in facts.controllers,
        "CPUShares": "cpu" in facts.controllers,
        "CPUSet": "cpuset" in facts.controllers,
        "PidsLimit": "pids" in facts.controllers,
        "IPv4Forwarding": _sysctl("net/ipv4/ip_forward") == "1",
        "Debug": config["debug"],
        "NFd": len(os.listdir("/proc/self/fd")),
        "OomKillDisable": facts.oom_kill_disable,
        "NGoroutines": len(os.listdir("/proc/self/task")),
        "SystemTime": now_rfc3339(),
        "LoggingDriver": config["log-driver"],
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": str(facts.cgroup_version),
        "NEventsListener": 0,
        "KernelVersion": facts.kernel,
        "OperatingSystem": facts.os_name,
        "OSVersion": facts.os_version,
        "OSType": "linux",
        "Architecture": facts.machine,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": state.registries.document(),
        "NCPU": facts.processors,
        "MemTotal": facts.memory_bytes,
        "GenericResources": None,
        "DockerRootDir": str(config["data-root"]),
        "HttpProxy": _without_password(config["http-proxy"] or os.environ.get("HTTP_PROXY", "")),
        "HttpsProxy": _without_password(config["https-proxy"] or os.environ.get("HTTPS_PROXY", "")),
        "NoProxy": config["no-proxy"] or os.environ.get("NO_PROXY", ""),
        "Name": socket.gethostname(),
        "Labels": list(config["labels"]),
        "ExperimentalBuild": False,
        "ServerVersion": VERSION,
        "Runtimes": {name: {"path": path or "runc-bin"} for name, path in engine.settings.runtimes.items()},
        "DefaultRuntime": config["default-runtime"],
        "Swarm": {
            "NodeID": "",
            "NodeAddr": "",
            "LocalNodeState": "inactive",
            "ControlAvailable": False,
            "Error": "",
            "RemoteManagers": None,
        },
        "LiveRestoreEnabled": True,
        "Isolation": "",
        "InitBinary": config["init-path"] or "tini",
        "ContainerdCommit": commit,
        "RuncCommit": commit,
        "InitCommit": commit,
        "SecurityOptions": security,
        "CDISpecDirs": [],
        "Containerd": {
            "Address": config["containerd"],
            "Namespaces": {"Containers": config["containerd-namespace"], "Plugins": ""},
        },
        "Warnings": state.networks.warnings() or None,
    }


def _without_password(proxy: str) -> str:
    """The address of a proxy as anybody may see it."""
    scheme, separator, rest = proxy.rpartition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}{separator}xxxxx:xxxxx@{host}" if at and user else proxy


async def _image_count(state: Any) -> int:
    return int(await state.images.count())


def _sysctl(name: str) -> str:
    try:
        with open(f"/proc/sys/{name}") as file:
            return file.read().strip()
    except OSError:
        return ""

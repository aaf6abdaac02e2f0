"""The OCI document of a container: a pure function of its record and of what was found out for it before.

The defaults are Docker's (moby daemon/pkg/oci/defaults.go, daemon/oci_linux.go); the form is the runtime
specification's (https://github.com/opencontainers/runtime-spec/blob/main/config.md). The annotations are
those of docs/contracts.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dockerd_api.engine import log_drivers, merge, signals, validate
from dockerd_api.engine.model import Container
from dockerd_api.engine.mounts import Mount
from dockerd_api.engine.users import User

INIT_PATH = "/sbin/docker-init"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UNTOUCHED_BY_READONLY = ("/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue")


@dataclass(frozen=True, slots=True)
class Security:
    """What confines the processes. Lists of paths are as they go into the document."""

    capabilities: Sequence[str]
    seccomp: Mapping[str, Any] | None
    masked_paths: Sequence[str]
    readonly_paths: Sequence[str]
    apparmor_profile: str
    no_new_privileges: bool


@dataclass(frozen=True, slots=True)
class Device:
    """A device node to make and the access to give. `kind` is "c" or "b"; `mode` its permission bits."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int
    access: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a document needs besides the record, all found out before."""

    user: User
    security: Security
    mounts: Sequence[Mount]
    devices: Sequence[Device]
    netns_path: str | None  # None: the host's
    new_netns: bool  # the namespace is this container's own
    pid_namespace: str  # path to join, "" for a new one or the host's
    ipc_namespace: str
    container_dir: str  # on disk: hostname, hosts, resolv.conf, the log, the exit record
    shm_path: str  # on the host, what is shared as /dev/shm, "" for one of its own
    hosts_dir: str  # whose hostname, hosts and resolv.conf are mounted
    cgroup_parent: str
    init_binary: str  # "" for none
    sysctls: Mapping[str, str]  # defaults that the kernel knows
    recursive_readonly: bool  # the kernel and the runtime can
    default_ulimits: Sequence[Mapping[str, Any]]


def build(record: Container, around: Surroundings) -> dict[str, Any]:
    """The document config.json, ready for JSON."""
    config, host = record.config, record.host_config
    privileged = bool(host["Privileged"])
    mounts, propagation = _mounts(record, around)
    linux: dict[str, Any] = {
        "cgroupsPath": f"{around.cgroup_parent.rstrip('/')}/{record.id}",
        "namespaces": _namespaces(record, around),
        "devices": [_device(device) for device in around.devices],
        "resources": _resources(host, around.devices, privileged),
        "sysctl": _sysctls(record, around),
        "maskedPaths": list(around.security.masked_paths),
        "readonlyPaths": list(around.security.readonly_paths),
    }
    if around.security.seccomp is not None:
        linux["seccomp"] = dict(around.security.seccomp)
    if propagation:
        linux["rootfsPropagation"] = propagation
    return {
        "ociVersion": "1.2.0",
        "process": _process(record, around),
        "root": {"path": "rootfs", "readonly": bool(host["ReadonlyRootfs"])},
        "hostname": "" if host["UTSMode"] == "host" else config["Hostname"],
        "mounts": mounts,
        "annotations": _annotations(record, around),
        "linux": linux,
    }


def _process(record: Container, around: Surroundings) -> dict[str, Any]:
    config, host = record.config, record.host_config
    args = [record.path, *record.args]
    if around.init_binary:
        args = [INIT_PATH, "--", *args]
    process: dict[str, Any] = {
        "terminal": record.tty,
        "user": user_document(around.user),
        "args": args,
        "env": merge.process_env(
            config,
            hostname=config["Hostname"],
            tty=record.tty,
            user_home=around.user.home,
            default_path=DEFAULT_PATH,
        ),
        "cwd": config["WorkingDir"] or "/",
        "capabilities": capability_sets(around.security.capabilities),
        "noNewPrivileges": around.security.no_new_privileges,
        "oomScoreAdj": host["OomScoreAdj"],
        "rlimits": rlimits(host, around.default_ulimits),
    }
    if around.security.apparmor_profile:
        process["apparmorProfile"] = around.security.apparmor_profile
    height, width = host["ConsoleSize"]
    if record.tty and height and width:
        process["consoleSize"] = {"height": height, "width": width}
    return process


def user_document(user: User) -> dict[str, Any]:
    """A process's `user`."""
    return {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional_gids)}


def capability_sets(names: Sequence[str]) -> dict[str, list[str]]:
    """A process's `capabilities`: Docker sets neither the inheritable nor the ambient ones."""
    return {"bounding": list(names), "effective": list(names), "permitted": list(names)}


def rlimits(host: Mapping[str, Any], defaults: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A process's `rlimits`: the daemon's defaults, the container's own over them."""
    limits = {limit["Name"]: limit for limit in defaults}
    limits.update({limit["Name"]: limit for limit in host["Ulimits"] or []})
    return [
        {
            "type": f"RLIMIT_{name.upper()}",
            "soft": limit["Soft"] & (2**64 - 1),  # -1 is RLIM_INFINITY
            "hard": limit["Hard"] & (2**64 - 1),
        }
        for name, limit in limits.items()
    ]


def _namespaces(record: Container, around: Surroundings) -> list[dict[str, str]]:
    host = record.host_config
    spaces: list[dict[str, str]] = [{"type": "mount"}]
    if around.netns_path is not None:
        spaces.append({"type": "network", "path": around.netns_path})
    if host["UTSMode"] != "host":
        spaces.append({"type": "uts"})
    for key, kind, path in (
        ("PidMode", "pid", around.pid_namespace),
        ("IpcMode", "ipc", around.ipc_namespace),
    ):
        if host[key] != "host":
            spaces.append({"type": kind, "path": path} if path else {"type": kind})
    if host["CgroupnsMode"] == "private":
        spaces.append({"type": "cgroup"})
    return spaces


def _device(device: Device) -> dict[str, Any]:
    return {
        "path": device.path,
        "type": device.kind,
        "major": device.major,
        "minor": device.minor,
        "fileMode": device.mode,
        "uid": device.uid,
        "gid": device.gid,
    }


# null, zero, full, random, urandom, tty, console, ptmx, the pseudo terminals, tun is denied
_DEFAULT_DEVICES: tuple[tuple[int | None, int | None], ...] = (
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (5, 0),
    (5, 1),
    (5, 2),
    (136, None),
)


def _resources(host: Mapping[str, Any], devices: Sequence[Device], privileged: bool) -> dict[str, Any]:
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    if privileged:
        rules = [{"allow": True, "access": "rwm"}]
    else:
        for major, minor in _DEFAULT_DEVICES:
            rule = {"allow": True, "type": "c", "major": major, "access": "rwm"}
            rules.append(rule if minor is None else {**rule, "minor": minor})
        rules.extend(
            {
                "allow": True,
                "type": device.kind,
                "major": device.major,
                "minor": device.minor,
                "access": device.access,
            }
            for device in devices
        )
        rules.extend(validate.device_rule(text) for text in host["DeviceCgroupRules"] or [])
    resources: dict[str, Any] = {"devices": rules}
    memory = {
        "limit": host["Memory"] or None,
        "reservation": host["MemoryReservation"] or None,
        "swap": host["MemorySwap"] if host["MemorySwap"] else None,
        "swappiness": host["MemorySwappiness"],
        "disableOOMKiller": host["OomKillDisable"] or None,
    }
    cpu = {
        "shares": host["CpuShares"] or None,
        "quota": host["CpuQuota"] or None,
        "period": host["CpuPeriod"] or None,
        "cpus": host["CpusetCpus"] or None,
        "mems": host["CpusetMems"] or None,
    }
    if host["NanoCpus"]:
        cpu["period"], cpu["quota"] = 100_000, host["NanoCpus"] * 100_000 // 10**9
    for key, values in (("memory", memory), ("cpu", cpu)):
        given = {name: value for name, value in values.items() if value is not None}
        if given:
            resources[key] = given
    if host["PidsLimit"] is not None:
        resources["pids"] = {"limit": host["PidsLimit"] if host["PidsLimit"] > 0 else -1}
    return resources


def _sysctls(record: Container, around: Surroundings) -> dict[str, str]:
    values: dict[str, str] = {}
    if around.new_netns:
        values.update({key: value for key, value in around.sysctls.items() if key.startswith("net.")})
    if record.config["Domainname"] and record.host_config["UTSMode"] != "host":
        values["kernel.domainname"] = record.config["Domainname"]
    values.update(record.host_config["Sysctls"] or {})
    return values


def _mounts(record: Container, around: Surroundings) -> tuple[list[dict[str, Any]], str]:
    host = record.host_config
    privileged = bool(host["Privileged"])
    taken = {mount.destination for mount in around.mounts}
    result = [mount for mount in _default_mounts(record, around) if mount["destination"] not in taken]
    if "/dev" in taken:
        result = [mount for mount in result if not mount["destination"].startswith("/dev/")]
    for name in ("resolv.conf", "hostname", "hosts"):
        if around.hosts_dir and f"/etc/{name}" not in taken:
            result.append(_bind(f"/etc/{name}", f"{around.hosts_dir}/{name}", ["rbind", "rprivate"]))
    if around.init_binary:
        result.append(_bind(INIT_PATH, around.init_binary, ["bind", "ro"]))
    propagation = ""
    own: list[dict[str, Any]] = []
    for mount in around.mounts:
        if mount.kind == "tmpfs":
            own.append(_mount(mount.destination, "tmpfs", "tmpfs", list(mount.options)))
            continue
        words = ["rbind" if mount.recursive else "bind"]
        if not mount.writable:
            recursive = around.recursive_readonly and mount.readonly_recursive != "no"
            words.append("rro" if recursive else "ro")
        words.append(mount.propagation)
        own.append(_bind(mount.destination, mount.source, words))
        if mount.propagation in ("shared", "rshared"):
            propagation = "shared"
        elif mount.propagation in ("slave", "rslave"):
            propagation = propagation or "rslave"
    result.extend(own)
    if host["ReadonlyRootfs"]:
        for entry in result:
            where = entry["destination"]
            if where not in _UNTOUCHED_BY_READONLY and where not in taken and "ro" not in entry["options"]:
                entry["options"].append("ro")
    if privileged:
        for entry in result:
            if entry["destination"] == "/sys" or entry["type"] == "cgroup":
                entry["options"] = [word for word in entry["options"] if word != "ro"]
    return result, propagation


def _default_mounts(record: Container, around: Surroundings) -> list[dict[str, Any]]:
    host = record.host_config
    secure = ["nosuid", "noexec", "nodev"]
    mounts = [
        _mount("/proc", "proc", "proc", [*secure]),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        _mount("/sys", "sysfs", "sysfs", [*secure, "ro"]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", ["ro", *secure]),
        _mount("/dev/mqueue", "mqueue", "mqueue", [*secure]),
    ]
    if around.shm_path:
        mounts.append(_bind("/dev/shm", around.shm_path, ["rbind", "rprivate"]))
    elif host["IpcMode"] != "none":
        mounts.append(_mount("/dev/shm", "tmpfs", "shm", [*secure, "mode=1777", f"size={host['ShmSize']}"]))
    return mounts


def _mount(destination: str, kind: str, source: str, words: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": words}


def _bind(destination: str, source: str, words: list[str]) -> dict[str, Any]:
    return _mount(destination, "bind", source, words)


def _annotations(record: Container, around: Surroundings) -> dict[str, str]:
    host = record.host_config
    found = dict(host["Annotations"] or {})
    found["dev.buoy.container-dir"] = around.container_dir
    found["dev.buoy.stop.signal"] = str(signals.stop_signal(record.config))
    if record.config.get("StopTimeout") is not None:
        found["dev.buoy.stop.timeout"] = str(record.config["StopTimeout"])
    found |= {f"dev.buoy.{name}": value for name, value in log_drivers.shim_annotations(record).items()}
    return found

"""The runtime spec (config.json, process.json) read into plain objects, checked as a whole before anything
is changed.

Every reader raises `errdefs.InvalidArgument` naming the field, or `errdefs.NotImplementedHere` for a part
of the spec that is not built: nothing asked for is dropped in silence. Source: opencontainers/runtime-spec,
config.md and config-linux.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from errdefs import InvalidArgument, NotFound, NotImplementedHere
from linux import syscalls
from linux.mounts import MS_BIND

from runc_bin.libcontainer import mount_options
from runc_bin.libcontainer.capabilities import Capabilities
from runc_bin.libcontainer.mount_options import MountOptions

OCI_VERSION = "1.2.0"

NAMESPACE_FLAGS: dict[str, int] = {
    "user": syscalls.CLONE_NEWUSER,
    "pid": syscalls.CLONE_NEWPID,
    "network": syscalls.CLONE_NEWNET,
    "mount": syscalls.CLONE_NEWNS,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "cgroup": syscalls.CLONE_NEWCGROUP,
}
RLIMITS: dict[str, int] = {  # include/uapi/asm-generic/resource.h
    "RLIMIT_CPU": 0,
    "RLIMIT_FSIZE": 1,
    "RLIMIT_DATA": 2,
    "RLIMIT_STACK": 3,
    "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5,
    "RLIMIT_NPROC": 6,
    "RLIMIT_NOFILE": 7,
    "RLIMIT_MEMLOCK": 8,
    "RLIMIT_AS": 9,
    "RLIMIT_LOCKS": 10,
    "RLIMIT_SIGPENDING": 11,
    "RLIMIT_MSGQUEUE": 12,
    "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14,
    "RLIMIT_RTTIME": 15,
}
HOOK_KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_DEVICE_TYPES = ("c", "b", "u", "p")
_PERSONALITIES = {"LINUX": 0x0000, "LINUX32": 0x0008}
_SCHEDULERS = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
_SCHEDULER_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
_IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}

T = TypeVar("T")


@dataclass(frozen=True)
class Rlimit:
    """One resource limit: the name's number, soft and hard value (2**64 - 1 is no limit)."""

    name: str
    number: int
    soft: int
    hard: int


@dataclass(frozen=True)
class Scheduler:
    """Arguments of sched_setattr(2); times in nanoseconds."""

    policy: int
    flags: int
    nice: int
    priority: int
    runtime: int
    deadline: int
    period: int


@dataclass(frozen=True)
class Process:
    """What is executed, and as whom. `umask` and `oom_score_adj` are None where the spec has none."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    terminal: bool
    console_size: tuple[int, int] | None  # rows, columns
    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    umask: int | None
    capabilities: Capabilities | None
    rlimits: tuple[Rlimit, ...]
    no_new_privileges: bool
    apparmor_profile: str
    oom_score_adj: int | None
    scheduler: Scheduler | None
    io_priority: int | None


@dataclass(frozen=True)
class Namespace:
    """A namespace to make, or with `path` to join."""

    kind: str
    path: str

    @property
    def flag(self) -> int:
        return NAMESPACE_FLAGS[self.kind]


@dataclass(frozen=True)
class Mount:
    """One entry of `mounts`; `source` is absolute for a bind."""

    destination: str
    kind: str
    source: str
    options: MountOptions


@dataclass(frozen=True)
class Device:
    """A device node to make."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


@dataclass(frozen=True)
class Hook:
    """A program to run at a point of the life cycle; `timeout` in seconds, None for no limit."""

    path: str
    args: tuple[str, ...]
    env: tuple[str, ...] | None
    timeout: int | None


@dataclass(frozen=True)
class IdMapping:
    """`size` ids from `container_id` inside are those from `host_id` outside."""

    container_id: int
    host_id: int
    size: int


@dataclass(frozen=True)
class Spec:
    """A checked config.json. `rootfs` is absolute and free of links; `linux` is the document's own section."""

    version: str
    process: Process | None
    rootfs: str
    readonly_rootfs: bool
    hostname: str
    domainname: str
    mounts: tuple[Mount, ...]
    hooks: Mapping[str, tuple[Hook, ...]]
    annotations: Mapping[str, str]
    namespaces: Mapping[str, Namespace]
    devices: tuple[Device, ...]
    sysctl: Mapping[str, str]
    masked_paths: tuple[str, ...]
    readonly_paths: tuple[str, ...]
    rootfs_propagation: int
    seccomp: Mapping[str, Any] | None
    personality: int | None
    uid_mappings: tuple[IdMapping, ...]
    gid_mappings: tuple[IdMapping, ...]
    linux: Mapping[str, Any] = field(repr=False)

    def is_private(self, kind: str) -> bool:
        """Whether the container gets a namespace of that kind of its own."""
        namespace = self.namespaces.get(kind)
        return namespace is not None and not namespace.path


def _get(document: Mapping[str, Any], key: str, kind: type[T], default: T, where: str) -> T:
    value = document.get(key)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidArgument(f"{where}{key} must be of type {kind.__name__}, not {type(value).__name__}")
    return value


def _objects(document: Mapping[str, Any], key: str, where: str) -> list[Mapping[str, Any]]:
    items = _get(document, key, list, [], where)
    for item in items:
        if not isinstance(item, dict):
            raise InvalidArgument(f"{where}{key} must hold objects")
    return items


def _strings(document: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    items = _get(document, key, list, [], where)
    for item in items:
        if not isinstance(item, str):
            raise InvalidArgument(f"{where}{key} must hold strings")
        if "\0" in item:
            raise InvalidArgument(f"{where}{key} must not contain a null byte")
    return tuple(items)


def _string_map(document: Mapping[str, Any], key: str, where: str) -> Mapping[str, str]:
    items = _get(document, key, dict, {}, where)
    for name, value in items.items():
        if not isinstance(value, str):
            raise InvalidArgument(f"{where}{key}.{name} must be a string")
    return items


def _text(document: Mapping[str, Any], key: str, where: str, default: str = "") -> str:
    value = _get(document, key, str, default, where)
    if "\0" in value:
        raise InvalidArgument(f"{where}{key} must not contain a null byte")
    return value


def _number(document: Mapping[str, Any], key: str, where: str, low: int, high: int, default: int = 0) -> int:
    value = _get(document, key, int, default, where)
    if not low <= value <= high:
        raise InvalidArgument(f"{where}{key} must be between {low} and {high}, not {value}")
    return value


_ID_MAX = 0xFFFFFFFE  # the largest id is no id: credentials(7), setuid(2)


def read_process(document: Mapping[str, Any]) -> Process:
    """Check a `process` object."""
    w = "process."
    user = _get(document, "user", dict, {}, w)
    args = _strings(document, "args", w)
    cwd = _text(document, "cwd", w)
    if not cwd:
        raise InvalidArgument("Cwd property must not be empty")
    if not cwd.startswith("/"):
        raise InvalidArgument("Cwd must be an absolute path")
    if not args:
        raise InvalidArgument("args must not be empty")
    if _text(document, "selinuxLabel", w):
        raise InvalidArgument(
            "selinux label is specified in config, but selinux is disabled or not supported"
        )
    if document.get("execCPUAffinity"):
        raise NotImplementedHere("process.execCPUAffinity is not supported")
    size = _get(document, "consoleSize", dict, {}, w)
    rows = _number(size, "height", w + "consoleSize.", 0, 0xFFFF)
    columns = _number(size, "width", w + "consoleSize.", 0, 0xFFFF)
    gids = _get(user, "additionalGids", list, [], w + "user.")
    for gid in gids:
        if not isinstance(gid, int) or isinstance(gid, bool) or not 0 <= gid <= _ID_MAX:
            raise InvalidArgument(f"process.user.additionalGids: invalid gid {gid!r}")
    caps = document.get("capabilities")
    score = document.get("oomScoreAdj")
    return Process(
        args=args,
        env=_strings(document, "env", w),
        cwd=cwd,
        terminal=_get(document, "terminal", bool, False, w),
        console_size=(rows, columns) if rows and columns else None,
        uid=_number(user, "uid", w + "user.", 0, _ID_MAX),
        gid=_number(user, "gid", w + "user.", 0, _ID_MAX),
        additional_gids=tuple(gids),
        umask=_number(user, "umask", w + "user.", 0, 0o7777) if user.get("umask") is not None else None,
        capabilities=Capabilities.read(_get(document, "capabilities", dict, {}, w))
        if caps is not None
        else None,
        rlimits=_read_rlimits(document),
        no_new_privileges=_get(document, "noNewPrivileges", bool, False, w),
        apparmor_profile=_text(document, "apparmorProfile", w),
        oom_score_adj=_number(document, "oomScoreAdj", w, -1000, 1000) if score is not None else None,
        scheduler=_read_scheduler(document),
        io_priority=_read_io_priority(document),
    )


def _read_rlimits(document: Mapping[str, Any]) -> tuple[Rlimit, ...]:
    limits: dict[str, Rlimit] = {}
    for item in _objects(document, "rlimits", "process."):
        name = _text(item, "type", "process.rlimits.")
        if name not in RLIMITS:
            raise InvalidArgument(f"invalid rlimit type {name!r}")
        if name in limits:
            raise InvalidArgument(f"rlimit {name} is given twice")
        soft = _number(item, "soft", f"process.rlimits.{name}.", 0, 2**64 - 1)
        hard = _number(item, "hard", f"process.rlimits.{name}.", 0, 2**64 - 1)
        limits[name] = Rlimit(name, RLIMITS[name], soft, hard)
    return tuple(limits.values())


def _read_scheduler(document: Mapping[str, Any]) -> Scheduler | None:
    section = _get(document, "scheduler", dict, {}, "process.")
    if not section:
        return None
    w = "process.scheduler."
    policy = _text(section, "policy", w)
    if policy not in _SCHEDULERS:
        raise InvalidArgument(f"invalid scheduler policy {policy!r}")
    flags = 0
    for name in _strings(section, "flags", w):
        if name not in _SCHEDULER_FLAGS:
            raise InvalidArgument(f"invalid scheduler flag {name!r}")
        flags |= _SCHEDULER_FLAGS[name]
    top = 2**64 - 1
    return Scheduler(
        policy=_SCHEDULERS[policy],
        flags=flags,
        nice=_number(section, "nice", w, -20, 19),
        priority=_number(section, "priority", w, 0, 99),
        runtime=_number(section, "runtime", w, 0, top),
        deadline=_number(section, "deadline", w, 0, top),
        period=_number(section, "period", w, 0, top),
    )


def _read_io_priority(document: Mapping[str, Any]) -> int | None:
    section = _get(document, "ioPriority", dict, {}, "process.")
    if not section:
        return None
    kind = _text(section, "class", "process.ioPriority.")
    if kind not in _IO_CLASSES:
        raise InvalidArgument(f"invalid ioPriority.class {kind!r}")
    return _IO_CLASSES[kind] << 13 | _number(section, "priority", "process.ioPriority.", 0, 7)


def _read_namespaces(section: Mapping[str, Any]) -> dict[str, Namespace]:
    found: dict[str, Namespace] = {}
    for item in _objects(section, "namespaces", "linux."):
        kind = _text(item, "type", "linux.namespaces.")
        if kind == "time":
            raise NotImplementedHere("time namespaces are not supported")
        if kind not in NAMESPACE_FLAGS:
            raise InvalidArgument(f"namespace {kind!r} does not exist")
        if kind in found:
            raise InvalidArgument(f"malformed spec file: duplicated ns {kind!r}")
        path = _text(item, "path", "linux.namespaces.")
        if path and not path.startswith("/"):
            raise InvalidArgument(f"namespace path {path!r} must be absolute")
        found[kind] = Namespace(kind, path)
    return found


def _read_mount(item: Mapping[str, Any], bundle: str) -> Mount:
    w = "mounts."
    destination = _text(item, "destination", w)
    if not destination:
        raise InvalidArgument("mounts.destination must not be empty")
    if item.get("uidMappings") or item.get("gidMappings"):
        raise NotImplementedHere(f"id-mapped mounts are not supported ({destination})")
    words = _strings(item, "options", w)
    if "idmap" in words or "ridmap" in words:
        raise NotImplementedHere(f"id-mapped mounts are not supported ({destination})")
    options = mount_options.parse(words)
    kind = _text(item, "type", w)
    source = _text(item, "source", w)
    if kind == "bind" and not options.bind:
        options = mount_options.parse((*words, "bind"))
    if options.flags & MS_BIND:
        kind = "bind"
        if options.data:
            raise InvalidArgument(
                f"bind mounts cannot have any filesystem-specific options applied ({destination})"
            )
        if not source:
            raise InvalidArgument(f"mounts: a bind needs a source ({destination})")
        source = os.path.normpath(os.path.join(bundle, source))
    elif not kind:
        raise InvalidArgument(f"mounts: neither a type nor a bind ({destination})")
    return Mount("/" + destination.lstrip("/"), kind, source, options)


def _read_device(item: Mapping[str, Any]) -> Device:
    w = "linux.devices."
    path = _text(item, "path", w)
    if not path.startswith("/"):
        raise InvalidArgument(f"device path {path!r} must be absolute")
    kind = _text(item, "type", w)
    if kind not in _DEVICE_TYPES:
        raise InvalidArgument(f"invalid device type {kind!r} of {path}")
    mode = item.get("fileMode")
    return Device(
        path=path,
        kind="c" if kind == "u" else kind,
        major=_number(item, "major", w, 0, 0xFFFFFFFF),
        minor=_number(item, "minor", w, 0, 0xFFFFFFFF),
        mode=0o666 if mode is None else _number(item, "fileMode", w, 0, 0o177777) & 0o7777,
        uid=_number(item, "uid", w, 0, _ID_MAX),
        gid=_number(item, "gid", w, 0, _ID_MAX),
    )


def _read_hooks(document: Mapping[str, Any]) -> dict[str, tuple[Hook, ...]]:
    section = _get(document, "hooks", dict, {}, "")
    found: dict[str, tuple[Hook, ...]] = {}
    for kind in HOOK_KINDS:
        hooks: list[Hook] = []
        for item in _objects(section, kind, "hooks."):
            path = _text(item, "path", f"hooks.{kind}.")
            if not path.startswith("/"):
                raise InvalidArgument(f"hooks.{kind}.path must be absolute, not {path!r}")
            timeout = item.get("timeout")
            seconds = _number(item, "timeout", f"hooks.{kind}.", 1, 2**31) if timeout is not None else None
            args = _strings(item, "args", f"hooks.{kind}.") or (path,)
            env = _strings(item, "env", f"hooks.{kind}.") if item.get("env") is not None else None
            hooks.append(Hook(path, args, env, seconds))
        if hooks:
            found[kind] = tuple(hooks)
    return found


def _read_mappings(section: Mapping[str, Any], key: str) -> tuple[IdMapping, ...]:
    w = f"linux.{key}."
    return tuple(
        IdMapping(
            _number(item, "containerID", w, 0, 0xFFFFFFFF),
            _number(item, "hostID", w, 0, 0xFFFFFFFF),
            _number(item, "size", w, 1, 0xFFFFFFFF),
        )
        for item in _objects(section, key, "linux.")
    )


# The sysctls that belong to a namespace; any other would change the host: runc's validator and sysctl(7).
_IPC_SYSCTLS = frozenset(
    ["kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"]
)


def _check_sysctl(name: str, value: str, namespaces: Mapping[str, Namespace]) -> str:
    key = name if "/" not in name or ("." in name and name.index(".") < name.index("/")) else _slashed(name)
    if not key or any(c in key for c in "\n=+\0") or ".." in key or key.startswith((".", "/")):
        raise InvalidArgument(f"sysctl {name!r} is not a valid name")
    if "\n" in value.rstrip("\n") or "\0" in value:
        raise InvalidArgument(f"sysctl {name!r} has an invalid value")
    if key in _IPC_SYSCTLS or key.startswith("fs.mqueue."):
        wanted = "ipc"
    elif key.startswith("net."):
        wanted = "network"
    elif key == "kernel.domainname":
        wanted = "uts"
    elif key == "kernel.hostname":
        raise InvalidArgument(
            f'sysctl "{name}" is not allowed as it conflicts with the OCI "hostname" field'
            if "uts" in namespaces
            else f'sysctl "{name}" is not allowed in the hosts UTS namespace'
        )
    else:
        raise InvalidArgument(f'sysctl "{name}" is not in a separate kernel namespace')
    if wanted not in namespaces:
        raise InvalidArgument(f'sysctl "{name}" is not allowed in the hosts {wanted} namespace')
    return key


def _slashed(name: str) -> str:
    """`net/ipv4/conf/eth0.1/x` in the dotted form of sysctl(8), which swaps the two characters."""
    return name.translate(str.maketrans("./", "/."))


def _root_path(document: Mapping[str, Any], bundle: str) -> tuple[str, bool]:
    root = document.get("root")
    if not isinstance(root, dict):
        raise InvalidArgument("root must be specified")
    path = _text(root, "path", "root.")
    if not path:
        raise InvalidArgument("root.path must not be empty")
    rootfs = os.path.realpath(os.path.join(bundle, path))
    if not os.path.isdir(rootfs):
        raise InvalidArgument(f"invalid rootfs: stat {rootfs}: no such file or directory")
    if rootfs == "/":
        raise InvalidArgument("invalid rootfs: the host's root cannot be a container's")
    return rootfs, _get(root, "readonly", bool, False, "root.")


def _refuse_unbuilt(section: Mapping[str, Any]) -> None:
    for key in ("intelRdt", "mountLabel", "timeOffsets", "memoryPolicy", "netDevices"):
        if section.get(key):
            raise NotImplementedHere(f"linux.{key} is not supported")


def read_spec(document: Any, bundle: str) -> Spec:
    """Check a whole config.json, `bundle` being the absolute folder that relative paths start from."""
    if not isinstance(document, dict):
        raise InvalidArgument("config.json must hold an object")
    version = _text(document, "ociVersion", "")
    if not version.startswith("1."):
        raise InvalidArgument(f"unsupported runtime spec version {version!r}")
    section = document.get("linux")
    if section is None:
        raise InvalidArgument("linux must be specified")
    section = _get(document, "linux", dict, {}, "")
    _refuse_unbuilt(section)
    namespaces = _read_namespaces(section)
    rootfs, readonly = _root_path(document, bundle)
    hostname = _text(document, "hostname", "")
    domainname = _text(document, "domainname", "")
    masked = _strings(section, "maskedPaths", "linux.")
    read_only_paths = _strings(section, "readonlyPaths", "linux.")
    if hostname and "uts" not in namespaces:
        raise InvalidArgument("unable to set hostname without a private UTS namespace")
    if domainname and "uts" not in namespaces:
        raise InvalidArgument("unable to set domainname without a private UTS namespace")
    if "mount" not in namespaces:
        raise InvalidArgument("a container needs a mount namespace")
    if "user" in namespaces:
        raise NotImplementedHere("user namespaces are not supported")
    for path in masked + read_only_paths:
        if not path.startswith("/"):
            raise InvalidArgument(f"masked and read-only paths must be absolute, not {path!r}")
    propagation = _text(section, "rootfsPropagation", "linux.")
    if propagation and propagation not in mount_options.PROPAGATION:
        raise InvalidArgument(f"rootfsPropagation={propagation} is not supported")
    personality = _get(section, "personality", dict, {}, "linux.")
    domain = _text(personality, "domain", "linux.personality.")
    if personality and (domain not in _PERSONALITIES or personality.get("flags")):
        raise InvalidArgument(f"invalid personality {domain!r}")
    process = _get(document, "process", dict, {}, "")
    mounts = tuple(_read_mount(item, bundle) for item in _objects(document, "mounts", ""))
    sysctl = _string_map(section, "sysctl", "linux.")
    seccomp = section.get("seccomp")
    return Spec(
        version=version,
        process=read_process(process) if process else None,
        rootfs=rootfs,
        readonly_rootfs=readonly,
        hostname=hostname,
        domainname=domainname,
        mounts=mounts,
        hooks=_read_hooks(document),
        annotations=_string_map(document, "annotations", ""),
        namespaces=namespaces,
        devices=tuple(_read_device(item) for item in _objects(section, "devices", "linux.")),
        sysctl={_check_sysctl(name, value, namespaces): value for name, value in sysctl.items()},
        masked_paths=masked,
        readonly_paths=read_only_paths,
        rootfs_propagation=mount_options.PROPAGATION.get(propagation, 0),
        seccomp=_get(section, "seccomp", dict, {}, "linux.") if seccomp else None,
        personality=_PERSONALITIES[domain] if personality else None,
        uid_mappings=_read_mappings(section, "uidMappings"),
        gid_mappings=_read_mappings(section, "gidMappings"),
        linux=section,
    )


def load_json(path: str, reader: Callable[[Any], T], missing: str) -> T:
    """Read a JSON file and check it with `reader`; `missing` is the message when there is no such file."""
    try:
        with open(path, "rb") as file:
            raw = file.read()
    except FileNotFoundError:
        raise NotFound(missing) from None
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{path} is not valid JSON: {error}") from None
    return reader(document)


def load_spec(bundle: str) -> Spec:
    """The checked config.json of a bundle folder (absolute)."""
    return load_json(
        os.path.join(bundle, "config.json"),
        lambda document: read_spec(document, bundle),
        "JSON specification file config.json not found",
    )

"""The runtime spec (config.json, process.json) read into plain objects, checked as a whole before anything
is changed.

Every reader raises `errdefs.InvalidArgument` naming the field, or `errdefs.NotImplementedHere` for a part
of the spec that is not built: nothing asked for is dropped in silence. Source: opencontainers/runtime-spec,
config.md and config-linux.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from errdefs import InvalidArgument, NotImplementedHere
from linux import syscalls
from linux.mounts import MS_BIND

from runc_bin.libcontainer import mount_options
from runc_bin.libcontainer.fields import ID_MAX, get, load_json, number, objects, string_map, strings, text
from runc_bin.libcontainer.mount_options import MountOptions, data_text
from runc_bin.libcontainer.process_spec import Process, inherited, read_process
from runc_bin.record import Record

NAMESPACE_FLAGS: dict[str, int] = {
    "user": syscalls.CLONE_NEWUSER,
    "pid": syscalls.CLONE_NEWPID,
    "network": syscalls.CLONE_NEWNET,
    "mount": syscalls.CLONE_NEWNS,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "cgroup": syscalls.CLONE_NEWCGROUP,
    "time": syscalls.CLONE_NEWTIME,
}
HOOK_KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_DEVICE_TYPES = ("c", "b", "u", "p")
_PERSONALITIES = {"LINUX": 0x0000, "LINUX32": 0x0008}


class Namespace(Record):
    """A namespace to make, or with `path` to join."""

    kind: str
    path: str

    @property
    def flag(self) -> int:
        return NAMESPACE_FLAGS[self.kind]


class Mount(Record):
    """One entry of `mounts`; `source` is absolute for a bind.

    The mappings are those of an id-mapped mount; without any it has those of the container.
    """

    destination: str
    kind: str
    source: str
    options: MountOptions
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()


class Device(Record):
    """A device node to make."""

    path: str
    kind: str
    major: int
    minor: int
    mode: int
    uid: int
    gid: int


class Hook(Record):
    """A program to run at a point of the life cycle; `timeout` in seconds, None for no limit."""

    path: str
    args: tuple[str, ...]
    env: tuple[str, ...] | None
    timeout: int | None


class IdMapping(Record):
    """`size` ids from `container_id` inside are those from `host_id` outside."""

    container_id: int
    host_id: int
    size: int


class Spec(Record):
    """A checked config.json. `rootfs` is absolute and free of links; `linux` is the section as it stands;
    `mount_label` is empty where the host has no SELinux; `warnings` name what has no effect.
    """

    version: str
    process: Process | None
    process_defaults: Mapping[str, Any]  # see `process_spec.inherited`
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
    time_offsets: Mapping[str, tuple[int, int]]  # clock: (seconds, nanoseconds)
    mount_label: str
    warnings: tuple[str, ...]
    linux: Mapping[str, Any]

    @property
    def takes_sources(self) -> bool:
        """Whether sources of binds are taken before the mounts are made: see `Root.take_sources`."""
        return "user" in self.namespaces or any(mount.options.id_map for mount in self.mounts)

    def is_private(self, kind: str) -> bool:
        """Whether the container gets a namespace of that kind of its own."""
        namespace = self.namespaces.get(kind)
        return namespace is not None and not namespace.path


def _read_namespaces(section: Mapping[str, Any]) -> dict[str, Namespace]:
    found: dict[str, Namespace] = {}
    for item in objects(section, "namespaces", "linux."):
        kind = text(item, "type", "linux.namespaces.")
        if kind not in NAMESPACE_FLAGS:
            raise InvalidArgument(f"linux.namespaces.type: namespace {kind!r} does not exist")
        if kind in found:
            raise InvalidArgument(f"linux.namespaces: malformed spec file: duplicated ns {kind!r}")
        path = text(item, "path", "linux.namespaces.")
        if path and not path.startswith("/"):
            raise InvalidArgument(f"linux.namespaces.path: namespace path {path!r} must be absolute")
        found[kind] = Namespace(kind, path)
    return found


def _read_mount(item: Mapping[str, Any], bundle: str, namespaces: Mapping[str, Namespace]) -> Mount:
    w = "mounts."
    destination = text(item, "destination", w)
    if not destination:
        raise InvalidArgument("mounts.destination must not be empty")
    words = strings(item, "options", w)
    options = mount_options.parse(words)
    kind = text(item, "type", w)
    source = text(item, "source", w)
    if kind == "bind" and not options.bind:
        options = mount_options.parse((*words, "bind"))
    if options.flags & MS_BIND:
        kind = "bind"
        if not source and not options.remount:
            raise InvalidArgument(f"mounts.source: a bind needs a source ({destination})")
        source = os.path.join(bundle, source) if source else ""
    elif not kind and not options.remount:
        raise InvalidArgument(f"mounts.type: neither a type nor a bind ({destination})")
    if options.copy_up:
        from runc_bin.libcontainer import copy_up  # noqa: F401 - later nothing is loaded any more
    mount = Mount("/" + destination.lstrip("/"), kind, source, options)
    if options.id_map or item.get("uidMappings") or item.get("gidMappings"):
        return _read_id_mapped(mount, item, namespaces)
    return mount


def _read_id_mapped(mount: Mount, item: Mapping[str, Any], namespaces: Mapping[str, Namespace]) -> Mount:
    from runc_bin.libcontainer import id_mappings

    where = f"({mount.destination})"
    if mount.kind != "bind" or mount.options.remount:
        raise InvalidArgument(f"mounts.options: id-mapped mounts are only supported for bind-mounts {where}")
    uids = _read_mappings(item, "uidMappings", "mounts.")
    gids = _read_mappings(item, "gidMappings", "mounts.")
    if bool(uids) != bool(gids):
        raise InvalidArgument(f"mounts.uidMappings and mounts.gidMappings must be given together {where}")
    if not uids and "user" not in namespaces:
        raise InvalidArgument(
            f"an id-mapped mount needs mounts.uidMappings and mounts.gidMappings, or a user namespace {where}"
        )
    id_mappings.check_ranges(uids, "mounts.uidMappings")
    id_mappings.check_ranges(gids, "mounts.gidMappings")
    options = mount.options if mount.options.id_map else mount.options.replace(id_map="idmap")
    return mount.replace(options=options, uid_mappings=uids, gid_mappings=gids)


def _read_device(item: Mapping[str, Any]) -> Device:
    w = "linux.devices."
    path = text(item, "path", w)
    if not path.startswith("/"):
        raise InvalidArgument(f"linux.devices.path: device path {path!r} must be absolute")
    path = os.path.normpath("/" + path.lstrip("/"))
    if path == "/":
        raise InvalidArgument("linux.devices.path must name a file")
    kind = text(item, "type", w)
    if kind not in _DEVICE_TYPES:
        raise InvalidArgument(f"linux.devices.type: invalid device type {kind!r} of {path}")
    for key in ("major", "minor"):
        if kind != "p" and item.get(key) is None:
            raise InvalidArgument(f"linux.devices.{key} must be specified for {path}")
    mode = item.get("fileMode")
    return Device(
        path=path,
        kind="c" if kind == "u" else kind,
        major=number(item, "major", w, 0, 0xFFF),  # 12 and 20 bits: MKDEV of the kernel
        minor=number(item, "minor", w, 0, 0xFFFFF),
        mode=0o666 if mode is None else number(item, "fileMode", w, 0, 0o177777) & 0o7777,
        uid=number(item, "uid", w, 0, ID_MAX),
        gid=number(item, "gid", w, 0, ID_MAX),
    )


def _read_devices(section: Mapping[str, Any]) -> tuple[Device, ...]:
    found: dict[str, Device] = {}
    for item in objects(section, "devices", "linux."):
        device = _read_device(item)
        if found.setdefault(device.path, device) != device:
            raise InvalidArgument(f"linux.devices: two different devices at {device.path}")
    return tuple(found.values())


def _read_hooks(document: Mapping[str, Any]) -> dict[str, tuple[Hook, ...]]:
    section = get(document, "hooks", dict, {}, "")
    found: dict[str, tuple[Hook, ...]] = {}
    for kind in HOOK_KINDS:
        hooks: list[Hook] = []
        for item in objects(section, kind, "hooks."):
            path = text(item, "path", f"hooks.{kind}.")
            if not path.startswith("/"):
                raise InvalidArgument(f"hooks.{kind}.path must be absolute, not {path!r}")
            timeout = item.get("timeout")
            seconds = number(item, "timeout", f"hooks.{kind}.", 1, 2**31) if timeout is not None else None
            args = strings(item, "args", f"hooks.{kind}.") or (path,)
            env = strings(item, "env", f"hooks.{kind}.") if item.get("env") is not None else None
            hooks.append(Hook(path, args, env, seconds))
        if hooks:
            found[kind] = tuple(hooks)
    return found


def _read_annotations(document: Mapping[str, Any]) -> Mapping[str, str]:
    annotations = string_map(document, "annotations", "")
    if "" in annotations:
        raise InvalidArgument("annotations: a key must not be empty")
    return annotations


def _read_mappings(section: Mapping[str, Any], key: str, where: str = "linux.") -> tuple[IdMapping, ...]:
    w = f"{where}{key}."
    return tuple(
        IdMapping(
            number(item, "containerID", w, 0, 0xFFFFFFFF),
            number(item, "hostID", w, 0, 0xFFFFFFFF),
            number(item, "size", w, 1, 0xFFFFFFFF),
        )
        for item in objects(section, key, where)
    )


# The sysctls that belong to a namespace; any other would change the host: runc's validator and sysctl(7).
_IPC_SYSCTLS = frozenset(
    f"kernel.{name}"
    for name in ("msgmax", "msgmnb", "msgmni", "sem", "shmall", "shmmax", "shmmni", "shm_rmid_forced")
)


def _check_sysctl(name: str, value: str, namespaces: Mapping[str, Namespace]) -> str:
    key = name if "/" not in name or ("." in name and name.index(".") < name.index("/")) else _slashed(name)
    parts = _slashed(key).split("/")
    if any(c in "=+" or c.isspace() or not c.isprintable() for c in key) or not all(
        part.strip(".") for part in parts
    ):
        raise InvalidArgument(f"linux.sysctl: sysctl {name!r} is not a valid name")
    if "\n" in value or "\0" in value:
        raise InvalidArgument(f"linux.sysctl: sysctl {name!r} has an invalid value")
    if key in _IPC_SYSCTLS or key.startswith("fs.mqueue."):
        wanted = "ipc"
    elif key.startswith("net."):
        wanted = "network"
    elif key == "kernel.domainname":
        wanted = "uts"
    elif key == "kernel.hostname":
        raise InvalidArgument(
            f'linux.sysctl: sysctl "{name}" is not allowed as it conflicts with the OCI "hostname" field'
            if "uts" in namespaces
            else f'linux.sysctl: sysctl "{name}" is not allowed in the hosts UTS namespace'
        )
    elif key.startswith("user."):
        if "user" not in namespaces:
            raise InvalidArgument(
                f"linux.sysctl: setting ucounts without a user namespace not allowed: {name}"
            )
        wanted = "user"
    else:
        raise InvalidArgument(f'linux.sysctl: sysctl "{name}" is not in a separate kernel namespace')
    if wanted not in namespaces:
        raise InvalidArgument(f'linux.sysctl: sysctl "{name}" is not allowed in the hosts {wanted} namespace')
    return key


def _slashed(name: str) -> str:
    """`net/ipv4/conf/eth0.1/x` in the dotted form of sysctl(8), which swaps the two characters."""
    return name.translate(str.maketrans("./", "/."))


def _root_path(document: Mapping[str, Any], bundle: str) -> tuple[str, bool]:
    root = document.get("root")
    if not isinstance(root, dict):
        raise InvalidArgument("root must be specified")
    path = text(root, "path", "root.")
    if not path:
        raise InvalidArgument("root.path must not be empty")
    rootfs = os.path.realpath(os.path.join(bundle, path))
    if not os.path.isdir(rootfs):
        raise InvalidArgument(f"root.path: invalid rootfs: stat {rootfs}: no such file or directory")
    if rootfs == "/":
        raise InvalidArgument("root.path: invalid rootfs: the host's root cannot be a container's")
    return rootfs, get(root, "readonly", bool, False, "root.")


def _refuse_unbuilt(document: Mapping[str, Any], section: Mapping[str, Any]) -> None:
    for key in ("solaris", "windows", "vm", "zos"):
        if document.get(key):
            raise NotImplementedHere(f"{key} is not supported: this is a runtime for containers of Linux")
    for key in ("intelRdt", "memoryPolicy", "netDevices"):
        if section.get(key):
            raise NotImplementedHere(f"linux.{key} is not supported")


def _check_without_mount_namespace(section: Mapping[str, Any], namespaces: Mapping[str, Namespace]) -> None:
    """Refuse what would change the host's mounts outside the container's root, or could not be done."""
    if section.get("maskedPaths") or section.get("readonlyPaths"):
        raise InvalidArgument(
            "linux.maskedPaths, linux.readonlyPaths: "
            "unable to restrict sys entries without a private MNT namespace"
        )
    if section.get("rootfsPropagation"):
        raise InvalidArgument("linux.rootfsPropagation needs a mount namespace")
    if "user" in namespaces:
        raise InvalidArgument(
            "linux.namespaces: a user namespace needs a mount namespace with it: it may not mount otherwise"
        )


def _mount_label(section: Mapping[str, Any]) -> tuple[str, list[str]]:
    """(the label that mounts get, warnings)."""
    label = text(section, "mountLabel", "linux.")
    if not label:
        return "", []
    from runc_bin.libcontainer import mount_labels, selinux

    mount_labels.check(label)
    if selinux.enabled():
        return label, []
    return "", ["linux.mountLabel has no effect: SELinux is not enabled on this host"]


def _useless(process: Mapping[str, Any], mounts: Iterable[Mount]) -> list[str]:
    """Warnings for fields of other systems, and for words that a bind cannot pass on: its file system is
    mounted already.
    """
    user = process.get("user") or {}
    found = [
        f"process.{where}{key} has no effect on Linux"
        for where, key, section in (("", "commandLine", process), ("user.", "username", user))
        if text(section, key, "process." + where)
    ]
    return found + [
        f"option {data_text([word])} of the bind at {mount.destination} has no effect"
        for mount in mounts
        if mount.kind == "bind"
        for word in mount.options.data
    ]


def read_spec(document: Any, bundle: str) -> Spec:
    """Check a whole config.json, `bundle` being the absolute folder that relative paths start from."""
    if not isinstance(document, dict):
        raise InvalidArgument("config.json must hold an object")
    version = text(document, "ociVersion", "")
    if not version.startswith("1."):
        raise InvalidArgument(f"ociVersion: unsupported runtime spec version {version!r}")
    section = document.get("linux")
    if section is None:
        raise InvalidArgument("linux must be specified")
    section = get(document, "linux", dict, {}, "")
    _refuse_unbuilt(document, section)
    namespaces = _read_namespaces(section)
    rootfs, readonly = _root_path(document, bundle)
    hostname = text(document, "hostname", "")
    domainname = text(document, "domainname", "")
    masked = strings(section, "maskedPaths", "linux.")
    read_only_paths = strings(section, "readonlyPaths", "linux.")
    if hostname and "uts" not in namespaces:
        raise InvalidArgument("hostname: unable to set hostname without a private UTS namespace")
    if domainname and "uts" not in namespaces:
        raise InvalidArgument("domainname: unable to set domainname without a private UTS namespace")
    if "mount" not in namespaces:
        _check_without_mount_namespace(section, namespaces)
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    if "user" in namespaces or section.get("uidMappings") or section.get("gidMappings"):
        from runc_bin.libcontainer import id_mappings

        uid_mappings = _read_mappings(section, "uidMappings")
        gid_mappings = _read_mappings(section, "gidMappings")
        id_mappings.check_given(uid_mappings, gid_mappings, namespaces.get("user"))
    offsets: Mapping[str, tuple[int, int]] = {}
    if "time" in namespaces or section.get("timeOffsets") is not None:
        from runc_bin.libcontainer import time_offsets

        offsets = time_offsets.read(section, namespaces.get("time"))
    for field, paths in (("maskedPaths", masked), ("readonlyPaths", read_only_paths)):
        for path in paths:
            if not path.startswith("/"):
                raise InvalidArgument(f"linux.{field} must be absolute, not {path!r}")
    propagation = text(section, "rootfsPropagation", "linux.")
    if propagation and propagation not in mount_options.PROPAGATION:
        raise InvalidArgument(f"linux.rootfsPropagation={propagation} is not supported")
    personality = get(section, "personality", dict, {}, "linux.")
    domain = text(personality, "domain", "linux.personality.")
    if personality and domain not in _PERSONALITIES:
        raise InvalidArgument(f"linux.personality.domain: invalid personality {domain!r}")
    if strings(personality, "flags", "linux.personality."):
        raise InvalidArgument("linux.personality.flags: the runtime spec has none yet")
    process = get(document, "process", dict, {}, "")
    mounts = tuple(_read_mount(item, bundle, namespaces) for item in objects(document, "mounts", ""))
    sysctl = string_map(section, "sysctl", "linux.")
    label, warnings = _mount_label(section)
    seccomp = section.get("seccomp")
    return Spec(
        version=version,
        process=read_process(process) if process else None,
        process_defaults=inherited(process),
        rootfs=rootfs,
        readonly_rootfs=readonly,
        hostname=hostname,
        domainname=domainname,
        mounts=mounts,
        hooks=_read_hooks(document),
        annotations=_read_annotations(document),
        namespaces=namespaces,
        devices=_read_devices(section),
        sysctl={_check_sysctl(name, value, namespaces): value for name, value in sysctl.items()},
        masked_paths=masked,
        readonly_paths=read_only_paths,
        rootfs_propagation=mount_options.PROPAGATION.get(propagation, 0),
        seccomp=get(section, "seccomp", dict, {}, "linux.") if seccomp else None,
        personality=_PERSONALITIES[domain] if personality else None,
        uid_mappings=uid_mappings,
        gid_mappings=gid_mappings,
        time_offsets=offsets,
        mount_label=label,
        warnings=(*warnings, *_useless(process, mounts)),
        linux=section,
    )


def load_spec(bundle: str) -> Spec:
    """The checked config.json of a bundle folder (absolute)."""
    return load_json(
        os.path.join(bundle, "config.json"),
        lambda document: read_spec(document, bundle),
        "JSON specification file config.json not found",
    )

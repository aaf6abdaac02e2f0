"""What of a container is not its own and so is not in the images: mounts and namespaces that are given from
outside. Each has a key, by which a dump leaves it out and a restore is told what takes its place.

For a mount the key is where it lies inside; for a namespace the names are runc's, so that either restores
what the other wrote.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from errdefs import InvalidArgument
from linux import mounts as m

from runc_bin.libcontainer import devices, paths
from runc_bin.libcontainer.cgroups import hierarchy
from runc_bin.libcontainer.spec import Spec
from runc_bin.libcontainer.state import State

KeyAndValue = dict[str, str]
_NULL = "/dev/null"
# Kinds that CRIU leaves to whoever restores; the others it joins itself.
_HANDED = {"network": ("net", "extRootNetNS"), "pid": ("pid", "extRootPidNS")}


def dumped_mounts(record: State) -> list[KeyAndValue]:
    """The mounts to leave out of a dump of this running container."""
    pid = record.init_process_pid
    table = m.mount_table(pid)
    targets = {point.mount_id: point.target for point in table}
    keys: dict[str, str] = {}
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for destination in record.external_mounts:
            if target := _covered(root, destination, targets):
                keys[target] = target
        for path in record.masked_paths:
            if target := _covered(root, path, targets, files_only=True):
                keys[target] = _NULL
    finally:
        os.close(root)
    if "cgroup" not in record.namespaces:
        keys.update({p.target: p.target for p in table if p.fstype == "cgroup"})
    return [{"key": key, "val": value} for key, value in keys.items()]


def _covered(root: int, path: str, targets: Mapping[int, str], *, files_only: bool = False) -> str:
    """The place of the mount that a path leads to the top of; empty when there is none."""
    try:
        fd = paths.open_in_root(root, path)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    try:
        if files_only and paths.is_directory(fd):
            return ""
        target = targets.get(m.mount_id(fd), "")
        return target if target != "/" and target == os.readlink(f"/proc/self/fd/{fd}") else ""
    finally:
        os.close(fd)


def restored_mounts(spec: Spec, root: int, cgroup_paths: Mapping[str, str]) -> list[KeyAndValue]:
    """What takes the place of the mounts that the dump left out; `root` is a descriptor of the root."""
    found = {_NULL: _NULL}
    for mount in spec.mounts:
        if mount.kind == "bind" and not mount.options.remount:
            found[_inside(root, mount.destination)] = mount.source
        elif mount.kind == "cgroup" and "cgroup" not in spec.namespaces and not hierarchy.unified():
            for controller, (point, _) in hierarchy.v1_mounts().items():
                if controller in cgroup_paths:
                    name = os.path.basename(point)
                    found[f"{_inside(root, mount.destination)}/{name}"] = cgroup_paths[controller]
    if devices.wants_devices(spec) and devices.binds_nodes(spec):
        found.update({device.path: device.path for device in devices.wanted(spec)})
    return [{"key": key, "val": value} for key, value in found.items()]


def _inside(root: int, destination: str) -> str:
    """Where a destination lies once links of the image are followed; itself where it is not there yet, on a
    file system that the restore is to make.
    """
    try:
        fd = paths.open_in_root(root, destination)
    except OSError:
        return os.path.normpath(destination)
    try:
        base = os.readlink(f"/proc/self/fd/{root}").rstrip("/")
        found = os.readlink(f"/proc/self/fd/{fd}")
        return found.removeprefix(base) if found.startswith(base + "/") else os.path.normpath(destination)
    finally:
        os.close(fd)


def dumped_namespaces(record: State) -> list[str]:
    """The namespaces to leave out of a dump, as criu's `--external` has them."""
    found = []
    for kind, (name, key) in _HANDED.items():
        if path := record.namespaces.get(kind):
            found.append(f"{name}[{_inode(kind, path)}]:{key}")
    return found


def handed_namespaces(spec: Spec) -> list[tuple[str, str]]:
    """(key, path) of the namespaces that a restore hands in as descriptors."""
    found = []
    for kind, (_, key) in _HANDED.items():
        namespace = spec.namespaces.get(kind)
        if namespace is not None and namespace.path:
            _inode(kind, namespace.path)
            found.append((key, namespace.path))
    return found


def joined_namespaces(spec: Spec) -> Sequence[KeyAndValue]:
    """The namespaces that CRIU is to join on a restore; InvalidArgument for one that it cannot."""
    joined = []
    for kind, namespace in spec.namespaces.items():
        if not namespace.path or kind in _HANDED:
            continue
        if kind in ("cgroup", "mount", "time"):
            raise InvalidArgument(f"a container cannot be restored into the {kind} namespace of another")
        _inode(kind, namespace.path)
        joined.append({"ns": kind, "ns_file": namespace.path})
    return joined


def _inode(kind: str, path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError as error:
        raise InvalidArgument(f"{kind} namespace {path}: {(error.strerror or '').lower()}") from None

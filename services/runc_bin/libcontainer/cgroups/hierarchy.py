"""Where the host's cgroup hierarchies are, and where a container's `cgroupsPath` lies in them.

Rules of runc's cgroupfs driver: an absolute `cgroupsPath` counts from the root of each hierarchy, a relative
one from the caller's own cgroup (v1) or from the parent of it (v2, since a cgroup with processes cannot give
controllers to its children), and without one the container's id stands for a relative path. `..` never leads
above either. Sources: cgroups(7), runtime-spec config-linux.md "Cgroups Path".
"""

from __future__ import annotations

import os
from collections.abc import Callable

from errdefs import FailedPrecondition

TYPE_CHECKING = False
if TYPE_CHECKING:  # without the cost of `typing`
    from typing import TypeVar

    _Found = TypeVar("_Found")

MOUNT = "/sys/fs/cgroup"
HYBRID_MOUNT = "/sys/fs/cgroup/unified"

# The order in which runc applies them; cpuset and devices first, since a process must not be moved before
# they are set.
V1_CONTROLLERS = (
    "cpuset",
    "devices",
    "memory",
    "cpu",
    "cpuacct",
    "pids",
    "blkio",
    "hugetlb",
    "net_cls",
    "net_prio",
    "perf_event",
    "freezer",
    "rdma",
    "name=systemd",
    "misc",
)


def _once(function: Callable[[], _Found]) -> Callable[[], _Found]:
    """Keep what a function found for the life of the process; `functools` takes a millisecond to import."""
    found: list[_Found] = []

    def known() -> _Found:
        if not found:
            found.append(function())
        return found[0]

    return known


@_once
def unified() -> bool:
    """Whether the host runs cgroup v2 alone. Only a v2 root has cgroup.controllers."""
    return os.path.exists(MOUNT + "/cgroup.controllers")


@_once
def hybrid() -> bool:
    """Whether a controller-less v2 tree is mounted beside the v1 hierarchies."""
    return os.path.exists(HYBRID_MOUNT + "/cgroup.controllers")


@_once
def v2_controllers() -> frozenset[str]:
    """The controllers of the host's v2 tree: all of them on v2, those that v1 has left on a hybrid host."""
    for root in (MOUNT, HYBRID_MOUNT):
        try:
            with open(root + "/cgroup.controllers", encoding="utf-8") as file:
                return frozenset(file.read().split())
        except FileNotFoundError:
            continue
    return frozenset()


def no_power() -> bool:
    """Whether the caller is an ordinary user, or root in a user namespace only."""
    if os.geteuid() != 0:
        return True
    with open("/proc/self/uid_map", encoding="utf-8") as file:
        return file.read().split() != ["0", "0", "4294967295"]


def clean(path: str) -> str:
    """`path` without `.`, `..` and doubled slashes; a relative path stays relative and below its base."""
    if not path:
        return ""
    # normpath keeps two leading slashes, as POSIX has it; the kernel does not care, our prefix tests do
    absolute = "/" + os.path.normpath("/" + path).lstrip("/")
    return absolute if path.startswith("/") else absolute[1:]


def own_cgroups() -> dict[str, str]:
    """The caller's cgroup in each hierarchy, by controller (`name=systemd` for a named one, "" for v2)."""
    return cgroups_of("self")


def cgroups_of(pid: int | str) -> dict[str, str]:
    """The same of another process."""
    found: dict[str, str] = {}
    with open(f"/proc/{pid}/cgroup", encoding="utf-8") as lines:
        for line in lines:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            for controller in controllers.split(","):
                found[controller] = path
    return found


@_once
def v1_mounts() -> dict[str, tuple[str, int]]:
    """Mount point and device number of each v1 controller, in the order of V1_CONTROLLERS.

    Controllers that are mounted together (`cpu,cpuacct`) have the same device number. The result is kept for
    the life of the process, and so for the children that it forks.
    """
    listed = own_cgroups()
    base = os.stat(MOUNT).st_dev
    found: dict[str, tuple[str, int]] = {}
    missing: list[str] = []
    for controller in V1_CONTROLLERS:
        if controller not in listed:
            continue
        point = f"{MOUNT}/{controller.removeprefix('name=')}"
        try:
            device = os.stat(point).st_dev
        except OSError:
            device = base
        if device == base:
            missing.append(controller)
        else:
            found[controller] = (point, device)
    if missing:
        elsewhere = _mounts_from_mountinfo()
        for controller in missing:
            if controller in elsewhere:
                point = elsewhere[controller][0]
                found[controller] = (point, os.stat(point).st_dev)
    return {name: found[name] for name in V1_CONTROLLERS if name in found}


def _mounts_from_mountinfo() -> dict[str, tuple[str, str]]:
    """Mount point and root within the hierarchy of each v1 controller, from proc_pid_mountinfo(5)."""
    found: dict[str, tuple[str, str]] = {}
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        for line in lines:
            before, _, after = line.partition(" - ")
            kind, _, rest = after.partition(" ")
            if kind != "cgroup":
                continue
            fields = before.split(" ")
            for option in rest.split(" ")[-1].strip().split(","):
                if option in V1_CONTROLLERS and option not in found:
                    found[option] = (fields[4], fields[3])
    return found


def v1_paths(cgroups_path: str, container_id: str) -> dict[str, str]:
    """The container's directory in every v1 hierarchy (and, on a hybrid host, under "" in the v2 tree).

    Raises FailedPrecondition when the devices controller is not mounted: without it a container could open
    any device.
    """
    inner = clean(cgroups_path) or clean(container_id)
    mounts = v1_mounts()
    if "devices" not in mounts:
        raise FailedPrecondition("mountpoint for devices not found")
    if inner.startswith("/"):
        paths = {name: point + inner for name, (point, _) in mounts.items()}
    else:
        own = own_cgroups()
        paths = {
            name: _own_directory(name, point, own[name]) + "/" + inner for name, (point, _) in mounts.items()
        }
    if hybrid():
        paths[""] = HYBRID_MOUNT + "/" + inner.lstrip("/")
    return paths


def _own_directory(controller: str, point: str, path: str) -> str:
    # A process that entered a cgroup namespace from outside sees `/..` as its own cgroup.
    directory = (point + clean(path)).rstrip("/")
    if os.path.isdir(directory):
        return directory
    # In a container without a cgroup namespace /proc/self/cgroup shows the host's path, but the mount begins
    # at `root`.
    root = _mounts_from_mountinfo().get(controller, (point, "/"))[1]
    return os.path.normpath(f"{point}/{os.path.relpath(path, root)}")


def v2_path(cgroups_path: str, container_id: str) -> str:
    """The container's directory in the unified hierarchy."""
    inner = clean(cgroups_path) or clean(container_id)
    if inner.startswith("/"):
        return MOUNT + inner
    parent = os.path.dirname(own_cgroups().get("", "/"))
    return f"{MOUNT}{parent.rstrip('/')}/{inner}"

"""Control groups of callers who have no power over the host's: what they may not make, they do without.

As runc does it (`--rootless`): a container without limits and without a `cgroupsPath` runs in its maker's
cgroup, when the maker may make none. What needs a cgroup then (pause, limits, usage) is refused.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from errdefs import BuoyError, FailedPrecondition, NotFound, PermissionDenied
from linux import signals

from runc_bin import contexts

from . import hierarchy
from .device_rules import DeviceState
from .manager import Manager, send_kill
from .oom import OomEvents
from .resources import Resources, by_controller

_NOT_OURS = (errno.EPERM, errno.EACCES, errno.EROFS)


class NoGroup(Manager):
    """In the place of a cgroup that there is not. The container's processes are those in the pid namespace
    of its init, when that is not ours, and the descendants of its init.
    """

    unified = False

    def __init__(self, init: int = 0) -> None:
        super().__init__({}, {})
        self._init = init

    @property
    def directory(self) -> str:
        raise FailedPrecondition("cgroups not configured for container")

    def create(self) -> None:
        pass

    def add_pid(self, pid: int) -> None:
        pass

    def join_self(self, *, born_inside: bool = False) -> None:
        pass

    def apply(self, resources: Resources | None = None) -> None:
        pass

    def _set_limits(self, resources: Resources, *, live: bool) -> None:
        _refuse_limits(resources)

    def _set_devices(self, target: DeviceState) -> None:
        raise PermissionDenied("cannot set devices limit: container could not join or create cgroup")

    def freeze(self) -> None:
        raise FailedPrecondition("cannot toggle freezer: cgroups not configured for container")

    def thaw(self) -> None:
        self.freeze()

    def frozen(self) -> bool:
        return False

    def kill_all(self) -> None:
        # Stopped processes cannot fork away from the list, nor lose the parents that we know them by.
        found: set[int] = set()
        while new := set(self.pids()) - found:
            for pid in new:
                with contexts.suppress(ProcessLookupError):
                    os.kill(pid, signals.SIGSTOP)
            found |= new
        send_kill(sorted(found))

    def oom_kills(self) -> int:
        return 0

    def oom_events(self) -> OomEvents:
        raise NotFound("cgroups not configured for container")

    def stats(self) -> dict[str, Any]:
        raise FailedPrecondition("cgroups not configured for container")

    def exists(self) -> bool:
        return False

    def pids(self) -> list[int]:
        if self._init <= 0:
            return []
        theirs = _pid_namespace(self._init)
        if theirs == _pid_namespace(os.getpid()):
            theirs = None
        parents: dict[int, int] = {}
        inside: set[int] = set()
        for name in os.listdir("/proc"):
            if not name.isdecimal() or (parent := _parent(int(name))) is None:
                continue
            parents[int(name)] = parent
            if theirs is not None and _pid_namespace(int(name)) == theirs:
                inside.add(int(name))
        return sorted(pid for pid in parents if pid in inside or self._is_below(pid, parents))

    def _is_below(self, pid: int, parents: Mapping[int, int]) -> bool:
        while pid > 0:
            if pid == self._init:
                return True
            pid = parents.get(pid, 0)
        return False

    def destroy(self, timeout: float = 0.5) -> None:
        pass


def _pid_namespace(pid: int) -> tuple[int, int] | None:
    try:
        info = os.stat(f"/proc/{pid}/ns/pid")
    except OSError:
        return None
    return info.st_dev, info.st_ino


def _parent(pid: int) -> int | None:
    """The parent of a living process; None for one that is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            letter, parent = file.read().rpartition(b")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return None if letter in b"ZX" else int(parent)


def instead(
    manager: Manager, spec_linux: Mapping[str, Any], error: BuoyError | OSError, *, tolerant: bool | None
) -> Manager:
    """What a container gets whose cgroup the caller may not make, for which `error` is the reason.

    `tolerant` None means: when the caller has no power over the host. Raises `error` where a cgroup is asked
    for, or when it is about something else; PermissionDenied when a limit is.
    """
    if tolerant is None:
        tolerant = hierarchy.no_power()
    forbidden = isinstance(error, PermissionDenied) or (
        isinstance(error, OSError) and error.errno in _NOT_OURS
    )
    if not tolerant or not forbidden or spec_linux.get("cgroupsPath"):
        raise error
    _refuse_limits(spec_linux.get("resources") or {})
    return NoGroup()


def _refuse_limits(resources: Resources) -> None:
    for controller in by_controller(resources):
        raise PermissionDenied(f"cannot set {controller} limit: container could not join or create cgroup")


def check_reach(manager: Manager) -> None:
    """Refuse a cgroup of the v2 tree that the caller could not bring a process into; PermissionDenied.

    The kernel wants a right to write to the nearest common ancestor, too: cgroups(7), "Cgroups delegation".
    """
    if not manager.unified:
        return
    own = f"{hierarchy.MOUNT}{hierarchy.own_cgroups().get('', '/')}".rstrip("/")
    above = os.path.commonpath((own, manager.directory))
    if not os.access(f"{above}/cgroup.procs", os.W_OK, effective_ids=True):
        raise PermissionDenied(
            f"no process may be moved into {manager.directory}: write {above}/cgroup.procs"
        )


def in_reach(manager: Manager) -> Manager:
    """What a further process of an ordinary user's container can join: its cgroup, or as for runc nothing."""
    try:
        check_reach(manager)
    except PermissionDenied:
        return NoGroup()
    return manager

"""What v1 and v2 managers of one container's cgroup have in common, and the choice between them."""

from __future__ import annotations

import errno
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from errdefs import Conflict, FailedPrecondition, InvalidArgument, NotFound
from linux import signals
from linux.crashpoints import crashpoint

from runc_bin import contexts

from . import files, hierarchy
from .device_rules import DeviceState, target_state
from .oom import OomEvents
from .resources import Resources, by_controller, check, entries, section

MEMBERSHIP_RETRIES = 5


class Manager(ABC):
    """One container's cgroup: made, filled, limited, watched and removed.

    `paths` maps controller names to absolute directories, as runc's state.json has it (`cgroup_paths`): on v1
    one entry per controller, `name=systemd` for the named hierarchy and "" for the v2 tree of a hybrid host;
    on v2 the one key "". They are known before `create()`, so that a caller can record them first. `owner` is
    the user id that gets the cgroup on v2 (None: it stays root's). Nothing is kept open between calls.
    """

    unified: ClassVar[bool]  # whether all of it is in the v2 tree

    def __init__(self, paths: Mapping[str, str], resources: Resources, owner: int | None = None) -> None:
        self.paths: dict[str, str] = dict(paths)
        self._resources = resources
        self.owner = owner
        self.unit = ""  # the name of the unit that it is, with the systemd driver
        self.user = False  # whether that is a unit of the caller's own systemd
        self.sub_group = "/"  # the cgroup below the unit's that `attach` moves processes to

    @staticmethod
    def from_paths(paths: Mapping[str, str], unit: str = "", *, user: bool = False) -> Manager:
        """The manager of a container with these `paths` on record, and this `unit` (of the `user`'s systemd).

        InvalidArgument for a relative path.
        """
        for path in paths.values():
            if not path.startswith("/") or os.path.normpath(path) != path:
                raise InvalidArgument(f"invalid cgroup path {path!r}")
        if unit:
            from .systemd import found_unit

            return found_unit(paths, unit, user=user, resources={})
        return _class_for(paths)(paths, {})

    @property
    @abstractmethod
    def directory(self) -> str:
        """The directory whose processes count as the container's."""

    @abstractmethod
    def create(self) -> None:
        """Make the cgroup's directories, fit to take processes.

        Directories of an earlier container are taken over when they are empty. Conflict when processes live
        there, or when it is frozen; what was made before an error is removed.
        """

    # Whether the cgroup can only be made around a process: `start_with` then follows the birth of the first
    # one, which is not to join before.
    starts_with_process = False
    # Whether somebody else has to move a further process into the cgroup: `attach`, and not `join_self`.
    attaches = False

    def start_with(self, pid: int) -> None:
        """Make the cgroup with process `pid` in it; only where `starts_with_process`."""
        raise NotImplementedError

    def attach(self, pid: int) -> None:
        """Have process `pid` moved into the cgroup; only where `attaches`."""
        raise NotImplementedError

    @abstractmethod
    def add_pid(self, pid: int) -> None:
        """Move process `pid` (with its threads, not its children) into the cgroup."""

    @abstractmethod
    def join_self(self, *, born_inside: bool = False) -> None:
        """Move the calling process, which must have one thread, into the cgroup.

        Far cheaper than `add_pid`: to move another process, or a group of threads, the kernel stops all forks
        and waits for a grace period (5 to 20 ms on an idle host), which a lone thread that moves itself is
        spared (Linux 5.18). `born_inside` says that the caller was made by clone3(2) with CLONE_INTO_CGROUP
        on `paths[""]`; that is the only way into a v2 cgroup without the wait.
        """

    def apply(self, resources: Resources | None = None) -> None:
        """Set the limits of an OCI `linux.resources` object (default: those of the spec), device rules
        included.

        What the object leaves out is not touched. InvalidArgument for values that the kernel refuses,
        NotFound for a limit whose controller the host lacks.
        """
        wanted = self._resources if resources is None else resources
        self._set_limits(wanted, live=False)
        self._set_devices(target_state(entries(wanted, "devices")))

    def update(self, resources: Resources) -> None:
        """Change limits of a live container; device rules only when `resources` names them.

        All of it is checked first; InvalidArgument as `resources.check` gives it, and the errors of `apply`.
        """
        check(resources, unified=self.unified)
        state = target_state(entries(resources, "devices")) if resources.get("devices") else None
        self._set_limits(resources, live=True)
        crashpoint("cgroups.updating")
        if state is not None:
            self._set_devices(state)

    @abstractmethod
    def _set_limits(self, resources: Resources, *, live: bool) -> None:
        """Set all limits but the device rules. `live`: values that are not given keep what is in force, also
        where two of them share a file or depend on one another.
        """

    @abstractmethod
    def _set_devices(self, target: DeviceState) -> None:
        """Make `target` the device rules."""

    @abstractmethod
    def freeze(self) -> None:
        """Stop every process until `thaw()`; returns when all have stopped, Internal when some do not."""

    @abstractmethod
    def thaw(self) -> None:
        """Let the processes run again; nothing happens when they run."""

    @abstractmethod
    def frozen(self) -> bool:
        """Whether this cgroup itself is frozen (not merely an ancestor)."""

    @abstractmethod
    def kill_all(self) -> None:
        """SIGKILL to every process of the cgroup and below, also to frozen ones; none need be there."""

    @abstractmethod
    def oom_kills(self) -> int:
        """How many processes were killed at the container's memory limit; 0 without a memory controller."""

    @abstractmethod
    def oom_events(self) -> OomEvents:
        """A descriptor to watch for memory kills; NotFound without a memory controller."""

    @abstractmethod
    def stats(self) -> dict[str, Any]:
        """Usage in the form of `data` in runc's `events --stats`: times in nanoseconds, memory in bytes."""

    def exists(self) -> bool:
        """Whether the cgroup is there."""
        return os.path.isdir(self.directory)

    def pids(self) -> list[int]:
        """Processes of the cgroup and its sub-cgroups, numbered as in our pid namespace; empty when gone."""
        return files.pids_below(self.directory)

    def destroy(self, timeout: float = 0.5) -> None:
        """Remove the cgroup and its sub-cgroups; nothing happens when it is gone.

        Processes that have just been killed still count for a moment, so a busy directory is tried again for
        `timeout` seconds in all; then Conflict, and what could be removed is removed.
        """
        deadline = time.monotonic() + timeout
        busy: list[str] = []
        for path in dict.fromkeys(self.paths.values()):
            if not _remove(path, deadline):
                busy.append(path)
            crashpoint("cgroups.removing")
        if busy:
            raise Conflict(f"failed to remove cgroups, still in use: {', '.join(sorted(busy))}")

    def _require_unused(self) -> None:
        if pids := self.pids():
            raise Conflict(f"container's cgroup is not empty: {len(pids)} process(es) found")
        if self.frozen():
            raise Conflict("container's cgroup unexpectedly frozen")


def manager_for(
    spec_linux: Mapping[str, Any], container_id: str, owner: int | None = None, *, systemd: bool = False
) -> Manager:
    """The manager for a container of the OCI `linux` object `spec_linux` (its `cgroupsPath` and `resources`).

    With `systemd` it is a unit of systemd, and `cgroupsPath` is `slice:prefix:name`.

    Nothing is changed; all of `resources` is checked. InvalidArgument for a spec that is wrong or that this
    host's cgroup version cannot serve, NotFound for a limit whose controller the host lacks,
    FailedPrecondition without a devices controller.
    """
    cgroups_path, resources = spec_linux.get("cgroupsPath"), spec_linux.get("resources")
    cgroups_path = "" if cgroups_path is None else cgroups_path
    resources = {} if resources is None else resources
    if not isinstance(cgroups_path, str) or "\0" in cgroups_path:
        raise InvalidArgument("linux.cgroupsPath must be a path")
    if not isinstance(resources, Mapping):
        raise InvalidArgument("linux.resources must be an object")
    check(resources, unified=hierarchy.unified())
    target_state(entries(resources, "devices"))
    if systemd:
        from .systemd import unit_manager

        made = unit_manager(cgroups_path, resources, container_id, owner, user=hierarchy.no_power())
        _require_controllers(resources, made.paths)
        return made
    if hierarchy.unified():
        paths = {"": hierarchy.v2_path(cgroups_path, container_id)}
        if paths[""].rstrip("/") == hierarchy.MOUNT:
            raise InvalidArgument("linux.cgroupsPath must not be the root")
    else:
        if hierarchy.clean(cgroups_path) == "/":
            raise InvalidArgument("linux.cgroupsPath must not be the root")
        paths = hierarchy.v1_paths(cgroups_path, container_id)
    _require_controllers(resources, paths)
    return _class_for(paths)(paths, resources, owner)


def _require_controllers(resources: Resources, paths: Mapping[str, str]) -> None:
    beside = hierarchy.v2_controllers() if "" in paths else ()
    for controller, limits in by_controller(resources).items():
        if ("blkio" if controller == "io" else controller) not in paths and controller not in beside:
            raise NotFound(
                f"linux.resources.{next(iter(limits))}: "
                f"cgroup controller {controller} is not available on this host"
            )
    for name in section(resources, "unified"):
        controller = name.partition(".")[0]
        if controller not in beside and controller != "cgroup":
            raise NotFound(
                f'unified resource "{name}" can\'t be set: controller "{controller}" not available'
            )


def _class_for(paths: Mapping[str, str]) -> type[Manager]:
    if set(paths) == {""}:
        from .v2 import ManagerV2

        return ManagerV2
    if not paths:
        raise FailedPrecondition("no cgroup paths are recorded")
    from .v1 import ManagerV1

    return ManagerV1


def make_directories(path: str) -> list[str]:
    """mkdir -p: the directories that were missing, outermost first. Removes them again on an error."""
    try:
        os.mkdir(path, 0o755)
        return [path]
    except FileExistsError:
        return []
    except FileNotFoundError:
        made = make_directories(os.path.dirname(path))
        try:
            return made + make_directories(path)
        except BaseException:
            remove_directories(made)
            raise


def remove_directories(made: list[str]) -> None:
    """Take back `make_directories`; directories that somebody has begun to use stay."""
    for path in reversed(made):
        with contexts.suppress(OSError):
            os.rmdir(path)


def join(path: str, pid: int) -> None:
    """Write `pid` (0: the caller) to a membership file.

    Again after EINVAL, which a task in the making gives.
    """
    for attempt in range(MEMBERSHIP_RETRIES):
        try:
            files.write(path, str(pid))
            return
        except OSError as error:
            if error.errno != errno.EINVAL or attempt == MEMBERSHIP_RETRIES - 1:
                raise files.refused(path, str(pid), error) from error
            time.sleep(0.03)


def send_kill(pids: list[int]) -> None:
    """SIGKILL to each process that still exists."""
    for pid in pids:
        with contexts.suppress(ProcessLookupError):
            os.kill(pid, signals.SIGKILL)


def _remove(path: str, deadline: float) -> bool:
    delay = 0.001
    while True:
        try:
            os.rmdir(path)
            return True
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY, errno.EROFS):
                raise
            try:
                names = files.children(path)
            except FileNotFoundError:
                return True
            if error.errno == errno.EROFS:
                return False
        for name in names:
            _remove(f"{path}/{name}", deadline)
        if time.monotonic() >= deadline:
            return False
        time.sleep(delay)
        delay = min(delay * 2, 0.05)

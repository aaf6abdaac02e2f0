"""cgroup v1: one directory per hierarchy (Documentation/admin-guide/cgroup-v1)."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Any

from errdefs import BuoyError, FailedPrecondition, Internal, InvalidArgument, NotFound
from linux.crashpoints import crashpoint

from runc_bin import contexts
from runc_bin.contexts import ExitStack

from . import delegation, files, hierarchy, stats_v1
from .device_rules import DeviceState, parse_list
from .files import set_value
from .manager import Manager, join, make_directories, remove_directories, send_kill
from .oom import OomEvents, watch_v1
from .resources import (
    Resources,
    by_controller,
    device_number,
    entries,
    hugepage_limits,
    number,
    pids_max,
    rdma_limits,
    section,
    swappiness,
    text,
    without,
)

if TYPE_CHECKING:
    from .v2 import ManagerV2

# Joined when the host lets us, without any limit in them; a failure there takes no control away from the
# container's limits.
_BEST_EFFORT = frozenset({"name=systemd", "misc", ""})


class ManagerV1(Manager):
    """A container's directories in the v1 hierarchies."""

    unified = False

    @property
    def directory(self) -> str:
        return self.paths.get("devices") or next(iter(self.paths.values()))

    def create(self) -> None:
        with ExitStack() as undo:
            made = self._make_directories(undo)
            crashpoint("cgroups.created")
            if self.directory not in made:
                self._require_unused()
            self._prepare(made)
            undo.pop_all()

    def _make_directories(self, undo: ExitStack) -> set[str]:
        """Make what is missing; the new ones, which `undo` will remove."""
        beside = self._beside(self._resources)
        if beside:
            self._side()  # imported now: once there is a process, the interpreter is sealed
        made: set[str] = set()
        for controller, path in self._directories():
            try:
                new = make_directories(path)
            except OSError:
                if controller in _BEST_EFFORT and (controller or not beside):
                    continue
                raise
            undo.callback(remove_directories, new)
            made.update(new)
        return made

    def _prepare(self, made: set[str]) -> None:
        """Make the directories, of which `made` are new, fit to take processes."""
        if cpuset := self.paths.get("cpuset"):
            self._prepare_cpuset(cpuset, new=cpuset in made)
        if cpu := self.paths.get("cpu"):
            # before any process joins: a real-time process cannot move into a cgroup without a budget for it
            _set_realtime(cpu, section(self._resources, "cpu"))
        if memory := self.paths.get("memory"):
            self._prepare_memory(memory)
        if beside := self._beside(self._resources):
            delegation.enable_controllers(self.paths[""], beside)

    def _beside(self, resources: Resources) -> dict[str, Resources]:
        """The limits, by controller, that a hybrid host sets in its v2 tree: their controller is in no v1
        hierarchy.
        """
        if "" not in self.paths or not (offered := hierarchy.v2_controllers()):
            return {}
        return {
            name: limits
            for name, limits in by_controller(resources).items()
            if name in offered and ("blkio" if name == "io" else name) not in self.paths
        }

    def _side(self) -> ManagerV2:
        """The container's cgroup in the v2 tree of a hybrid host."""
        from .v2 import ManagerV2

        return ManagerV2({"": self.paths[""]}, {})

    def _prepare_memory(self, directory: str) -> None:
        # kernels before 5.11 count children only when told so while there are none; newer ones always do
        if section(self._resources, "memory").get("useHierarchy") is True:
            path = directory + "/memory.use_hierarchy"
            with contexts.suppress(FileNotFoundError):
                if files.read(path).strip() == "0":
                    set_value(path, "1")

    def add_pid(self, pid: int) -> None:
        for controller, path in self._directories():
            self._join(controller, path, "cgroup.procs", pid)

    def join_self(self, *, born_inside: bool = False) -> None:
        for controller, path in self._directories():
            if controller:
                # the file of single threads: only there does the kernel see that one thread is all there is
                self._join(controller, path, "tasks", 0)
            elif not born_inside:
                self._join(controller, path, "cgroup.procs", 0)

    def _join(self, controller: str, path: str, name: str, pid: int) -> None:
        try:
            join(f"{path}/{name}", pid)
        except BuoyError:
            if controller not in _BEST_EFFORT:
                raise

    def _directories(self) -> list[tuple[str, str]]:
        """Each directory once, with the first controller that lives in it (`cpu,cpuacct` may share one)."""
        first: dict[str, str] = {}
        for controller, path in self.paths.items():
            first.setdefault(path, controller)
        return [(controller, path) for path, controller in first.items()]

    def freeze(self) -> None:
        if "freezer" not in self.paths and "" in self.paths:
            self._side().freeze()
            return
        path = self._path("freezer") + "/freezer.state"
        try:
            # A cgroup that keeps forking can stay FREEZING for long, so it is told again and again; a thaw in
            # between gives new processes the moment they need to become freezable. The numbers are runc's,
            # found by trial on many kernels.
            for attempt in range(1000):
                if attempt % 50 == 49:
                    files.write(path, "THAWED")
                    time.sleep(0.01)
                files.write(path, "FROZEN")
                crashpoint("cgroups.freezing")
                if attempt % 25 == 24:
                    time.sleep(0.00001)
                if files.read(path).strip() == "FROZEN":
                    return
            raise Internal("unable to freeze")
        except BaseException:
            with contexts.suppress(OSError):
                files.write(path, "THAWED")
            raise

    def thaw(self) -> None:
        if "freezer" not in self.paths and "" in self.paths:
            self._side().thaw()
            return
        set_value(self._path("freezer") + "/freezer.state", "THAWED")

    def frozen(self) -> bool:
        directory = self.paths.get("freezer")
        if directory is None:
            return "" in self.paths and self._side().frozen()
        try:
            # 1 only for a request on this cgroup itself; freezer.state also shows an ancestor's
            return files.read(directory + "/freezer.self_freezing").strip() == "1"
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return False
            raise

    def kill_all(self) -> None:
        # Frozen processes cannot fork away from the list while it is walked. A fork bomb may resist freezing:
        # kill it anyway.
        with contexts.suppress(OSError, BuoyError):
            if self.pids():
                self.freeze()
        crashpoint("cgroups.killing")
        try:
            send_kill(self.pids())
        finally:
            # a frozen process dies only when thawed
            with contexts.suppress(OSError, BuoyError):
                self.thaw()

    def oom_kills(self) -> int:
        directory = self.paths.get("memory")
        if directory is None:
            return self._side().oom_kills() if "" in self.paths else 0
        try:
            return files.read_table(directory + "/memory.oom_control").get("oom_kill", 0)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return 0
            raise

    def oom_events(self) -> OomEvents:
        if "memory" not in self.paths and "" in self.paths:
            return self._side().oom_events()
        try:
            return watch_v1(self._path("memory"))
        except OSError as error:
            raise NotFound(f"cannot watch {self.paths['memory']}: {error.strerror}") from error

    def stats(self) -> dict[str, Any]:
        found = stats_v1.collect(self.paths)
        if "" in self.paths and hierarchy.v2_controllers():
            found = self._side().stats() | found
        return found

    def _path(self, controller: str) -> str:
        path = self.paths.get(controller)
        if path is None:
            raise NotFound(f"cgroup controller {controller} is not available on this host")
        return path

    def _prepare_cpuset(self, directory: str, *, new: bool) -> None:
        """A cpuset takes no process before it has cpus and mems: what the spec wants, else the parent's."""
        cpu = section(self._resources, "cpu")
        for name in ("cpus", "mems"):
            path = f"{directory}/cpuset.{name}"
            wanted = text(cpu, name)
            if wanted or new or not files.read(path).strip():
                inherited = _filled_cpuset(os.path.dirname(directory), name)
                set_value(path, wanted or inherited)

    def _set_limits(self, resources: Resources, *, live: bool) -> None:
        if beside := self._beside(resources):
            delegation.enable_controllers(self.paths[""], beside)
            for limits in beside.values():
                self._side()._set_limits(limits, live=live)
            resources = without(resources, beside)
        if cpu := section(resources, "cpu"):
            self._set_cpu(cpu)
        if memory := section(resources, "memory"):
            self._set_memory(memory)
        if (limit := pids_max(resources)) is not None:
            set_value(self._path("pids") + "/pids.max", limit)
        if blockio := section(resources, "blockIO"):
            self._set_blockio(blockio)
        for size, value in hugepage_limits(resources):
            prefix = f"{self._path('hugetlb')}/hugetlb.{size}"
            set_value(prefix + ".limit_in_bytes", str(value))
            with contexts.suppress(NotFound):  # reservation limits are of Linux 5.7
                set_value(prefix + ".rsvd.limit_in_bytes", str(value))
        network = section(resources, "network")
        if classid := number(network, "classID"):
            set_value(self._path("net_cls") + "/net_cls.classid", str(classid))
        for priority in entries(network, "priorities"):
            line = f"{text(priority, 'name')} {number(priority, 'priority') or 0}"
            set_value(self._path("net_prio") + "/net_prio.ifpriomap", line)
        for line in rdma_limits(resources):
            set_value(self._path("rdma") + "/rdma.max", line)

    def _set_cpu(self, cpu: Resources) -> None:
        if text(cpu, "cpus") or text(cpu, "mems"):
            _set_cpuset(self._path("cpuset"), cpu)
        if shares := number(cpu, "shares"):
            path = self._path("cpu") + "/cpu.shares"
            set_value(path, str(shares))
            if (actual := files.read_number(path)) != shares:  # the kernel clamps in silence
                bound = "maximum" if shares > actual else "minimum"
                raise InvalidArgument(f"the {bound} allowed cpu-shares is {actual}")
        period, burst, quota = number(cpu, "period"), number(cpu, "burst"), number(cpu, "quota")
        # The kernel checks each of the three against the others as they are now; what it refuses with EINVAL
        # is written again after the quota.
        later = []
        for value, name in ((period, "cfs_period_us"), (burst, "cfs_burst_us")):
            if value is None or (name == "cfs_period_us" and value == 0):
                continue
            path = f"{self._path('cpu')}/cpu.{name}"
            try:
                files.write(path, str(value))
            except OSError as error:
                if error.errno == errno.ENOENT and name == "cfs_burst_us":
                    continue  # burst is of Linux 5.14; as in runc, an older kernel goes without it
                if error.errno != errno.EINVAL or not quota:
                    raise files.refused(path, str(value), error) from error
                later.append((path, str(value)))
        if quota:
            set_value(self._path("cpu") + "/cpu.cfs_quota_us", str(quota))
            for path, word in later:
                set_value(path, word)
        if (idle := number(cpu, "idle")) is not None:
            set_value(self._path("cpu") + "/cpu.idle", str(idle))
        if cpu.get("realtimePeriod") or cpu.get("realtimeRuntime"):
            _set_realtime(self._path("cpu"), cpu)

    def _set_memory(self, memory: Resources) -> None:
        directory = self._path("memory")
        limit, swap = number(memory, "limit") or 0, number(memory, "swap") or 0
        swap_path = directory + "/memory.memsw.limit_in_bytes"
        if limit == -1 and swap == 0 and os.path.exists(swap_path):
            swap = -1  # no memory limit means no combined limit either
        # The combined limit may never be below the memory limit, so the order depends on the direction of the
        # change.
        swap_first = False
        if limit and swap:
            swap_first = swap == -1 or files.read_number(directory + "/memory.limit_in_bytes") < swap
        if swap_first:
            set_value(swap_path, str(swap))
        if limit:
            _set_memory_limit(directory, limit)
        if swap and not swap_first:
            set_value(swap_path, str(swap))
        if reservation := number(memory, "reservation"):
            set_value(directory + "/memory.soft_limit_in_bytes", str(reservation))
        if memory.get("disableOOMKiller") is True:
            set_value(directory + "/memory.oom_control", "1")
        if (value := swappiness(memory)) is not None:
            set_value(directory + "/memory.swappiness", str(value))

    def _set_blockio(self, blockio: Resources) -> None:
        directory = self._path("blkio")
        bfq = os.path.exists(directory + "/blkio.bfq.weight")
        weight_file = "blkio.bfq.weight" if bfq else "blkio.weight"
        if weight := number(blockio, "weight"):
            set_value(f"{directory}/{weight_file}", str(weight))
        if leaf := number(blockio, "leafWeight"):
            set_value(directory + "/blkio.leaf_weight", str(leaf))
        for entry in entries(blockio, "weightDevice"):
            if weight := number(entry, "weight"):
                name = "blkio.bfq.weight_device" if bfq else "blkio.weight_device"
                set_value(f"{directory}/{name}", f"{device_number(entry)} {weight}")
            if leaf := number(entry, "leafWeight"):
                set_value(directory + "/blkio.leaf_weight_device", f"{device_number(entry)} {leaf}")
        for key, name in (
            ("throttleReadBpsDevice", "read_bps_device"),
            ("throttleWriteBpsDevice", "write_bps_device"),
            ("throttleReadIOPSDevice", "read_iops_device"),
            ("throttleWriteIOPSDevice", "write_iops_device"),
        ):
            for entry in entries(blockio, key):
                line = f"{device_number(entry)} {number(entry, 'rate') or 0}"
                set_value(f"{directory}/blkio.throttle.{name}", line)

    def _set_devices(self, target: DeviceState) -> None:
        directory = self._path("devices")
        before = parse_list(files.read(directory + "/devices.list"))
        rules = before.transition(target)
        if not rules:
            return
        with ExitStack() as closing:
            opened: dict[str, int] = {}
            for rule in rules:
                path = f"{directory}/devices.{'allow' if rule.allow else 'deny'}"
                line = rule.line()
                try:
                    if path not in opened:  # one rule per write(2), but not one open(2) per rule
                        opened[path] = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                        closing.callback(os.close, opened[path])
                    os.write(opened[path], line.encode())
                except OSError as error:
                    if error.errno == errno.EPERM and hierarchy.no_power():
                        return  # the kernel lets nobody there change device rules; runc goes on too
                    raise files.refused(path, line, error) from error
        after = parse_list(files.read(directory + "/devices.list"))
        # a list that only grants reads back exactly; of one that only denies, no more than its kind shows
        if after.default_allow != target.default_allow or (not target.default_allow and after != target):
            raise FailedPrecondition("resulting devices cgroup doesn't precisely match target")


def _set_memory_limit(directory: str, limit: int) -> None:
    path = directory + "/memory.limit_in_bytes"
    try:
        files.write(path, str(limit))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise files.refused(path, str(limit), error) from error
        usage = files.read_number(directory + "/memory.usage_in_bytes")
        peak = files.read_number(directory + "/memory.max_usage_in_bytes")
        raise InvalidArgument(
            f"unable to set memory limit to {limit} (current usage: {usage}, peak usage: {peak})"
        ) from error


def _set_realtime(directory: str, cpu: Resources) -> None:
    period, runtime = number(cpu, "realtimePeriod"), number(cpu, "realtimeRuntime")
    period_path = directory + "/cpu.rt_period_us"
    again = False
    if period:
        try:
            files.write(period_path, str(period))
        except OSError as error:
            # a period below the present runtime is refused: set the runtime first, then try again
            if error.errno != errno.EINVAL or not runtime:
                raise files.refused(period_path, str(period), error) from error
            again = True
    if runtime:
        set_value(directory + "/cpu.rt_runtime_us", str(runtime))
        if again:
            set_value(period_path, str(period))


def _set_cpuset(directory: str, cpu: Resources) -> None:
    for name in ("cpus", "mems"):
        if value := text(cpu, name):
            set_value(f"{directory}/cpuset.{name}", value)


def _filled_cpuset(directory: str, name: str) -> str:
    """The `name` (cpus or mems) of a cpuset; an empty one first gets its nearest ancestor's."""
    path = f"{directory}/cpuset.{name}"
    value = files.read(path).strip()
    if not value:
        value = _filled_cpuset(os.path.dirname(directory), name)
        set_value(path, value)
    return value

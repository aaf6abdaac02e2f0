"""A container's cgroup as a scope of systemd, which makes it, owns what is above it and knows its limits.

Imported for the systemd driver alone. The scope begins with a process: `start_with` comes after the birth of
init, which waits for it. What systemd has no words for is set in the cgroup's files, which the scope
delegates to us (`Delegate=yes`).
"""

from __future__ import annotations

from collections.abc import Mapping

from errdefs import AlreadyExists, BuoyError, Conflict, FailedPrecondition, NotFound
from linux.crashpoints import crashpoint

from runc_bin import contexts
from runc_bin.contexts import ExitStack

from . import delegation, files, hierarchy
from .device_rules import target_state
from .manager import Manager
from .resources import Resources, by_controller, check, entries, section
from .systemd_bus import Bus, Property
from .systemd_units import device_properties, expand_slice, limit_properties, parse_path, scope_properties
from .v1 import ManagerV1
from .v2 import ManagerV2


class InUnit(Manager):
    """What both versions have in common."""

    starts_with_process = True
    _slice = ""
    _container_id = ""

    def create(self) -> None:
        if self.exists():
            self._require_unused()

    def start_with(self, pid: int) -> None:
        properties = scope_properties(self._container_id, self._slice, pid, unified=self.unified)
        properties += self._limit_properties(self._resources)
        if not self.unified:
            properties += device_properties(target_state(entries(self._resources, "devices")))
        with Bus(user=self.user) as bus:
            try:
                bus.start_transient(self.unit, properties)
            except AlreadyExists:
                # what is left of a failed unit of that name is in the way until it is forgotten
                with contexts.suppress(BuoyError):
                    bus.reset_failed(self.unit)
                try:
                    bus.start_transient(self.unit, properties)
                except AlreadyExists as error:
                    raise Conflict(f"container's systemd unit exists: {error.message}") from None
        crashpoint("cgroups.unit-started")
        self._take_over()
        crashpoint("cgroups.unit-taken-over")

    def _take_over(self) -> None:
        """Fit the cgroup that systemd has made for the limits that it does not know."""
        raise NotImplementedError

    def attach(self, pid: int) -> None:
        with Bus(user=self.user) as bus:
            bus.attach(self.unit, pid, self.sub_group)

    def update(self, resources: Resources) -> None:
        check(resources, unified=self.unified)
        properties = self._limit_properties(self._with_what_is_in_force(resources))
        devices = entries(resources, "devices")
        if devices and not self.unified:
            properties += device_properties(target_state(devices))
        if properties:
            # systemd sets v1 device rules by closing all first: nobody may meet the moment between
            pausing = bool(devices) and not self.unified and not self.frozen()
            if pausing:
                self.freeze()
            try:
                with Bus(user=self.user) as bus:
                    bus.set_properties(self.unit, properties)
                    crashpoint("cgroups.unit-updated")
            finally:
                if pausing:
                    self.thaw()
        super().update(resources)

    def _limit_properties(self, resources: Resources) -> list[Property]:
        return limit_properties(resources, unified=self.unified)

    def _with_what_is_in_force(self, resources: Resources) -> Resources:
        """systemd makes one share of quota and period: fill in the one in force for the one not given."""
        cpu = section(resources, "cpu")
        if bool(cpu.get("quota")) == bool(cpu.get("period")):
            return resources
        quota, period = self._quota_and_period()
        filled = {**cpu, "quota": cpu.get("quota") or quota, "period": cpu.get("period") or period}
        return {**resources, "cpu": filled}

    def _quota_and_period(self) -> tuple[int, int]:
        raise NotImplementedError

    def destroy(self, timeout: float = 0.5) -> None:
        try:
            with Bus(user=self.user) as bus:
                with contexts.suppress(NotFound):
                    bus.stop(self.unit)
                crashpoint("cgroups.unit-stopped")
                with contexts.suppress(BuoyError):
                    bus.reset_failed(self.unit)
        finally:  # also what systemd does not know of, and when it cannot be asked
            super().destroy(timeout)


class SystemdV1(InUnit, ManagerV1):
    """A scope with its directories in the v1 hierarchies; those that systemd does not use are made by us."""

    def _take_over(self) -> None:
        with ExitStack() as undo:
            self._prepare(self._make_directories(undo))
            undo.pop_all()

    def _quota_and_period(self) -> tuple[int, int]:
        directory = self._path("cpu")
        quota = int(files.read(directory + "/cpu.cfs_quota_us"))
        return quota, files.read_number(directory + "/cpu.cfs_period_us")


class SystemdV2(InUnit, ManagerV2):
    """A scope with its directory in the unified hierarchy."""

    def join_self(self, *, born_inside: bool = False) -> None:
        """Nothing is left to do: whoever comes here was born inside or placed by systemd."""

    def _take_over(self) -> None:
        wanted = set(by_controller(self._resources))
        wanted |= {name.partition(".")[0] for name in section(self._resources, "unified")}
        delegation.enable_controllers(self.directory, wanted)
        self._prepare()

    def _with_what_is_in_force(self, resources: Resources) -> Resources:
        filled = super()._with_what_is_in_force(resources)
        if memory := section(filled, "memory"):
            limit, swap = self._memory_and_swap(memory, live=True)
            filled = {**filled, "memory": {**memory, "limit": limit, "swap": swap}}
        return filled

    def _quota_and_period(self) -> tuple[int, int]:
        quota, period = files.read(self.directory + "/cpu.max").split()
        return -1 if quota == "max" else int(quota), int(period)


def unit_manager(
    cgroups_path: str, resources: Resources, container_id: str, owner: int | None, *, user: bool
) -> InUnit:
    """The manager for a new container; errors as `manager.manager_for`, and those of `systemd_bus.Bus`."""
    slice_name, unit = parse_path(cgroups_path, container_id, user=user)
    inner = f"{expand_slice(slice_name)}/{unit}"
    limit_properties(resources, unified=hierarchy.unified())
    with Bus(user=user) as bus:
        above = bus.manager_property("ControlGroup") if user else ""
    if hierarchy.unified():
        paths = {"": f"{hierarchy.MOUNT}{above}{inner}"}
    elif user:
        raise FailedPrecondition("cannot use rootless systemd cgroups manager on cgroup v1")
    else:
        paths = hierarchy.v1_paths(inner, container_id)
    made = found_unit(paths, unit, user=user, resources=resources, owner=owner)
    made._slice, made._container_id = slice_name, container_id
    return made


def found_unit(
    paths: Mapping[str, str], unit: str, *, user: bool, resources: Resources, owner: int | None = None
) -> InUnit:
    """The manager of a container with these `paths` and this unit on record."""
    kind = SystemdV2 if set(paths) == {""} else SystemdV1
    made = kind(paths, resources, owner)
    made.unit, made.user = unit, user
    # a user may move a process only within what is theirs; their systemd may from anywhere below it
    made.attaches = user
    return made

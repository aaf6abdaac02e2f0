"""cgroup v2: one directory in the unified hierarchy (Documentation/admin-guide/cgroup-v2.rst)."""

from __future__ import annotations

import errno
import os
import select
import time
from typing import Any

from errdefs import BuoyError, FailedPrecondition, Internal, InvalidArgument, NotFound
from linux.crashpoints import crashpoint

from runc_bin import contexts
from runc_bin.contexts import ExitStack

from . import bpf_devices, delegation, files, hierarchy, stats_v2
from .device_rules import ALL, DeviceState
from .files import set_value
from .manager import Manager, join, make_directories, remove_directories, send_kill
from .oom import OomEvents, watch_v2
from .resources import (
    Resources,
    cpu_weight,
    device_number,
    entries,
    hugepage_limits,
    io_weight,
    number,
    pids_max,
    rdma_limits,
    section,
    swap_max,
    text,
)

_FREEZE_TIMEOUT = 10.0
# Limits that need a controller which cannot work on the threads of one process in several cgroups
# (cgroup-v2.rst "Threads")
_DOMAIN_LIMITS = ("memory", "cpu", "blockIO", "hugepageLimits")


class ManagerV2(Manager):
    """A container's directory in the unified hierarchy."""

    unified = True

    @property
    def directory(self) -> str:
        return self.paths[""]

    def create(self) -> None:
        with ExitStack() as undo:
            made = make_directories(self.directory)
            undo.callback(remove_directories, made)
            crashpoint("cgroups.created")
            if self.directory not in made:
                self._require_unused()
            delegation.enable_controllers(self.directory)
            self._prepare()
            undo.pop_all()

    def _prepare(self) -> None:
        self._check_type()
        if self.owner is not None:
            delegation.give(self.directory, self.owner)

    def _check_type(self) -> None:
        kind = files.read(self.directory + "/cgroup.type").strip()
        if kind == "domain":
            return
        needs_domain = any(self._resources.get(name) for name in _DOMAIN_LIMITS)
        if needs_domain:
            state = "it is in an invalid state" if kind == "domain invalid" else f"it is in {kind} mode"
            raise FailedPrecondition(
                f'cannot enter cgroupv2 "{self.directory}" with domain controllers -- {state}'
            )
        if kind == "domain invalid":
            set_value(self.directory + "/cgroup.type", "threaded")

    def add_pid(self, pid: int) -> None:
        join(self.directory + "/cgroup.procs", pid)

    def join_self(self, *, born_inside: bool = False) -> None:
        if not born_inside:
            join(self.directory + "/cgroup.procs", 0)

    def freeze(self) -> None:
        set_value(self.directory + "/cgroup.freeze", "1")
        crashpoint("cgroups.freezing")
        events = os.open(self.directory + "/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        try:
            poller = select.poll()
            poller.register(events, select.POLLPRI)
            deadline = time.monotonic() + _FREEZE_TIMEOUT
            # each change of the file wakes the poll; read first, since the change may have come before
            while b"frozen 1" not in os.pread(events, 4096, 0):
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Internal("unable to freeze")
                poller.poll(min(left, 0.1) * 1000)
        except BaseException:
            with contexts.suppress(OSError):
                files.write(self.directory + "/cgroup.freeze", "0")
            raise
        finally:
            os.close(events)

    def thaw(self) -> None:
        set_value(self.directory + "/cgroup.freeze", "0")

    def frozen(self) -> bool:
        try:
            return files.read(self.directory + "/cgroup.freeze").strip() == "1"
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return False
            raise

    def kill_all(self) -> None:
        try:
            files.write(self.directory + "/cgroup.kill", "1")  # all at once, frozen and newly forked ones too
            return
        except OSError as error:
            if error.errno == errno.ENODEV or not os.path.isdir(self.directory):
                return
            if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP):  # before Linux 5.14; a threaded cgroup
                raise
        with contexts.suppress(OSError, BuoyError):
            self.freeze()
        try:
            send_kill(self.pids())
        finally:
            with contexts.suppress(OSError, BuoyError):
                self.thaw()

    def oom_kills(self) -> int:
        try:
            return files.read_table(self.directory + "/memory.events").get("oom_kill", 0)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return 0
            raise

    def oom_events(self) -> OomEvents:
        try:
            return watch_v2(self.directory)
        except OSError as error:
            raise NotFound(f"cannot watch {self.directory}/memory.events: {error.strerror}") from error

    def stats(self) -> dict[str, Any]:
        return stats_v2.collect(self.directory)

    def _set(self, name: str, value: str) -> None:
        """Write one control file; a missing file is put down to its missing controller."""
        path = f"{self.directory}/{name}"
        try:
            files.write(path, value)
        except OSError as error:
            controller = name.partition(".")[0]
            if error.errno in (errno.ENOENT, errno.EACCES, errno.EPERM) and not self._has(controller):
                raise NotFound(
                    f"cannot set {name} of {self.directory}: controller {controller} is not available there"
                ) from error
            raise files.refused(path, value, error) from error

    def _has(self, controller: str) -> bool:
        return controller in files.read(self.directory + "/cgroup.controllers").split()

    def _set_limits(self, resources: Resources, *, live: bool) -> None:
        if (limit := pids_max(resources)) is not None:
            self._set("pids.max", limit)
        if memory := section(resources, "memory"):
            self._set_memory(memory, live=live)
        if blockio := section(resources, "blockIO"):
            self._set_io(blockio)
        if cpu := section(resources, "cpu"):
            self._set_cpu(cpu)
        for size, value in hugepage_limits(resources):
            self._set(f"hugetlb.{size}.max", str(value))
            if os.path.exists(f"{self.directory}/hugetlb.{size}.rsvd.max"):  # of Linux 5.7
                self._set(f"hugetlb.{size}.rsvd.max", str(value))
        for line in rdma_limits(resources):
            self._set("rdma.max", line)
        self._set_unified(resources)

    def _set_memory(self, memory: Resources, *, live: bool) -> None:
        limit, swap = self._memory_and_swap(memory, live=live)
        swap_value = swap_max(limit, swap)
        if memory.get("checkBeforeUpdate") is True:
            self._check_usage(limit, swap)
        if swap_value is not None:
            word = "max" if swap_value == -1 else str(swap_value)
            try:
                self._set("memory.swap.max", word)
            except NotFound:
                # a kernel without swap accounting can neither limit nor offer swap
                if word not in ("max", "0"):
                    raise
        if limit:
            self._set("memory.max", "max" if limit == -1 else str(limit))
        if reservation := number(memory, "reservation"):
            self._set("memory.low", "max" if reservation == -1 else str(reservation))

    def _memory_and_swap(self, memory: Resources, *, live: bool) -> tuple[int, int]:
        """memory and memory+swap limit to set; with `live` one that is not given is the one in force."""
        limit, swap = number(memory, "limit") or 0, number(memory, "swap") or 0
        if live and limit > 0 and not swap:
            swap = self._combined_limit()
        elif live and swap > 0 and not limit:
            limit = self._limit("memory.max")
        return limit, swap

    def _limit(self, name: str) -> int:
        """A limit in force in bytes; 0 when there is none."""
        try:
            value = files.read_number(f"{self.directory}/{name}")
        except FileNotFoundError:
            return 0
        return 0 if value == (1 << 64) - 1 else value

    def _combined_limit(self) -> int:
        """memory+swap as v1 counts it: it stays when only the memory limit is changed. 0: no limit."""
        memory = self._limit("memory.max")
        try:
            swap = files.read(self.directory + "/memory.swap.max").strip()
        except FileNotFoundError:
            return 0
        return int(swap) + memory if memory and swap != "max" else 0

    def _check_usage(self, limit: int, swap: int) -> None:
        try:
            usage = files.read_number(self.directory + "/memory.current")
        except OSError:
            return
        for value, what in ((swap, "memory+swap limit"), (limit, "memory limit")):
            if 0 < value <= usage:
                raise InvalidArgument(f"rejecting {what} {value} <= usage {usage}")

    def _set_cpu(self, cpu: Resources) -> None:
        if (idle := number(cpu, "idle")) is not None:
            self._set("cpu.idle", str(idle))
        if shares := number(cpu, "shares"):
            self._set("cpu.weight", str(cpu_weight(shares)))
        burst, quota, period = number(cpu, "burst"), number(cpu, "quota") or 0, number(cpu, "period") or 0
        burst_later = False
        if burst is not None:
            try:
                self._set("cpu.max.burst", str(burst))
            except InvalidArgument:
                if not quota:  # a burst above the present quota: set the quota first, then try again
                    raise
                burst_later = True
        if quota or period:
            word = str(quota) if quota > 0 else "max"
            if not quota:
                word = files.read(self.directory + "/cpu.max").split()[0]
            # without a period the kernel keeps the one in force
            self._set("cpu.max", f"{word} {period}" if period else word)
            if burst_later:
                self._set("cpu.max.burst", str(burst))
        for name in ("cpus", "mems"):
            if value := text(cpu, name):
                self._set(f"cpuset.{name}", value)

    def _set_io(self, blockio: Resources) -> None:
        bfq = os.path.exists(self.directory + "/io.bfq.weight")
        if weight := number(blockio, "weight"):
            self._set("io.bfq.weight", str(weight)) if bfq else self._set("io.weight", str(io_weight(weight)))
        for entry in entries(blockio, "weightDevice"):
            weight = number(entry, "weight")
            if weight and bfq:
                self._set("io.bfq.weight", f"{device_number(entry)} {weight}")
            elif weight:
                self._set("io.weight", f"{device_number(entry)} {io_weight(weight)}")
        for key, word in (
            ("throttleReadBpsDevice", "rbps"),
            ("throttleWriteBpsDevice", "wbps"),
            ("throttleReadIOPSDevice", "riops"),
            ("throttleWriteIOPSDevice", "wiops"),
        ):
            for entry in entries(blockio, key):
                rate = number(entry, "rate")
                self._set("io.max", f"{device_number(entry)} {word}={rate or 'max'}")

    def _set_devices(self, target: DeviceState) -> None:
        try:
            bpf_devices.attach(self.directory, target)
        except OSError as error:
            if error.errno == errno.EPERM:
                if target.default_allow and not target.exceptions:
                    return  # everything is allowed anyway
                if hierarchy.no_power():
                    return  # nobody in there can make nodes, and those that are bound obey their modes
            restricts = any(access != ALL for access in target.exceptions.values())
            detail = " (rules that restrict access need it)" if restricts else ""
            raise Internal(
                f"cannot set device rules of {self.directory}: bpf: {error.strerror}{detail}"
            ) from error

    def _set_unified(self, resources: Resources) -> None:
        for name, value in section(resources, "unified").items():
            for line in value.splitlines():
                try:
                    files.write(f"{self.directory}/{name}", line)
                except OSError as error:
                    controller = name.partition(".")[0]
                    if controller != "cgroup" and not self._has(controller):
                        raise NotFound(
                            f'unified resource "{name}" can\'t be set: '
                            f'controller "{controller}" not available'
                        ) from error
                    raise InvalidArgument(
                        f'unable to set unified resource "{name}": {(error.strerror or "").lower()}'
                    ) from error

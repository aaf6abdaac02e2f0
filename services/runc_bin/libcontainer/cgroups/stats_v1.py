"""Usage of a v1 cgroup, in the words of runc's `events --stats`."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Any

from runc_bin import contexts

from . import files

_BLKIO = {
    "ioServiceBytesRecursive": ("throttle.io_service_bytes_recursive", "throttle.io_service_bytes"),
    "ioServicedRecursive": ("throttle.io_serviced_recursive", "throttle.io_serviced"),
    "ioQueueRecursive": ("io_queued_recursive",),
    "ioServiceTimeRecursive": ("io_service_time_recursive",),
    "ioWaitTimeRecursive": ("io_wait_time_recursive",),
    "ioMergedRecursive": ("io_merged_recursive",),
    "ioTimeRecursive": ("time_recursive",),
    "sectorsRecursive": ("sectors_recursive",),
}
_CPUSET_FLAGS = (
    *("cpu_exclusive", "mem_hardwall", "mem_exclusive", "memory_migrate", "memory_spread_page"),
    *("memory_spread_slab", "memory_pressure", "sched_load_balance", "sched_relax_domain_level"),
)
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def collect(paths: Mapping[str, str]) -> dict[str, Any]:
    """All that the mounted controllers tell; what is missing or has gone leaves its part out."""
    found: dict[str, Any] = {}
    parts = (
        ("cpuacct", "cpu", _cpu_usage),
        ("cpu", "cpu", _throttling),
        ("cpuset", "cpuset", _cpuset),
        ("memory", "memory", _memory),
        ("pids", "pids", pids),
        ("blkio", "blkio", _blkio),
        ("hugetlb", "hugetlb", _hugetlb),
    )
    for controller, name, part in parts:
        if controller not in paths:
            continue
        try:
            found.setdefault(name, {}).update(part(paths[controller]))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
    return found


def _cpu_usage(directory: str) -> dict[str, Any]:
    usage: dict[str, Any] = {"total": files.read_number(directory + "/cpuacct.usage")}
    usage["percpu"] = [int(word) for word in files.read(directory + "/cpuacct.usage_percpu").split()]
    try:
        lines = files.read(directory + "/cpuacct.usage_all").splitlines()[1:]
    except FileNotFoundError:  # of Linux 4.8
        lines = []
    for place, key in ((1, "percpu_user"), (2, "percpu_kernel")):
        if lines:
            usage[key] = [int(line.split()[place]) for line in lines]
    split = files.read_table(directory + "/cpuacct.stat")
    usage["user"] = split.get("user", 0) * _TICK_NS
    usage["kernel"] = split.get("system", 0) * _TICK_NS
    return {"usage": usage}


def _throttling(directory: str) -> dict[str, Any]:
    table = files.read_table(directory + "/cpu.stat")
    return {
        "throttling": {
            "periods": table.get("nr_periods", 0),
            "throttledPeriods": table.get("nr_throttled", 0),
            "throttledTime": table.get("throttled_time", 0),
        }
    }


def _cpuset(directory: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("cpus", "mems"):
        found[name] = number_list(files.read(f"{directory}/cpuset.{name}"))
    for name in _CPUSET_FLAGS:
        with contexts.suppress(FileNotFoundError):
            found[name] = int(files.read(f"{directory}/cpuset.{name}"))
    return found


def number_list(text: str) -> list[int]:
    """The numbers of a list such as `0-3,8` (cpuset(7), "List format")."""
    numbers: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            numbers += range(int(first), int(last or first) + 1)
    return numbers


def _memory(directory: str) -> dict[str, Any]:
    raw = files.read_table(directory + "/memory.stat")
    return {
        "cache": raw.get("cache", 0),
        "usage": _memory_part(directory, "memory"),
        "swap": _memory_part(directory, "memory.memsw"),
        "kernel": _memory_part(directory, "memory.kmem"),
        "kernelTCP": _memory_part(directory, "memory.kmem.tcp"),
        "raw": raw,
    }


def _memory_part(directory: str, prefix: str) -> dict[str, int]:
    part: dict[str, int] = {}
    for key, name in (
        ("usage", "usage_in_bytes"),
        ("max", "max_usage_in_bytes"),
        ("failcnt", "failcnt"),
        ("limit", "limit_in_bytes"),
    ):
        try:
            part[key] = files.read_number(f"{directory}/{prefix}.{name}")
        except OSError as error:
            # swap and kernel accounting are build options, and the kernel limit is gone from newer kernels
            if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP):
                raise
            part[key] = 0
    return part


def pids(directory: str) -> dict[str, int]:
    """Number of tasks and limit (0: none), alike in v1 and v2."""
    limit = files.read_number(directory + "/pids.max")
    current = files.read_number(directory + "/pids.current")
    return {"current": current, "limit": 0 if limit == (1 << 64) - 1 else limit}


def _blkio(directory: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, names in _BLKIO.items():
        for name in names:
            try:
                found[key] = _blkio_entries(files.read(f"{directory}/blkio.{name}"))
                break
            except FileNotFoundError:
                continue
    return found


def _blkio_entries(text: str) -> list[dict[str, Any]]:
    """Lines `major:minor [operation] value`; the closing line `Total value` counts no device."""
    found = []
    for line in text.splitlines():
        device, *words = line.split()
        if ":" not in device or not words:
            continue
        major, minor = device.split(":")
        operation = words[0] if len(words) > 1 else ""
        found.append({"major": int(major), "minor": int(minor), "op": operation, "value": int(words[-1])})
    return found


def _hugetlb(directory: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    suffix = ".usage_in_bytes"
    for name in os.listdir(directory):
        size = name.removeprefix("hugetlb.").removesuffix(suffix)
        if not name.startswith("hugetlb.") or not name.endswith(suffix) or size.endswith(".rsvd"):
            continue
        prefix = f"{directory}/hugetlb.{size}"
        found[size] = {
            "usage": files.read_number(prefix + suffix),
            "max": files.read_number(prefix + ".max_usage_in_bytes"),
            "failcnt": files.read_number(prefix + ".failcnt"),
        }
    return found

"""The OCI `linux.resources` object: checked access, and the conversions from cgroup v1's units to v2's.

The conversions are the ones that runc documents (its docs and `cgroups/utils.go`), so that the same spec
gives the same limits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from errdefs import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Resources = Mapping[str, Any]
else:
    Resources = Mapping


def _matches(pattern: str, value: str) -> bool:
    import re  # most specs have no use for it, and a short command loads nothing in vain

    return re.fullmatch(pattern, value, re.ASCII) is not None


def section(resources: Resources, name: str) -> Mapping[str, Any]:
    """The object `name` of the resources, {} when absent or null; InvalidArgument for anything else."""
    value = resources.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"linux.resources.{name} must be an object")
    return value


def entries(group: Mapping[str, Any], name: str, where: str = "") -> Sequence[Mapping[str, Any]]:
    """The list of objects `name`, empty when absent; InvalidArgument when it is something else. `where` as
    for `number`.
    """
    value = group.get(name)
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(entry, Mapping) for entry in value):
        raise InvalidArgument(f"linux.resources.{where}{name} must be a list of objects")
    return value


def number(group: Mapping[str, Any], name: str, where: str = "") -> int | None:
    """The whole number `name`, None when absent; InvalidArgument when it is something else.

    `where` is what stands before the name in the error, as `memory.`.
    """
    value = group.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgument(f"linux.resources.{where}{name} must be a whole number, not {value!r}")
    return value


def text(group: Mapping[str, Any], name: str, where: str = "") -> str:
    """The string `name`, "" when absent; InvalidArgument when it is something else. `where` as for
    `number`.
    """
    value = group.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidArgument(f"linux.resources.{where}{name} must be a string, not {value!r}")
    return value


_I64, _U64 = (1 << 63) - 1, (1 << 64) - 1
# Whole numbers by section, with the least and the largest value that the spec's types allow.
_NUMBERS: dict[str, dict[str, tuple[int, int]]] = {
    "memory": dict.fromkeys(("limit", "reservation", "swap", "kernel", "kernelTCP"), (-1, _I64)),
    "cpu": {
        **dict.fromkeys(("shares", "burst", "period", "realtimePeriod"), (0, _U64)),
        **dict.fromkeys(("quota", "realtimeRuntime"), (-_I64, _I64)),
        "idle": (0, 1),
    },
    "pids": {"limit": (-_I64, _I64)},
    "network": {"classID": (0, 0xFFFFFFFF)},
}
# Where 0 is a limit; elsewhere it is how an unset one may be written.
_ZEROES = (("pids", "limit", 0), ("cpu", "idle", 0), ("cpu", "burst", 0), ("memory", "swappiness", 0))
_RATES = (
    "throttleReadBpsDevice",
    "throttleWriteBpsDevice",
    "throttleReadIOPSDevice",
    "throttleWriteIOPSDevice",
)
_WEIGHTS = ("weight", "leafWeight")
_CPU_LIST = r"\d+(-\d+(:\d+/\d+)?)?(,\d+(-\d+(:\d+/\d+)?)?)*"
# What cgroup v2 has no file for.
_V1_ONLY = (
    ("memory", "disableOOMKiller"),
    ("cpu", "realtimeRuntime"),
    ("cpu", "realtimePeriod"),
    ("blockIO", "leafWeight"),
    ("network", "classID"),
    ("network", "priorities"),
)


def check(resources: Resources, *, unified: bool) -> None:
    """Refuse what is malformed, out of range, contradictory, or not to be had on this version of cgroups.

    `unified` says that it is v2. InvalidArgument with the field's name. What only the kernel knows (which
    CPUs there are, how much memory is in use) shows when the limit is set.
    """
    for name, ranges in _NUMBERS.items():
        if group := section(resources, name):
            for key, (low, high) in ranges.items():
                _in_range(number(group, key, f"{name}."), low, high, f"{name}.{key}")
    if memory := section(resources, "memory"):
        _check_memory(memory, unified=unified)
    if cpu := section(resources, "cpu"):
        for name in ("cpus", "mems"):
            if (value := text(cpu, name, "cpu.").strip()) and not _matches(_CPU_LIST, value):
                raise InvalidArgument(f"linux.resources.cpu.{name} must be a list of numbers, not {value!r}")
    if blockio := section(resources, "blockIO"):
        _check_blockio(blockio)
    hugepage_limits(resources)
    for priority in entries(section(resources, "network"), "priorities", "network."):
        name = text(priority, "name", "network.priorities.")
        if not name or "/" in name or any(c.isspace() for c in name):
            raise InvalidArgument("linux.resources.network.priorities.name must be an interface's name")
        _in_range(
            number(priority, "priority", "network.priorities."), 0, 0xFFFFFFFF, "network.priorities.priority"
        )
    rdma_limits(resources)
    _check_unified(resources, unified=unified)
    if unified:
        if cpu and number(cpu, "idle") and number(cpu, "shares"):
            raise InvalidArgument("linux.resources.cpu.shares cannot be set for an idle cgroup (cpu.idle 1)")
        for group_name, key in _V1_ONLY:
            if section(resources, group_name).get(key):
                raise InvalidArgument(f"linux.resources.{group_name}.{key} is not supported on cgroup v2")


def _in_range(value: int | None, low: int, high: int, field: str) -> None:
    if value is not None and not low <= value <= high:
        raise InvalidArgument(f"linux.resources.{field} must be between {low} and {high}, not {value}")


def _check_memory(memory: Mapping[str, Any], *, unified: bool) -> None:
    for name in ("disableOOMKiller", "useHierarchy", "checkBeforeUpdate"):
        if not isinstance(memory.get(name), bool | None):
            raise InvalidArgument(f"linux.resources.memory.{name} must be true or false")
    limit, swap = number(memory, "limit") or 0, number(memory, "swap") or 0
    if limit > 0 and 0 < swap < limit:
        raise InvalidArgument("linux.resources.memory.swap: memory+swap limit should be >= memory limit")
    value = swappiness(memory)
    if value is not None and not 0 <= value <= 100:
        raise InvalidArgument(f"invalid memory swappiness value: {value} (valid range is 0-100)")
    if value is not None and unified:
        raise InvalidArgument("linux.resources.memory.swappiness is not supported on cgroup v2")


def swappiness(memory: Mapping[str, Any]) -> int | None:
    """memory.swappiness; None when absent or -1, which also comes as the unsigned number of the same bits."""
    value = number(memory, "swappiness", "memory.")
    return None if value in (-1, _U64) else value


def _check_blockio(blockio: Mapping[str, Any]) -> None:
    devices = entries(blockio, "weightDevice", "blockIO.")
    for field, entry in [("blockIO", blockio), *(("blockIO.weightDevice", entry) for entry in devices)]:
        for key in _WEIGHTS:
            if number(entry, key, f"{field}."):  # 0 is how an unset one may be written
                _in_range(number(entry, key), 10, 1000, f"{field}.{key}")
    for key in ("weightDevice", *_RATES):
        for entry in entries(blockio, key, "blockIO."):
            device_number(entry, f"blockIO.{key}.")
    for key in _RATES:
        for entry in entries(blockio, key):
            _in_range(number(entry, "rate", f"blockIO.{key}."), 0, _U64, f"blockIO.{key}.rate")


def _check_unified(resources: Resources, *, unified: bool) -> None:
    entries_ = section(resources, "unified")
    if entries_ and not unified:
        raise InvalidArgument("invalid configuration: cannot use unified on cgroup v1")
    for name, value in entries_.items():
        if "/" in name or ".." in name or "\0" in name:
            raise InvalidArgument(f'unified resource "{name}" must be a file name (no slashes)')
        if not all(name.partition(".")):
            raise InvalidArgument(f'unified resource "{name}" must be in the form CONTROLLER.PARAMETER')
        if name in ("cgroup.procs", "cgroup.threads"):
            raise InvalidArgument(f'unified resource "{name}" is no limit: it would move processes')
        if not isinstance(value, str):
            raise InvalidArgument(f'unified resource "{name}" must be a string')


def by_controller(resources: Resources) -> dict[str, Resources]:
    """The limits that ask for something, by the controller that has them (`io` is blkio in v1's words)."""
    cpu, network = section(resources, "cpu"), section(resources, "network")
    sets = {key: value for key, value in cpu.items() if key in ("cpus", "mems")}
    shares = {key: value for key, value in cpu.items() if key not in sets}
    found: dict[str, Resources] = {}
    for controller, name, wanted in (
        ("memory", "memory", section(resources, "memory")),
        ("pids", "pids", section(resources, "pids")),
        ("cpu", "cpu", shares),
        ("cpuset", "cpu", sets),
        ("io", "blockIO", section(resources, "blockIO")),
        ("net_cls", "network", {"classID": network.get("classID")}),
        ("net_prio", "network", {"priorities": network.get("priorities")}),
        ("rdma", "rdma", section(resources, "rdma")),
    ):
        if any(value or (name, key, value) in _ZEROES for key, value in wanted.items()):
            found[controller] = {name: wanted}
    if limits := resources.get("hugepageLimits"):
        found["hugetlb"] = {"hugepageLimits": limits}
    return found


def without(resources: Resources, taken: Mapping[str, Resources]) -> Resources:
    """`resources` without the limits of some controllers of `by_controller`."""
    left = dict(resources)
    for limits in taken.values():
        for name, wanted in limits.items():
            if isinstance(wanted, Mapping):
                left[name] = {key: value for key, value in section(left, name).items() if key not in wanted}
            else:
                del left[name]
    return left


def ignored(resources: Resources) -> list[str]:
    """What the kernel has no limit for any more, in words for the log: runc leaves it out as well."""
    memory = resources.get("memory")
    if isinstance(memory, Mapping) and any(memory.get(name) is not None for name in ("kernel", "kernelTCP")):
        return ["Kernel memory settings are ignored and will be removed"]
    return []


def pids_max(resources: Resources) -> str | None:
    """What goes into pids.max: None without a limit in the spec, `max` below 0, 1 for 0 as runc has it."""
    limit = number(section(resources, "pids"), "limit")
    if limit is None:
        return None
    return "max" if limit < 0 else str(limit or 1)


def cpu_weight(shares: int) -> int:
    """cgroup v2's cpu.weight (1 to 10000, default 100) for v1's cpu.shares (2 to 262144, default 1024).

    A quadratic function of log2(shares) that meets minimum, default and maximum of both scales.
    """
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    log = math.log2(shares)
    return math.ceil(math.pow(10, (log * log + 125 * log) / 612.0 - 7.0 / 34.0))


def io_weight(weight: int) -> int:
    """io.weight (1 to 10000) for blkio.weight (10 to 1000), linear."""
    return 1 + (weight - 10) * 9999 // 990


def swap_max(memory: int, swap: int) -> int | None:
    """memory.swap.max in bytes (-1: no limit, None: leave) for v1's combined memory+swap limit; 0 means "not
    given" in both.

    InvalidArgument when the two contradict one another.
    """
    if memory == -1 and swap == 0:
        return -1
    if swap == 0:
        return None
    if swap == -1 or memory == -1:
        return swap
    if memory == 0:
        raise InvalidArgument("unable to set swap limit without memory limit")
    if memory < 0:
        raise InvalidArgument(f"invalid memory value: {memory}")
    if swap < memory:
        raise InvalidArgument("memory+swap limit should be >= memory limit")
    return swap - memory


def hugepage_limits(resources: Resources) -> list[tuple[str, int]]:
    """(page size such as `2MB`, bytes) pairs."""
    limits = []
    for entry in entries(resources, "hugepageLimits"):
        where = "hugepageLimits."
        size, limit = text(entry, "pageSize", where), number(entry, "limit", where)
        if not _matches(r"\d+[KMG]B", size):
            raise InvalidArgument(f"linux.resources.hugepageLimits.pageSize: invalid size {size!r}")
        if limit is None:
            raise InvalidArgument("linux.resources.hugepageLimits.limit is required")
        _in_range(limit, 0, _U64, "hugepageLimits.limit")
        limits.append((size, limit))
    return limits


def rdma_limits(resources: Resources) -> list[str]:
    """Lines for rdma.max, one a device."""
    lines = []
    for device, limit in section(resources, "rdma").items():
        field = f"rdma.{device}"
        if not isinstance(limit, Mapping) or not device or any(c.isspace() for c in device):
            raise InvalidArgument(f"linux.resources.{field} must be the limits of a device")
        words = [device]
        for key, word in (("hcaHandles", "hca_handle"), ("hcaObjects", "hca_object")):
            if (value := number(limit, key, f"{field}.")) is not None:
                _in_range(value, 0, 0xFFFFFFFF, f"{field}.{key}")
                words.append(f"{word}={value}")
        if len(words) == 1:
            raise InvalidArgument(f"linux.resources.{field} must limit hcaHandles or hcaObjects")
        lines.append(" ".join(words))
    return lines


def device_number(entry: Mapping[str, Any], where: str = "") -> str:
    """`major:minor` of a block device entry of blockIO; `where` as for `number`."""
    found = []
    for name in ("major", "minor"):
        value = number(entry, name, where)
        if value is None:
            raise InvalidArgument(f"linux.resources.{where}{name} must be specified")
        _in_range(value, 0, 0xFFFFFFFF, where + name)
        found.append(value)
    return f"{found[0]}:{found[1]}"

"""The OCI `linux.resources` object: checked access, and the conversions from cgroup v1's units to v2's.

The conversions are the ones that runc documents (its docs and `cgroups/utils.go`), so that the same spec
gives the same limits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from errdefs import InvalidArgument

Resources = Mapping[str, Any]


def section(resources: Resources, name: str) -> Mapping[str, Any]:
    """The object `name` of the resources, {} when absent or null; InvalidArgument for anything else."""
    value = resources.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"linux.resources.{name} must be an object")
    return value


def entries(group: Mapping[str, Any], name: str) -> Sequence[Mapping[str, Any]]:
    """The list of objects `name`, empty when absent; InvalidArgument when it is something else."""
    value = group.get(name)
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(entry, Mapping) for entry in value):
        raise InvalidArgument(f"linux.resources: {name} must be a list of objects")
    return value


def number(group: Mapping[str, Any], name: str) -> int | None:
    """The whole number `name`, None when absent; InvalidArgument when it is something else."""
    value = group.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgument(f"linux.resources: {name} must be a whole number, not {value!r}")
    return value


def text(group: Mapping[str, Any], name: str) -> str:
    """The string `name`, "" when absent; InvalidArgument when it is something else."""
    value = group.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidArgument(f"linux.resources: {name} must be a string, not {value!r}")
    return value


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
        size, limit = text(entry, "pageSize"), number(entry, "limit")
        if not size or "/" in size or limit is None:
            raise InvalidArgument("linux.resources.hugepageLimits: pageSize and limit are required")
        limits.append((size, limit))
    return limits


def device_number(entry: Mapping[str, Any]) -> str:
    """`major:minor` of a block device entry of blockIO."""
    major, minor = number(entry, "major"), number(entry, "minor")
    if major is None or minor is None:
        raise InvalidArgument("linux.resources.blockIO: a device needs major and minor")
    return f"{major}:{minor}"

"""Names and properties of the systemd unit that holds a container: pure, no call is made.

The conversions are those of runc's systemd driver (its docs/systemd.md), so that the same spec makes the same
unit. Sources: systemd.resource-control(5), org.freedesktop.systemd1(5).
"""

from __future__ import annotations

import re

from errdefs import InvalidArgument

from .device_rules import WILDCARD, DeviceState, access_text
from .resources import Resources, cpu_weight, number, pids_max, section, swap_max, text
from .stats_v1 import number_list
from .systemd_bus import Property

INFINITY = (1 << 64) - 1
_UNIT_NAME = re.compile(r"[A-Za-z0-9:_.\\@-]{1,249}")
_MEMORY = {
    "memory.high": "MemoryHigh",
    "memory.low": "MemoryLow",
    "memory.max": "MemoryMax",
    "memory.min": "MemoryMin",
    "memory.swap.max": "MemorySwapMax",
}


def parse_path(cgroups_path: str, container_id: str, *, user: bool) -> tuple[str, str]:
    """(slice, scope) of a `cgroupsPath` in the form `slice:prefix:name`; InvalidArgument for any other.

    Without a path the container's id names a scope in `system.slice`, or with `user` in `user.slice`.
    """
    parts = cgroups_path.split(":") if cgroups_path else ["", "runc", container_id]
    if len(parts) != 3:
        raise InvalidArgument(
            'linux.cgroupsPath: expected cgroupsPath to be of format "slice:prefix:name" '
            f'for systemd cgroups, got "{cgroups_path}" instead'
        )
    slice_name, prefix, name = parts
    slice_name = slice_name or ("user.slice" if user else "system.slice")
    expand_slice(slice_name)
    if name.endswith(".slice"):
        raise InvalidArgument(f"linux.cgroupsPath: a slice cannot hold a container's processes: {name}")
    unit = f"{prefix}-{name}.scope"
    if not name or not _UNIT_NAME.fullmatch(unit):
        raise InvalidArgument(f"linux.cgroupsPath: invalid unit name {unit!r}")
    return slice_name, unit


def expand_slice(name: str) -> str:
    """The place of a slice in the tree: `a-b.slice` is `/a.slice/a-b.slice`, `-.slice` the root ("")."""
    stem = name.removesuffix(".slice")
    if stem == "-":
        return ""
    parts = stem.split("-")
    if not _UNIT_NAME.fullmatch(name) or stem == name or not all(parts) or ".." in name:
        raise InvalidArgument(f"invalid slice name: {name}")
    return "".join(f"/{'-'.join(parts[: count + 1])}.slice" for count in range(len(parts)))


def scope_properties(container_id: str, slice_name: str, pid: int, *, unified: bool) -> list[Property]:
    """What every container's scope has, with its first process in it."""
    io = "IOAccounting" if unified else "BlockIOAccounting"
    switches = ("Delegate", "MemoryAccounting", "CPUAccounting", io, "TasksAccounting")
    return [
        Property("Description", "s", f"libcontainer container {container_id}"),
        Property("Slice", "s", slice_name),
        Property("PIDs", "au", [pid]),
        *(Property(name, "b", True) for name in switches),
        Property("DefaultDependencies", "b", False),
    ]


def limit_properties(resources: Resources, *, unified: bool) -> list[Property]:
    """The limits that systemd knows, so that it does not undo them when it sets the unit up anew."""
    memory, cpu = section(resources, "memory"), section(resources, "cpu")
    found: list[Property] = []
    limit, swap = number(memory, "limit") or 0, number(memory, "swap") or 0
    if limit:
        found.append(_amount("MemoryMax" if unified else "MemoryLimit", limit))
    shares, weight = number(cpu, "shares"), number(section(resources, "blockIO"), "weight")
    if unified:
        if reservation := number(memory, "reservation"):
            found.append(_amount("MemoryLow", reservation))
        if (swap_value := swap_max(limit, swap)) is not None:
            found.append(_amount("MemorySwapMax", swap_value))
        if number(cpu, "idle") == 1:
            found.append(Property("CPUWeight", "t", 0))  # systemd's word for an idle cgroup, since 252
        elif shares:
            found.append(Property("CPUWeight", "t", cpu_weight(shares)))
        for name, value in (("AllowedCPUs", text(cpu, "cpus")), ("AllowedMemoryNodes", text(cpu, "mems"))):
            if value:
                found.append(Property(name, "ay", bit_mask(value)))
    else:
        if shares:
            found.append(Property("CPUShares", "t", shares))
        if weight:
            found.append(Property("BlockIOWeight", "t", weight))
    found += _quota(number(cpu, "quota") or 0, number(cpu, "period") or 0)
    if (pids := pids_max(resources)) is not None:
        found.append(Property("TasksMax", "t", INFINITY if pids == "max" else int(pids)))
    return found + _unified_properties(resources)


def device_properties(state: DeviceState) -> list[Property]:
    """The device rules, for cgroup v1, where systemd sets its own on the unit at its next reload.

    Rules that it has no words for are left out, and set by ourselves: exceptions of an allowing default, and
    any major with one minor.
    """
    rules = []
    if not state.default_allow:
        for device, access in sorted(state.exceptions.items()):
            kind = "char" if device.kind == "c" else "block"
            if device.major == WILDCARD:
                path = f"{kind}-*"
                if device.minor != WILDCARD:
                    continue
            elif device.minor == WILDCARD:
                path = f"{kind}-{device.major}"
            else:
                path = f"/dev/{kind}/{device.major}:{device.minor}"
            rules.append((path, access_text(access)))
    policy = "auto" if state.default_allow and not state.exceptions else "strict"
    return [
        Property("DeviceAllow", "a(ss)", ()),  # an empty list clears; the next one adds
        Property("DevicePolicy", "s", policy),
        *([Property("DeviceAllow", "a(ss)", rules)] if rules else []),
    ]


def bit_mask(numbers: str) -> bytes:
    """A list such as `0-3,8` as systemd takes a set of CPUs: bit n of byte n/8."""
    found = number_list(numbers)
    mask = bytearray(max(found, default=-1) // 8 + 1)
    for value in found:
        mask[value // 8] |= 1 << value % 8
    return bytes(mask)


def _amount(name: str, value: int) -> Property:
    return Property(name, "t", INFINITY if value == -1 else value)


def _quota(quota: int, period: int) -> list[Property]:
    """CPU time in microseconds a second. systemd rounds it to whole percents: up, so that a child's quota
    fits.
    """
    if not quota and not period:
        return []
    found = [Property("CPUQuotaPeriodUSec", "t", period)] if period else []
    share = INFINITY
    if quota > 0:
        share = -(-quota * 1_000_000 // (period or 100_000) // 10_000) * 10_000
    return [*found, Property("CPUQuotaPerSecUSec", "t", share)]


def _unified_properties(resources: Resources) -> list[Property]:
    wanted = {name: value.strip() for name, value in section(resources, "unified").items()}
    found: list[Property] = []
    for name, value in wanted.items():
        if name in _MEMORY or name == "pids.max":
            least = 1 if name == "pids.max" else 0  # systemd takes no TasksMax of 0
            found.append(Property(_MEMORY.get(name, "TasksMax"), "t", max(least, _count(name, value))))
        elif name == "cpu.idle" and value == "1":
            found.append(Property("CPUWeight", "t", 0))
        elif name == "cpu.weight" and wanted.get("cpu.idle") != "1":
            found.append(Property("CPUWeight", "t", _count(name, value)))
        elif name == "cpu.max":
            quota, _, period = value.partition(" ")
            quota_number = -1 if quota == "max" else _count(name, quota)
            found += _quota(quota_number, _count(name, period or "100000"))
        elif name in ("cpuset.cpus", "cpuset.mems") and value:
            properties = {"cpuset.cpus": "AllowedCPUs", "cpuset.mems": "AllowedMemoryNodes"}
            found.append(Property(properties[name], "ay", bit_mask(value)))
    return found


def _count(name: str, value: str) -> int:
    if value == "max":
        return INFINITY
    if not value.isdecimal():
        raise InvalidArgument(f'unified resource "{name}" value conversion error: {value!r}')
    return int(value)

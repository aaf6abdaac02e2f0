"""Usage of a v2 cgroup, in the words of runc's `events --stats`, which are the same for v1."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from . import files
from .stats_v1 import pids

_NO_LIMIT = (1 << 64) - 1
_IO = {
    "rbytes": ("ioServiceBytesRecursive", "Read"),
    "wbytes": ("ioServiceBytesRecursive", "Write"),
    "rios": ("ioServicedRecursive", "Read"),
    "wios": ("ioServicedRecursive", "Write"),
}


def collect(directory: str) -> dict[str, Any]:
    """All that the enabled controllers tell; without the pids controller its part counts processes."""
    found: dict[str, Any] = {}
    parts: tuple[tuple[str, Callable[[str], dict[str, Any]]], ...] = (
        ("cpu", _cpu),
        ("memory", _memory),
        ("pids", _pids),
        ("blkio", _io),
        ("hugetlb", _hugetlb),
    )
    for name, part in parts:
        try:
            found[name] = part(directory)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise
    return found


def _cpu(directory: str) -> dict[str, Any]:
    table = files.read_table(directory + "/cpu.stat")
    usage = {"total": "usage_usec", "user": "user_usec", "kernel": "system_usec"}
    return {
        "usage": {key: table.get(name, 0) * 1000 for key, name in usage.items()},
        "throttling": {
            "periods": table.get("nr_periods", 0),
            "throttledPeriods": table.get("nr_throttled", 0),
            "throttledTime": table.get("throttled_usec", 0) * 1000,
        },
    } | _pressure(directory, "cpu")


def _memory(directory: str) -> dict[str, Any]:
    raw = files.read_table(directory + "/memory.stat")
    memory = _memory_part(directory, "memory")
    swap_only = _memory_part(directory, "memory.swap")
    # v1 counts swap as memory and swap together, v2 apart
    swap = {"usage": swap_only["usage"] + memory["usage"], "max": 0, "failcnt": 0, "limit": _NO_LIMIT}
    if swap_only["limit"] != _NO_LIMIT and memory["limit"] != _NO_LIMIT:
        swap["limit"] = swap_only["limit"] + memory["limit"]
    empty = {"usage": 0, "max": 0, "failcnt": 0, "limit": 0}
    return {
        "cache": raw.get("file", 0),
        "usage": memory,
        "swap": swap,
        "swap_only": swap_only,
        "kernel": dict(empty),
        "kernelTCP": dict(empty),
        "raw": raw,
    } | _pressure(directory, "memory")


def _memory_part(directory: str, prefix: str) -> dict[str, int]:
    part = {"failcnt": 0}
    for key, name in (("usage", "current"), ("max", "peak"), ("limit", "max")):
        try:
            part[key] = files.read_number(f"{directory}/{prefix}.{name}")
        except FileNotFoundError:  # peak is of Linux 5.19; swap files need swap accounting
            if prefix == "memory" and key == "usage":
                raise
            part[key] = 0
    return part


def _pids(directory: str) -> dict[str, Any]:
    try:
        return pids(directory)
    except FileNotFoundError:
        return {"current": len(files.pids_in(directory)), "limit": 0}


def _io(directory: str) -> dict[str, Any]:
    found: dict[str, Any] = {"ioServiceBytesRecursive": [], "ioServicedRecursive": []}
    for line in files.read(directory + "/io.stat").splitlines():
        device, *words = line.split()
        major, _, minor = device.partition(":")
        for word in words:
            name, _, value = word.partition("=")
            if name in _IO and minor.isdigit():
                key, operation = _IO[name]
                entry = {"major": int(major), "minor": int(minor), "op": operation, "value": int(value)}
                found[key].append(entry)
    return found | _pressure(directory, "io")


def _hugetlb(directory: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in os.listdir(directory):
        size = name.removeprefix("hugetlb.").removesuffix(".current")
        if not name.startswith("hugetlb.") or not name.endswith(".current") or size.endswith(".rsvd"):
            continue
        prefix = f"{directory}/hugetlb.{size}"
        events = files.read_table(prefix + ".events")
        usage = files.read_number(prefix + ".current")
        found[size] = {"usage": usage, "max": 0, "failcnt": events.get("max", 0)}
    return found


def _pressure(directory: str, resource: str) -> dict[str, Any]:
    """{"psi": {"some": …, "full": …}} from `<resource>.pressure`, {} on a kernel without it."""
    try:
        lines = files.read(f"{directory}/{resource}.pressure").splitlines()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
            return {}
        raise
    psi = {}
    for line in lines:
        kind, *words = line.split()
        values = dict(word.split("=", 1) for word in words)
        psi[kind] = {key: int(value) if key == "total" else float(value) for key, value in values.items()}
    return {"psi": psi}

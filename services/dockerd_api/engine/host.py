"""What the host offers, read once: cgroup version, processors, memory nodes, security modules."""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import errdefs
from linux import apparmor


@dataclass(frozen=True, slots=True)
class Host:
    """Facts about the host that options are checked against and `info` shows."""

    cgroup_version: int  # 1 or 2
    processors: int
    cpus: str  # a list such as "0-3"
    memory_nodes: str
    memory_bytes: int
    kernel: str
    machine: str
    os_name: str
    os_version: str
    apparmor: bool
    boot_id: str
    swap_accounting: bool
    oom_kill_disable: bool
    swappiness: bool
    controllers: frozenset[str]


@functools.cache
def host() -> Host:
    """The facts, read at the first call."""
    unified = os.path.exists("/sys/fs/cgroup/cgroup.controllers")
    release = _os_release()
    v1_memory = "/sys/fs/cgroup/memory"
    return Host(
        cgroup_version=2 if unified else 1,
        processors=len(os.sched_getaffinity(0)),
        cpus=_text("/sys/fs/cgroup/cpuset.cpus.effective" if unified else "/sys/fs/cgroup/cpuset/cpuset.cpus")
        or _text("/sys/devices/system/cpu/online")
        or "0",
        memory_nodes=_text(
            "/sys/fs/cgroup/cpuset.mems.effective" if unified else "/sys/fs/cgroup/cpuset/cpuset.mems"
        )
        or "0",
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        kernel=platform.release(),
        machine=platform.machine(),
        os_name=release.get("PRETTY_NAME", "Linux"),
        os_version=release.get("VERSION_ID", ""),
        apparmor=apparmor.usable(),
        boot_id=_text("/proc/sys/kernel/random/boot_id"),
        swap_accounting=unified or os.path.exists(f"{v1_memory}/memory.memsw.limit_in_bytes"),
        oom_kill_disable=not unified and os.path.exists(f"{v1_memory}/memory.oom_control"),
        swappiness=not unified and os.path.exists(f"{v1_memory}/memory.swappiness"),
        controllers=_controllers(unified),
    )


def parse_set(text: str) -> set[int]:
    """The numbers of a list such as "0-2,5" (cpuset(7), formats); InvalidArgument "invalid format: x"."""
    numbers: set[int] = set()
    for part in text.split(",") if text else ():
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise errdefs.InvalidArgument(f"invalid format: {text}")
        low, high = int(first), int(last or first)
        if high < low or high > 8192:
            raise errdefs.InvalidArgument(f"invalid format: {text}")
        numbers.update(range(low, high + 1))
    return numbers


def _controllers(unified: bool) -> frozenset[str]:
    if unified:
        return frozenset(_text("/sys/fs/cgroup/cgroup.controllers").split())
    mounted = set()
    for line in _text("/proc/self/mountinfo").splitlines():
        tail = line.partition(" - ")[2].split()
        if tail and tail[0] == "cgroup":
            mounted.update(tail[2].split(","))
    return frozenset(mounted)


def _os_release() -> dict[str, str]:
    found = {}
    for line in _text("/etc/os-release").splitlines():
        key, equals, value = line.partition("=")
        if equals:
            found[key] = value.strip('"')
    return found


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""

"""Files of /proc and /sys that an unprivileged container does not see, or sees read-only."""

from __future__ import annotations

import functools
import os

_MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",  # its counts tell how long a neighbour's secrets are (GHSA-6fw5-f8r9-fgfm)
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",  # energy readings tell what a neighbour computes (GHSA-jq35-85cj-fj4p)
    "/sys/firmware",
)
_READONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@functools.cache
def masked_paths() -> tuple[str, ...]:
    """`linux.maskedPaths`: the fixed list, then the thermal counters of each processor that this host has.

    They are left out of moby 26, which distributions ship: it masks neither /proc/interrupts nor
    thermal_throttle.
    """
    throttles = (f"/sys/devices/system/cpu/cpu{number}/thermal_throttle" for number in _possible_processors())
    return (*_MASKED, *(path for path in throttles if os.path.isdir(path)))


def readonly_paths() -> tuple[str, ...]:
    """`linux.readonlyPaths`."""
    return _READONLY


def _possible_processors() -> list[int]:
    """From a list such as `0-3,8` (Documentation/admin-guide/cputopology.rst)."""
    try:
        with open("/sys/devices/system/cpu/possible", encoding="ascii") as possible:
            text = possible.read().strip()
    except OSError:
        return []
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found

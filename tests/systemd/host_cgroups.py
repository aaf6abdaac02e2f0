"""A cgroup of its own for a machine in each of the host's hierarchies, so that machines do not meet in them.

nspawn gives a machine a view of the hierarchies that begins where nspawn itself is.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path


def _roots() -> list[Path]:
    """The mount point of each hierarchy (proc_pid_mountinfo(5))."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split()[0] in ("cgroup", "cgroup2"):
            found.append(Path(fields.split()[4]))
    return found


def make(name: str) -> list[Path]:
    """Make the cgroups; returns them."""
    made = []
    for root in _roots():
        group = root / name
        group.mkdir()
        made.append(group)
        # A new cpuset is empty, and takes no process then (cpuset(7)).
        for file in ("cpuset.cpus", "cpuset.mems"):
            if (root / file).exists() and (group / file).exists():
                (group / file).write_text((root / file).read_text())
    return made


def enter(groups: list[Path]) -> None:
    """Move the calling process into the cgroups."""
    for group in groups:
        (group / "cgroup.procs").write_text(str(os.getpid()))


def remove(groups: list[Path]) -> None:
    """Remove the cgroups and all below, as soon as the kernel lets go of what ended in them."""
    deadline = time.monotonic() + 10
    while left := [group for group in groups if group.exists()]:
        for group in left:
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        if time.monotonic() > deadline:
            raise AssertionError(f"cgroups are in use: {left}")
        time.sleep(0.02)

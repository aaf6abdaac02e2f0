"""Memory of processes, as `make bench` tells it."""

from __future__ import annotations

from pathlib import Path


def pss(pid: int) -> float:
    """Proportional set size in MB of 2^20 bytes; proc(5), smaps_rollup."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0

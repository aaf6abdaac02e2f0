"""What a host holds that an engine could leave behind, so that before and after can be compared."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# What names one of ours: state folders and instances of tests begin like this, and so do our processes.
PROCESS_WORDS = (
    "dockerd_api",
    "dockerd-api",
    "containerd_svc",
    "containerd-svc",
    "shim_svc",
    "shim-svc",
    "runc-bin",
)


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        yield line.split(" ")[4]


def _cgroups() -> Iterator[str]:
    for path, folders, _ in os.walk("/sys/fs/cgroup"):
        for name in folders:
            yield os.path.join(path, name)


def _tables() -> Iterator[str]:
    done = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True)
    yield from done.stdout.splitlines()


def _processes() -> Iterator[str]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            namespace = os.readlink(entry / "ns/pid")
        except OSError:
            continue
        # The processes of a machine that a test has booted are that machine's, and gone with it.
        if namespace == os.readlink("/proc/self/ns/pid") and any(word in words for word in PROCESS_WORDS):
            yield f"{entry.name} {words[:120]}"


@dataclass(frozen=True)
class Holdings:
    """Mount points, links, nft tables, cgroups and processes at one moment."""

    kinds: dict[str, frozenset[str]]

    @classmethod
    def now(cls) -> Holdings:
        return cls(
            {
                "mounts": frozenset(_mounts()),
                "links": frozenset(name for _, name in socket.if_nameindex()),
                "tables": frozenset(_tables()),
                "cgroups": frozenset(_cgroups()),
                "processes": frozenset(_processes()),
            }
        )

    def added_since(self, before: Holdings) -> dict[str, list[str]]:
        """What is here and was not `before`, by kind; empty when nothing is."""
        added = {kind: sorted(self.kinds[kind] - before.kinds[kind]) for kind in self.kinds}
        return {kind: names for kind, names in added.items() if names}

"""`make bench`, containerd's rows: containerd-svc beside containerd, in namespaces that end with them.

PEER_CONTAINERD names the folders, as PATH does, that have containerd, containerd-shim-runc-v2, ctr and runc;
without it the distribution's packages are unpacked (not installed).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.support.debian import REPO
from tests.support.packages import unpacked

Row = tuple[str, str, list[float]]
# What the ratios are to be at most.
WANTED = {
    "a life, beside ctr run --rm --net-host": 0.35,
    "the daemon, idle": 1.0,
}


def rows(rounds: int) -> Iterator[Row]:
    """Name, unit and [ours, the peer's] of each row. A peer that cannot be had is named with the reason."""
    try:
        tools = os.environ.get("PEER_CONTAINERD") or (
            f"{unpacked('containerd')}/usr/bin:{unpacked('runc')}/usr/sbin"
        )
    except AssertionError as error:
        print(f"(no containerd: {error}; set PEER_CONTAINERD to its folders)", flush=True)
        return
    shared = Path("/run/containerd")
    mine = not shared.exists()
    shared.mkdir(exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="ctr-", dir="/tmp") as work:
            command = [
                "unshare",
                "-m",
                "-p",
                "-f",
                "--mount-proc",
                "--propagation",
                "private",
                "--kill-child",
            ]
            command += [sys.executable, "-m", "tests.bench.beside_containerd", str(rounds), tools, work]
            with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE) as process:
                assert process.stdout
                for line in process.stdout:
                    name, unit, values = json.loads(line)
                    yield name, unit, values
            if process.returncode:
                print("(no more figures beside containerd: its process failed)", flush=True)
    finally:
        if mine:
            with suppress(OSError):  # another run has it now
                shared.rmdir()

"""How often a `docker run --rm` waits for the disk, counted by strace over all processes of the engine."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.engine import SERVICES, Engine

pytestmark = [pytest.mark.root]

SYNCS = "fsync,fdatasync,syncfs,sync,sync_file_range,msync"
LIMIT = 6


def test_run_rm_waits_for_at_most_six_syncs(engine: Engine, tmp_path: Path) -> None:
    engine.out("run", "--rm", "busybox", "true")
    written = tmp_path / "strace"
    pids = [option for name in SERVICES for option in ("-p", str(engine.pid(name)))]
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-e", f"trace={SYNCS}", "-e", "signal=none", "-o", str(written), *pids],
        stderr=subprocess.PIPE,
    )
    try:
        traced = [int(option) for option in pids[1::2]]
        engine.until("strace attached", lambda: all(_traced_by(pid) for pid in traced))
        engine.out("run", "--rm", "busybox", "true")
        calls = re.findall(r"^\d+ +\w+\(", written.read_text(), flags=re.M)
    finally:
        tracer.terminate()
        tracer.communicate(timeout=20)
    assert 1 <= len(calls) <= LIMIT, written.read_text()


def _traced_by(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return re.search(r"^TracerPid:\t0$", status, flags=re.M) is None

"""Containers as units of systemd (`--systemd-cgroup`), on the machine's v1 hierarchies."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from runc_bin.libcontainer import spec_document

from tests.support.busybox import find_busybox
from tests.support.crash_register import registered
from tests.systemd.machine import Machine

pytestmark = [pytest.mark.root, pytest.mark.systemd, pytest.mark.slow]

INSIDE = Path(__file__).with_name("inside_limits.py")
PYTHON = "/opt/buoy/current/bin/python"


def judge_unit(found: dict[str, Any], memory: str) -> None:
    """What holds for the unit of a container; `memory` is the property that has its memory limit."""
    assert found["run"] == [0, ""]
    assert found["unit"] == {
        "Slice": "system.slice",
        "Delegate": "yes",
        memory: str(64 << 20),
        "TasksMax": "50",
        "CPUQuotaPerSecUSec": "510ms",  # 50.5 % is rounded up
        "CPUQuotaPeriodUSec": "100ms",
        "ActiveState": "active",
    }
    assert found["limits"] == [str(64 << 20)]
    assert found["reloaded"] == [str(64 << 20)]
    assert "/system.slice/buoy-two.scope" in found["member"]
    assert found["exec"].endswith("opened\n")
    assert found["update"] == [0, ""]
    assert found["updated"][memory] == str(48 << 20)
    assert found["updated"]["CPUQuotaPerSecUSec"] == "200ms"
    assert found["updated-limits"] == [str(48 << 20)]
    assert found["delete"] == [0, ""]
    assert found["gone"] == "inactive"
    assert found["bad"][0] == 1
    assert "expected cgroupsPath to be of format" in found["bad"][1]


def test_a_container_is_a_unit(machine: Machine) -> None:
    shutil.copy(INSIDE, machine.root / "root/inside_limits.py")
    printed = machine.out(PYTHON, "-I", "/root/inside_limits.py")
    found = json.loads(printed.rpartition("found=")[2])["unit"]
    judge_unit(found, "MemoryLimit")
    everywhere = [line for line in found["member"].splitlines() if "/system.slice/buoy-two.scope" in line]
    assert len(everywhere) >= 8


# What comes by each point.
CRASHES = {
    "cgroups.unit-started": ("create", "c"),
    "cgroups.unit-taken-over": ("create", "c"),
    "cgroups.unit-updated": ("update", "--memory", "40m", "c"),
    "cgroups.unit-stopped": ("delete", "--force", "c"),
}


def test_a_death_at_each_point_of_a_unit(machine: Machine) -> None:
    """`state`, `kill` and `delete --force` work after it, and neither unit nor cgroup is left."""
    assert CRASHES.keys() == registered("cgroups.unit-")
    bundle = machine.root / "root/crashing"
    (bundle / "rootfs/bin").mkdir(parents=True)
    shutil.copy(find_busybox(), bundle / "rootfs/bin/sleep")
    spec = spec_document.default()
    spec["process"].update({"args": ["sleep", "1000"], "terminal": False})
    spec["linux"]["cgroupsPath"] = "system.slice:buoy:crash"
    (bundle / "config.json").write_text(json.dumps(spec))

    def call(*words: str, crash: str = "") -> tuple[int, str]:
        command = f"cd /root/crashing; exec /opt/buoy/current/bin/runc-bin --systemd-cgroup {' '.join(words)}"
        script = f"({command}) </dev/null >/tmp/said 2>&1; code=$?; cat /tmp/said; exit $code"
        done = machine.run("env", f"BUOY_CRASH_AT={crash}", "sh", "-c", script, check=False)
        return done.returncode, done.stdout

    for point, words in CRASHES.items():
        if words[0] != "create":
            assert call("create", "c")[0] == 0
        assert call(*words, crash=point)[0] == 128 + signal.SIGKILL, point
        code, state = call("state", "c")
        assert code == 0, state
        code, said = call("kill", "c", "KILL")
        assert code == 0 or "container not running" in said, (point, said)
        assert call("delete", "--force", "c") == (0, ""), point
        assert machine.run("systemctl", "is-active", "buoy-crash.scope", check=False).stdout == "inactive\n"
        assert machine.out("find", "/sys/fs/cgroup", "-name", "buoy-crash.scope") == "", point

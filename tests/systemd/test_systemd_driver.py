"""Containers as units of systemd (`--systemd-cgroup`), on the machine's v1 hierarchies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

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

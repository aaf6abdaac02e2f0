"""Each field of the spec's "Control groups" on cgroup v1: set at the start, changed in force, read back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import errdefs
import pytest
from runc_bin.libcontainer.cgroups import hierarchy, manager_for

from tests.support.debian import REPO
from tests.support.hierarchies import in_full_view

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(hierarchy.unified(), reason="needs cgroup v1 hierarchies"),
]

MEGA = 1 << 20


def _disk() -> dict[str, int]:
    """A block device that requests go to: no partition, and no loop without a file."""
    for name in sorted(os.listdir("/sys/block"), key=lambda name: name.startswith(("loop", "ram", "zram"))):
        major, minor = Path("/sys/block", name, "dev").read_text().split(":")
        return {"major": int(major), "minor": int(minor)}
    return {"major": 8, "minor": 0}


DISK = _disk()
NUMBER = f"{DISK['major']}:{DISK['minor']}"
CPU = {"quota": 50000, "period": 100000}
MEMORY = {"limit": 64 * MEGA, "swap": 128 * MEGA}

# section, its object at first and later, controller, file, what it holds at first and later
FIELDS: list[tuple[str, Any, Any, str, str, str, str]] = [
    ("cpu", {"shares": 512}, {"shares": 256}, "cpu", "cpu.shares", "512", "256"),
    ("cpu", CPU, {"quota": 20000}, "cpu", "cpu.cfs_quota_us", "50000", "20000"),
    ("cpu", CPU, {"quota": -1}, "cpu", "cpu.cfs_quota_us", "50000", "-1"),
    ("cpu", CPU, {"period": 50000}, "cpu", "cpu.cfs_period_us", "100000", "50000"),
    ("cpu", {**CPU, "burst": 1000}, {"burst": 0}, "cpu", "cpu.cfs_burst_us", "1000", "0"),
    ("cpu", {"idle": 1}, {"idle": 0}, "cpu", "cpu.idle", "1", "0"),
    ("cpu", {"realtimeRuntime": 2000, "realtimePeriod": 500000}, {"realtimeRuntime": 1000},
     "cpu", "cpu.rt_runtime_us", "2000", "1000"),
    ("cpu", {"realtimeRuntime": 2000, "realtimePeriod": 500000}, {"realtimePeriod": 400000},
     "cpu", "cpu.rt_period_us", "500000", "400000"),
    ("cpu", {"cpus": "0"}, {"cpus": "0-1"}, "cpuset", "cpuset.cpus", "0", "0-1"),
    ("cpu", {"mems": "0"}, {"mems": "0"}, "cpuset", "cpuset.mems", "0", "0"),
    ("memory", MEMORY, {"limit": 32 * MEGA}, "memory", "memory.limit_in_bytes", f"{64 * MEGA}",
     f"{32 * MEGA}"),
    ("memory", MEMORY, {"swap": 96 * MEGA}, "memory", "memory.memsw.limit_in_bytes", f"{128 * MEGA}",
     f"{96 * MEGA}"),
    ("memory", {"reservation": 32 * MEGA}, {"reservation": 16 * MEGA}, "memory", "memory.soft_limit_in_bytes",
     f"{32 * MEGA}", f"{16 * MEGA}"),
    ("memory", {"swappiness": 7}, {"swappiness": 0}, "memory", "memory.swappiness", "7", "0"),
    ("memory", {"disableOOMKiller": True}, {}, "memory", "memory.oom_control", "oom_kill_disable 1",
     "oom_kill_disable 1"),
    ("memory", {"useHierarchy": True}, {}, "memory", "memory.use_hierarchy", "1", "1"),
    ("pids", {"limit": 77}, {"limit": -1}, "pids", "pids.max", "77", "max"),
    *(
        ("blockIO", {key: [{**DISK, "rate": 1 << 20}]}, {key: [{**DISK, "rate": 1 << 21}]},
         "blkio", f"blkio.throttle.{file}", f"{NUMBER} {1 << 20}", f"{NUMBER} {1 << 21}")
        for key, file in (
            ("throttleReadBpsDevice", "read_bps_device"),
            ("throttleWriteBpsDevice", "write_bps_device"),
            ("throttleReadIOPSDevice", "read_iops_device"),
            ("throttleWriteIOPSDevice", "write_iops_device"),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("section", "first", "later", "controller", "file", "shown", "then"),
    FIELDS,
    ids=[f"{controller}: {file}-{then}" for _, _, _, controller, file, _, then in FIELDS],
)
def test_a_field(
    cgroup_name: str, section: str, first: Any, later: Any, controller: str, file: str, shown: str, then: str
) -> None:
    if section == "cpu" and "realtimeRuntime" in first:
        cgroup_name = cgroup_name.rpartition("/")[0]  # a new parent would have no time to give
        budget = Path("/sys/fs/cgroup/cpu/cpu.rt_runtime_us")
        if not budget.exists() or int(budget.read_text()) < 2000:
            pytest.skip("the host has no real-time budget")
    manager = manager_for({"cgroupsPath": cgroup_name, "resources": {section: first}}, "id")
    path = Path(manager.paths[controller], file)
    manager.create()
    try:
        if not path.exists():
            pytest.skip(f"the kernel has no {file}")
        manager.apply()
        assert shown in path.read_text().splitlines()
        manager.update({section: later})
        assert then in path.read_text().splitlines()
    finally:
        manager.destroy()


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"rdma": {"mlx5_0": {"hcaHandles": 3}}}, "linux.resources.rdma: cgroup controller rdma"),
        ({"network": {"classID": 1}}, "linux.resources.network: cgroup controller net_cls"),
        (
            {"network": {"priorities": [{"name": "lo", "priority": 1}]}},
            "linux.resources.network: cgroup controller net_prio",
        ),
    ],
)
def test_a_controller_that_the_host_has_not_mounted(cgroup_name: str, resources: Any, words: str) -> None:
    if words.rpartition(" ")[2] in hierarchy.v1_mounts():
        pytest.skip("it is mounted here")
    with pytest.raises(errdefs.NotFound, match=words):
        manager_for({"cgroupsPath": cgroup_name, "resources": resources}, "id")
    assert not any(base.joinpath(cgroup_name[1:]).exists() for base in Path("/sys/fs/cgroup").iterdir())


NETWORK = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from runc_bin.libcontainer.cgroups import manager_for
def limits(classid, priority):
    return {"network": {"classID": classid, "priorities": [{"name": "lo", "priority": priority}]}}
manager = manager_for({"cgroupsPath": sys.argv[2], "resources": limits(0x100001, 5)}, "id")
def shown():
    priorities = open(manager.paths["net_prio"] + "/net_prio.ifpriomap").read().splitlines()
    classid = open(manager.paths["net_cls"] + "/net_cls.classid").read().strip()
    return [classid, "lo 5" in priorities, "lo 6" in priorities]
manager.create()
try:
    manager.apply()
    found = [shown()]
    manager.update(limits(0x100002, 6))
    found.append(shown())
finally:
    manager.destroy()
for path in set(manager.paths.values()):
    os.rmdir(os.path.dirname(path))
print(json.dumps(found))
"""


def test_classes_and_priorities_of_the_network(cgroup_name: str, tmp_path: Path) -> None:
    """In a mount namespace that has all hierarchies of the kernel."""
    names = Path("/proc/cgroups").read_text()
    if "net_cls" not in names or "net_prio" not in names:
        pytest.skip("the kernel has no net_cls or no net_prio")
    script = 'shift; exec "$@"'
    words = (sys.executable, "-ISc", NETWORK, str(REPO / "services"), cgroup_name)
    command = in_full_view(script, str(tmp_path / "view"), *words)
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [["1048577", True, False], ["1048578", False, True]]

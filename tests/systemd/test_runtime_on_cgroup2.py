"""The runtime alone on cgroup v2: each field of the spec's "Control groups", and containers of an ordinary
user: in a delegated subtree, by the user's own systemd, and without either.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.debian import REPO, debian_root
from tests.systemd import vm

pytestmark = [
    pytest.mark.root,
    pytest.mark.systemd,
    pytest.mark.cgroup2,
    pytest.mark.slow,
    pytest.mark.timeout(500),
]

INSIDE = Path(__file__).with_name("inside_rootless.py")
SCRIPT = r"""
tree=/sys/fs/cgroup
echo 'sailor:x:1000:1000::/home/sailor:/bin/sh' >>/etc/passwd
mkdir -p /home/sailor /run/user/1000
chown 1000:1000 /home/sailor /run/user/1000
chmod 700 /run/user/1000
modprobe loop
echo '+cpu +cpuset +io +memory +pids' >$tree/cgroup.subtree_control
for place in delegated undelegated unit; do mkdir $tree/$place; done
for place in delegated unit; do
  chown 1000 $tree/$place $tree/$place/cgroup.procs $tree/$place/cgroup.subtree_control
done
export XDG_RUNTIME_DIR=/run/user/1000 HOME=/home/sailor
python="/usr/bin/python3 -IS"
look="$python /opt/inside_rootless.py /opt/services"
sailor='setpriv --reuid 1000 --regid 1000 --clear-groups'
$python /opt/inside_fields.py /opt/services /opt/fields.json 2>&1
for place in delegated undelegated; do
  sh -c "echo 0 >$tree/$place/cgroup.procs; exec $sailor $look $place" 2>&1
done
sh -c "echo 0 >$tree/unit/cgroup.procs; exec $sailor /lib/systemd/systemd --user" >/tmp/user.log 2>&1 &
until_there() { n=0; until [ -e $1 ] || [ $n = 200 ]; do n=$((n+1)); sleep 0.2; done; }
until_there /run/user/1000/systemd/private
to=/home/sailor/unit
$sailor systemd-run -q --user -E XDG_RUNTIME_DIR=$XDG_RUNTIME_DIR /bin/sh -c \
  "$look unit >$to.out 2>&1; >$to.end"
until_there $to.end
cat $to.out || cat /tmp/user.log
"""


MEGA = 1 << 20
CPU = {"quota": 50000, "period": 100000}
MEMORY = {"limit": 64 * MEGA, "swap": 128 * MEGA}
LOOP = {"major": 7, "minor": 0}

# limits at first and later, file, a line that it holds at first and later; with no later one: the error
FIELDS: list[tuple[dict[str, Any], dict[str, Any], str, str, str]] = [
    ({"cpu": {"shares": 512}}, {"cpu": {"shares": 1024}}, "cpu.weight", "59", "100"),
    ({"cpu": CPU}, {"cpu": {"quota": 20000}}, "cpu.max", "50000 100000", "20000 100000"),
    ({"cpu": CPU}, {"cpu": {"period": 50000}}, "cpu.max", "50000 100000", "50000 50000"),
    ({"cpu": {**CPU, "burst": 1000}}, {"cpu": {"burst": 0}}, "cpu.max.burst", "1000", "0"),
    ({"cpu": {"idle": 1}}, {"cpu": {"idle": 0}}, "cpu.idle", "1", "0"),
    ({"cpu": {"cpus": "0"}}, {"cpu": {"cpus": "0-1"}}, "cpuset.cpus", "0", "0-1"),
    ({"cpu": {"mems": "0"}}, {"cpu": {"mems": "0"}}, "cpuset.mems", "0", "0"),
    ({"memory": MEMORY}, {"memory": {"limit": 32 * MEGA}}, "memory.max", f"{64 * MEGA}", f"{32 * MEGA}"),
    ({"memory": MEMORY}, {"memory": {"swap": 96 * MEGA}}, "memory.swap.max", f"{64 * MEGA}", f"{32 * MEGA}"),
    ({"memory": {"reservation": 9 * MEGA}}, {"memory": {"reservation": 8 * MEGA}}, "memory.low",
     f"{9 * MEGA}", f"{8 * MEGA}"),
    ({"memory": {**MEMORY, "checkBeforeUpdate": True}}, {"memory": {"limit": -1, "swap": -1}}, "memory.max",
     f"{64 * MEGA}", "max"),
    ({"memory": {"useHierarchy": True}}, {"memory": {"limit": MEGA}}, "memory.max", "max", f"{MEGA}"),
    ({"pids": {"limit": 77}}, {"pids": {"limit": -1}}, "pids.max", "77", "max"),
    ({"blockIO": {"weight": 100}}, {"blockIO": {"weight": 1000}}, "io.weight", "default 910",
     "default 10000"),
    *(
        ({"blockIO": {key: [{**LOOP, "rate": 1 << 20}]}}, {"blockIO": {key: [{**LOOP, "rate": 1 << 21}]}},
         "io.max", line.format(1 << 20), line.format(1 << 21))
        for key, line in (
            ("throttleReadBpsDevice", "7:0 rbps={} wbps=max riops=max wiops=max"),
            ("throttleWriteBpsDevice", "7:0 rbps=max wbps={} riops=max wiops=max"),
            ("throttleReadIOPSDevice", "7:0 rbps=max wbps=max riops={} wiops=max"),
            ("throttleWriteIOPSDevice", "7:0 rbps=max wbps=max riops=max wiops={}"),
        )
    ),
    *(
        ({"hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MEGA}]},
         {"hugepageLimits": [{"pageSize": "2MB", "limit": 6 * MEGA}]}, file, f"{4 * MEGA}", f"{6 * MEGA}")
        for file in ("hugetlb.2MB.max", "hugetlb.2MB.rsvd.max")
    ),
    ({"unified": {"memory.high": f"{9 * MEGA}"}}, {"unified": {"memory.high": "max"}}, "memory.high",
     f"{9 * MEGA}", "max"),
    ({"unified": {"misc.max": "nothing 1"}}, {}, "misc.max", "misc.max", ""),
    ({"rdma": {"mlx5_0": {"hcaHandles": 3}}}, {}, "rdma.max", "rdma", ""),
    *(
        ({section: {field: value}}, {}, "", f"linux.resources.{section}.{field} is not supported on", "")
        for section, field, value in (
            ("cpu", "realtimeRuntime", 1000),
            ("cpu", "realtimePeriod", 1000),
            ("memory", "disableOOMKiller", True),
            ("memory", "swappiness", 5),
            ("blockIO", "leafWeight", 100),
            ("network", "classID", 1),
            ("network", "priorities", [{"name": "lo", "priority": 1}]),
        )
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def said() -> Iterator[dict[str, Any]]:
    """What one boot of the machine has told, by place."""
    folder = Path(tempfile.mkdtemp(prefix="buoy-machine-"))
    for name in ("root", "upper", "work"):
        (folder / name).mkdir()
    layers = f"lowerdir={debian_root()},upperdir={folder}/upper,workdir={folder}/work"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, folder / "root"], check=True)
    try:
        leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(REPO / "services", folder / "root/opt/services", ignore=leave)
        shutil.copy(INSIDE, folder / "root/opt")
        shutil.copy(INSIDE.with_name("inside_fields.py"), folder / "root/opt")
        cases = [{"resources": first, "later": later, "file": file} for first, later, file, _, _ in FIELDS]
        (folder / "root/opt/fields.json").write_text(json.dumps(cases))
        printed = vm.run(folder / "root", SCRIPT, timeout=240)
        places = (line.partition("=") for line in printed.splitlines() if "={" in line or "=[" in line)
        yield {"printed": printed, **{name: json.loads(text) for name, _, text in places}}
    finally:
        subprocess.run(["umount", "-l", folder / "root"], check=False)
        shutil.rmtree(folder)


def judge(found: dict[str, Any]) -> None:
    """What holds for a container with limits, whoever has made its control group."""
    for verb in ("create", "start", "pause", "resume", "update", "kill", "delete"):
        assert found[verb] == [0, ""], verb
    assert found["early"] == [0, "in a created container\n"]
    assert found["set"] == [str(64 << 20), "50000 100000", "50"]
    assert found["changed"] == [str(48 << 20), "20000 100000", "20"]
    assert found["member"] == found["group"]
    assert (found["ps"], found["paused"], found["frozen"]) == (True, "paused", True)
    assert found["usage"]["current"] == 2
    assert not found["left"]
    assert "can't fork" in found["full"][1]


def test_in_a_delegated_subtree(said: dict[str, Any]) -> None:
    judge(said["delegated"])


def test_as_units_of_the_user_s_systemd(said: dict[str, Any]) -> None:
    judge(said["unit"])
    assert said["unit"]["gone"] == "inactive"
    for point, found in said["unit"]["crashes"].items():
        assert found == [-signal.SIGKILL, 0, 0, "", False, "inactive"], point


def test_each_field(said: dict[str, Any]) -> None:
    for case, found in zip(FIELDS, said["fields"], strict=True):
        *_, first, later = case
        if later:
            assert len(found) == 2, (case, found)
            assert first in found[0].splitlines(), (case, found)
            assert later in found[1].splitlines(), (case, found)
        else:
            assert len(found) == 1, (case, found)
            assert first in found[0], (case, found)


def test_without_a_subtree(said: dict[str, Any]) -> None:
    found = said["undelegated"]
    assert found["plain"] == [0, "0::/\n"]
    assert found["strict"][0] == 1
    assert "no process may be moved into" in found["strict"][1]
    assert found["limits"][0] == 1
    assert "cannot set memory limit: container could not join or create cgroup" in found["limits"][1]
    assert found["records"] == []

"""The installed engine on cgroup v2: limits hold while every unit is restarted beside a container."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.kernel.runtime.test_checkpoint import INSIDE as CHECKPOINTS
from tests.kernel.runtime.test_checkpoint import judge_counting, judge_crashes, judge_failures, judge_terminal
from tests.support.debian import REPO
from tests.systemd import vm
from tests.systemd.machine import Machine
from tests.systemd.test_systemd_driver import INSIDE, judge_unit

pytestmark = [pytest.mark.root, pytest.mark.systemd, pytest.mark.cgroup2, pytest.mark.slow]

SCRIPT = r"""
say() { echo "$1=$2"; }
limits() { echo "$(cat $group/memory.max) $(cat $group/pids.max) $(cat $group/cpu.max)"; }
identity() { p=$(docker inspect -f '{{.State.Pid}}' $id); echo "$p $(cut -d' ' -f22 /proc/$p/stat)"; }
docker import /root/busybox.tar busybox >/dev/null
id=$(docker run -d --memory 64m --pids-limit 50 --cpus 0.5 busybox \
  sh -c 'i=0; while :; do echo $i; i=$((i+1)); sleep 0.1; done')
say began "$(identity)"
group=/sys/fs/cgroup$(cut -d: -f3 /proc/$(docker inspect -f '{{.State.Pid}}' $id)/cgroup)
say group "$group"
say limits "$(limits)"
systemctl daemon-reload
say reloaded "$(identity) $(limits)"
systemctl restart buoy-containers shim-svc containerd-svc dockerd-api
say restarted "$(identity) $(limits)"
say active "$(systemctl is-active buoy-containers shim-svc containerd-svc dockerd-api | tr '\n' ' ')"
main=$(systemctl show -P MainPID shim-svc)
kill -9 $main
n=0; until [ "$(systemctl show -P MainPID shim-svc)" != $main ] && systemctl -q is-active shim-svc; do
  n=$((n+1)); [ $n -lt 600 ] || break; sleep 0.1; done
say killed "$(identity) $(limits) $(systemctl is-active shim-svc)"
for unit in shim-svc containerd-svc dockerd-api; do
  say $unit "$(cat /sys/fs/cgroup/system.slice/$unit.service/cgroup.subtree_control)"
done
say exec "$(docker exec $id echo inside)"
say second "$(docker run --rm busybox echo another)"
docker run --rm busybox sh -c 'mknod /tmp/disk b 8 0; cat /tmp/disk' >/dev/null 2>/tmp/denied
say device "$(cat /tmp/denied)"
docker run -d --name oom --memory 16m busybox sh -c 'x=a; while :; do x=$x$x; done' >/dev/null
say oom "$(docker wait oom) $(docker inspect -f '{{.State.OOMKilled}}' oom)"
docker logs $id >/tmp/log
n=$(wc -l </tmp/log); seq 0 $((n-1)) | cmp - /tmp/log && say log whole
docker rm -f $id oom >/dev/null
say left "$(test -e $group && echo $group)"
/opt/buoy/current/bin/python -I /root/inside_limits.py
/opt/buoy/current/bin/python -I /root/inside_checkpoint.py
"""


@pytest.fixture(scope="module")
def said(machine: Machine) -> dict[str, str]:
    """What one boot of the machine has told, by name."""
    docker = shutil.which("docker") or str(REPO / ".venv/bin/docker")
    # Inside the nspawn machine the client is a bind mount, which the folder does not show.
    shutil.copy(docker, machine.root / "usr/bin/docker")
    shutil.copy(INSIDE, machine.root / "root/inside_limits.py")
    shutil.copy(CHECKPOINTS, machine.root / "root/inside_checkpoint.py")
    assert Path(machine.root / "root/busybox.tar").exists()
    printed = vm.run(machine.root, SCRIPT, timeout=450)
    return dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)


@pytest.mark.timeout(500)
def test_units_restart_beside_a_container_with_limits(said: dict[str, str]) -> None:
    assert said["group"].startswith("/sys/fs/cgroup/system.slice/buoy-containers.scope/")
    assert said["limits"] == f"{64 << 20} 50 50000 100000"
    assert said["reloaded"] == f"{said['began']} {said['limits']}"
    assert said["restarted"] == f"{said['began']} {said['limits']}"
    assert said["active"].split() == ["active"] * 4
    assert said["killed"] == f"{said['began']} {said['limits']} active"
    # A service whose own cgroup hands out controllers could not be started again.
    assert [said[unit] for unit in ("shim-svc", "containerd-svc", "dockerd-api")] == ["", "", ""]
    assert said["exec"] == "inside"
    assert said["second"] == "another"
    assert "Operation not permitted" in said["device"]
    assert said["oom"] == "137 true"
    assert said["log"] == "whole"
    assert said["left"] == ""


@pytest.mark.timeout(500)
def test_a_container_is_a_unit(said: dict[str, str]) -> None:
    judge_unit(json.loads(said["found"])["unit"], "MemoryMax")


@pytest.mark.timeout(500)
def test_limits_are_set_and_changed(said: dict[str, str]) -> None:
    found = json.loads(said["found"])["unified"]
    assert found["run"] == [0, ""]
    mega = 1 << 20
    first = {
        "memory.max": str(64 * mega),
        "memory.swap.max": str(64 * mega),
        "cpu.max": "50500 100000",
        "cpu.idle": "0",
        "pids.max": "50",
    }
    more = {
        "memory.low": str(32 * mega),
        "memory.high": str(60 * mega),
        "cpu.weight": "59",
        "cpu.max.burst": "1000",
        "cpuset.cpus": "0",
        "cpuset.mems": "0",
    }
    assert found["set"] == first | more
    # What an update leaves out stays, also where two values share a file or one is the other's difference.
    assert found["quota"] == first | {"cpu.max": "20000 100000"}
    assert found["period"] == found["quota"] | {"cpu.max": "20000 50000", "pids.max": "max"}
    assert found["memory"] == found["period"] | {
        "memory.max": str(56 * mega),
        "memory.swap.max": str(72 * mega),
    }
    assert found["swap"] == found["memory"] | {"memory.swap.max": str(8 * mega), "cpu.idle": "1"}
    assert found["refused"][0] == 1
    assert "memory+swap limit should be >= memory limit" in found["refused"][1]
    assert found["paused"] == "paused"
    assert found["exec"] == "0::/"
    assert found["delete"] == [0, ""]
    assert found["left"] is False


@pytest.mark.timeout(500)
def test_usage_and_running_out_of_memory_are_told(said: dict[str, str]) -> None:
    found = json.loads(said["found"])["unified"]
    stats = found["stats"]
    assert stats["memory"]["usage"]["limit"] == 64 << 20
    assert stats["memory"]["swap"]["limit"] == 128 << 20
    assert stats["pids"] == {"current": 1, "limit": 50}
    assert stats["cpu"]["usage"].keys() == {"total", "kernel", "user"}
    assert stats["hugetlb"]["2MB"] == {"failcnt": 0}
    assert found["oom"] is True
    # Six megabytes are enough: the runtime's own memory is not charged to the container.
    code, events = found["small"]
    assert code == 0
    assert "oom 0" in events


@pytest.mark.timeout(500)
def test_what_cgroup_v2_cannot_do_is_refused(said: dict[str, str]) -> None:
    found = json.loads(said["found"])["unified"]
    for name, words in {
        "slash": "must be a file name (no slashes)",
        "swappiness": "linux.resources.memory.swappiness is not supported on cgroup v2",
        "unknown": r"controller \"nothing\" not available",
    }.items():
        assert found[name][0] == 1
        assert words in found[name][1]


@pytest.mark.timeout(500)
def test_a_cgroup_is_handed_to_the_user_in_it(said: dict[str, str]) -> None:
    owners = json.loads(said["found"])["unified"]["owners"]
    assert owners == {
        ".": 1000,
        "cgroup.procs": 1000,
        "cgroup.subtree_control": 1000,
        "cgroup.threads": 1000,
        "memory.max": 0,
        "cpu.max": 0,
    }


@pytest.mark.timeout(500)
def test_what_a_container_sees_of_the_tree(said: dict[str, str]) -> None:
    """Its own cgroup is the root where it has a cgroup namespace, also in a user namespace; else it is the
    host's tree, read-only as asked for. The options of the host's mount stay (nsdelegate, …).
    """
    found = json.loads(said["found"])["trees"]
    assert found["after"] == found["host"]
    for name in ("own", "mapped"):
        assert found[name].pop("super")
        options = found[name].pop("options").split(",")
        assert {"ro", "nosuid", "nodev", "noexec"} <= {*options}
        assert found[name] == {"root": "/", "at": "/sys/fs/cgroup", "pid 1": True}
    for name in ("host's", "mapped host's"):
        assert found[name]["super"] == found["host"]["super"]
        assert {"ro", "nosuid", "nodev", "noexec"} <= {*found[name]["options"].split(",")}
        assert not found[name]["pid 1"]


@pytest.mark.timeout(500)
def test_containers_go_on_from_checkpoints(said: dict[str, str]) -> None:
    found = json.loads(said["checkpoints"])
    assert found["counting"]["pre-dump"] == [0, ""]
    judge_counting(found["counting"])
    assert found["counting"]["mounts"] == []
    judge_crashes(found["crashes"])
    judge_failures(found["failures"])
    judge_terminal(found["terminal"])

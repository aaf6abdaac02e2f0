"""The installed engine on cgroup v2: limits hold while every unit is restarted beside a container."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.debian import REPO
from tests.systemd import vm
from tests.systemd.machine import Machine

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
"""


@pytest.mark.timeout(500)
def test_units_restart_beside_a_container_with_limits(machine: Machine) -> None:
    docker = shutil.which("docker") or str(REPO / ".venv/bin/docker")
    # Inside the nspawn machine the client is a bind mount, which the folder does not show.
    shutil.copy(docker, machine.root / "usr/bin/docker")
    assert Path(machine.root / "root/busybox.tar").exists()
    printed = vm.run(machine.root, SCRIPT, timeout=400)
    said = dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)
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

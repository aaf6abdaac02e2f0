"""`make uninstall`: first without, then with PURGE=1. The last test of the machine."""

from __future__ import annotations

import time

import pytest

from tests.systemd.machine import Machine

pytestmark = [pytest.mark.root, pytest.mark.systemd, pytest.mark.slow, pytest.mark.timeout(200)]

LEFT = """
ls -d /opt/buoy /etc/buoy /run/buoy /run/docker.sock /var/lib/buoy/* 2>/dev/null
ls /etc/systemd/system /etc/systemd/system/*.wants | grep -E 'buoy|dockerd-api|containerd-svc|shim-svc'
systemctl list-units --all --plain --no-legend |
  grep -E 'buoy|dockerd-api|containerd-svc|shim-svc' | grep -v 'var-lib-buoy.mount'
grep -E '/run/buoy|/var/lib/buoy/' /proc/self/mountinfo
nft list tables | grep -w buoy
ip -o link | grep -E 'docker0|veth.*@if'
find /sys/fs/cgroup -name '*buoy-containers*'
getent group docker
ps -eo pid,args | grep -E 'shim-svc|dockerd-api|containerd-svc|buoy-containers|sleep 12345' | grep -v grep
true
"""


def test_uninstall_leaves_containers_and_purge_leaves_nothing(machine: Machine) -> None:
    id = machine.out(
        "docker", "run", "-d", "--restart", "always", "-p", "8081:80", "busybox", "sleep", "12345"
    )
    pid = machine.out("docker", "inspect", "-f", "{{.State.Pid}}", id)
    machine.run("make", "-C", "/source", "uninstall")
    machine.run("kill", "-0", pid)
    assert machine.run("docker", "version", check=False).returncode != 0

    machine.run("make", "-C", "/source", "install", "WHEELS=/wheels", timeout=200)
    assert machine.out("docker", "inspect", "-f", "{{.State.Pid}}", id) == pid
    machine.run("docker", "exec", id, "true")

    machine.run("make", "-C", "/source", "uninstall", "PURGE=1")
    # The service manager learns of an unmount a moment later.
    deadline = time.monotonic() + 5
    while left := machine.out("sh", "-c", LEFT):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)

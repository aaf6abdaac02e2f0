"""One booted machine with the engine installed, shared by all tests of this level."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.systemd.machine import Machine


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    made = Machine()
    try:
        made.make()
        made.boot()
        # A second address of the machine, so that ports are also asked for from outside loopback.
        made.run("ip", "link", "add", "outside0", "type", "veth", "peer", "name", "outside1")
        made.run("ip", "address", "add", "10.9.8.7/24", "dev", "outside0")
        made.run("ip", "link", "set", "outside0", "up")
        made.run("mkdir", "-p", "/var/log/journal")
        made.run("systemctl", "restart", "systemd-journald")
        made.run("make", "-C", "/source", "install", "WHEELS=/wheels")
        made.run(
            *("/opt/buoy/current/bin/python", "-m", "launcher.busybox_image", "--rootfs", "/root/busybox.tar")
        )
        made.run("docker", "import", "/root/busybox.tar", "busybox")
        yield made
    finally:
        made.close()

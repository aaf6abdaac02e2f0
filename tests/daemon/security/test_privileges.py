"""What an ordinary container may not do, though the kernel would let root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.daemon.security.images import PYTHON, WITH_PYTHON
from tests.support.engine import Engine

pytestmark = pytest.mark.root

NAMESPACES = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
NEWNS, NEWCGROUP, NEWUSER = 0x20000, 0x2000000, 0x10000000

def attempt(what, result):
    print(what, "done" if result >= 0 else errno.errorcode[ctypes.get_errno()])

attempt("userns", libc.unshare(NEWUSER | NEWNS | NEWCGROUP))
attempt("cgroupns", libc.unshare(NEWCGROUP))
attempt("clone3", libc.syscall(435, None, 0))
os.mkdir("/m")
for kind in (b"cgroup", b"cgroup2", b"tmpfs"):
    options = b"rdma" if kind == b"cgroup" else None
    attempt("mount", libc.mount(b"none", b"/m", kind, 0, options))
for folder, _, names in os.walk("/sys/fs/cgroup"):
    for name in {"release_agent", "notify_on_release", "cgroup.procs"} & set(names):
        try:
            os.close(os.open(f"{folder}/{name}", os.O_WRONLY))
            print("writable", folder, name)
        except OSError:
            pass
"""


def test_no_way_to_a_release_agent(engine: Engine) -> None:
    """CVE-2022-0492."""
    lines = engine.out("run", "--rm", *WITH_PYTHON, "busybox", PYTHON, "-c", NAMESPACES).splitlines()
    assert lines == [
        "userns EPERM", "cgroupns EPERM", "clone3 ENOSYS", "mount EPERM", "mount EPERM", "mount EPERM",
    ]  # fmt: skip
    script = "mount -t tmpfs x /sys/fs/cgroup; unshare -Urm true; nsenter -t 1 -m true; true"
    assert "mounted" not in engine.out("run", "--rm", "busybox", "sh", "-c", script)


@pytest.mark.parametrize(
    "options", [(), ("--cap-add", "NET_ADMIN"), ("--cap-add", "ALL"), ("--privileged",), ("-u", "1000")]
)
def test_no_inheritable_capabilities(engine: Engine, options: tuple[str, ...]) -> None:
    """CVE-2022-24769, CVE-2022-29162: a file with inheritable capabilities would give them to an ordinary
    user.
    """
    container = engine.out("run", "-d", *options, "busybox", "sleep", "60")
    for also in ((), ("--privileged",), ("-u", "1000"), ("-u", "1000", "--privileged")):
        printed = engine.out("exec", *also, container, "cat", "/proc/self/status", "/proc/1/status")
        found = [line.split()[1] for line in printed.splitlines() if line.startswith("CapInh")]
        assert found == ["0000000000000000"] * 2


def test_the_primary_group_is_one_of_the_groups(engine: Engine) -> None:
    """CVE-2022-36109, CVE-2023-25173: who sheds the primary group would else lose what it forbids."""
    script = "echo secret > /file; chown 0:1001 /file; chmod 604 /file; exec sleep 60"
    container = engine.out("run", "-d", "--group-add", "77", "-u", "1000:1001", "--name", "g", "busybox",
                           "grep", "^Groups", "/proc/self/status")  # fmt: skip
    engine.out("wait", container)
    assert engine.out("logs", container).split() == ["Groups:", "77", "1001"]
    other = engine.out("run", "-d", "busybox", "sh", "-c", script)
    groups = engine.out("exec", "-u", "1000:1001", other, "grep", "^Groups", "/proc/self/status")
    assert groups.split() == ["Groups:", "1001"]
    engine.until("the file", lambda: engine.out("exec", other, "ls", "-l", "/file").startswith("-rw----r--"))
    assert engine.docker("exec", "-u", "1000:1001", other, "cat", "/file").returncode == 1
    assert engine.out("exec", "-u", "1000:1002", other, "cat", "/file") == "secret"


SOCKETS = """
import errno, socket
from socket import AF_ALG, AF_INET, AF_UNIX, AF_VSOCK, SOCK_SEQPACKET, SOCK_STREAM
for family, kind in ((AF_ALG, SOCK_SEQPACKET), (AF_VSOCK, SOCK_STREAM), (AF_INET, SOCK_STREAM),
                     (AF_UNIX, SOCK_STREAM)):
    try:
        socket.socket(family, kind).close()
        print("made")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


def test_no_sockets_of_rarely_tested_families(engine: Engine) -> None:
    """CVE-2026-31431."""
    command = ("busybox", PYTHON, "-c", SOCKETS)
    plain = engine.out("run", "--rm", *WITH_PYTHON, *command).split()
    assert plain == ["EPERM", "EPERM", "made", "made"]
    privileged = engine.out("run", "--rm", "--privileged", *WITH_PYTHON, *command).split()
    assert "EPERM" not in privileged


def test_readings_that_tell_of_neighbours_are_masked(engine: Engine) -> None:
    """GO-2023-2412 (energy) and the likes of it."""
    paths = [
        path
        for path in (
            *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/scsi"),
            *("/proc/latency_stats", "/proc/sched_debug", "/proc/timer_list", "/proc/timer_stats"),
            *("/sys/devices/virtual/powercap", "/sys/firmware"),
            *map(str, Path("/sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle")),
        )
        if os.path.exists(path)
    ]
    assert paths
    printed = engine.out("run", "--rm", "busybox", "cat", "/proc/self/mountinfo")
    mounted = {line.split()[4]: line.split(" - ")[1].split()[0] for line in printed.splitlines()}
    for path in paths:
        assert mounted[path] == "tmpfs"
    script = "; ".join(f"cat {path} 2>&1; ls {path}" for path in paths)
    printed = engine.out("run", "--rm", "busybox", "sh", "-c", script)
    assert {line for line in printed.splitlines() if not line.startswith(("cat: ", "/proc/"))} == set()


@pytest.mark.parametrize(
    "sysctl",
    [
        {"net.ipv4.ip_forward": "1\nkernel.panic=1"},
        {"net.ipv4.ip_forward=0+kernel.panic": "7"},
        {"net.ipv4.ip_forward\nkernel.panic": "7"},
        {"net/../kernel/panic": "7"},
        {"net..kernel.panic": "7"},
        {"net.ipv4.ip_forward kernel.panic": "7"},
        {"kernel.shmmax+kernel.panic": "7"},
        {"": "7"},
    ],
)
def test_a_sysctl_sets_what_it_names(engine: Engine, sysctl: dict[str, str]) -> None:
    """CVE-2022-0811, CVE-2024-3154."""
    panic = Path("/proc/sys/kernel/panic").read_text()
    with engine.http() as http:
        document = {"Image": "busybox", "Cmd": ["true"], "HostConfig": {"Sysctls": sysctl}}
        reply = http.post("/containers/create", json=document)
        assert reply.status_code == 400
        assert "invalid sysctl" in reply.json()["message"]
    assert Path("/proc/sys/kernel/panic").read_text() == panic


@pytest.mark.parametrize("name", ["kernel.panic", "kernel.core_pattern", "vm.swappiness", "fs.file-max"])
def test_a_sysctl_of_the_host_is_refused(engine: Engine, name: str) -> None:
    before = Path("/proc/sys", name.replace(".", "/")).read_text()
    with engine.http() as http:
        document = {"Image": "busybox", "Cmd": ["true"], "HostConfig": {"Sysctls": {name: "7"}}}
        container = http.post("/containers/create", json=document).json()["Id"]
        reply = http.post(f"/containers/{container}/start")
        assert reply.status_code >= 400
        assert "not in a separate kernel namespace" in reply.json()["message"]
    assert Path("/proc/sys", name.replace(".", "/")).read_text() == before


def test_annotations_are_no_orders_to_the_service_manager(engine: Engine) -> None:
    """CVE-2024-3154: runc turned them into properties of the container's unit."""
    options = ("--annotation", "org.systemd.property.SuccessAction='poweroff'")
    assert engine.out("run", "--rm", *options, "busybox", "echo", "here") == "here"

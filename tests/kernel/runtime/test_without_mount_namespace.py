"""Containers that share the host's mount namespace: their mounts are the host's while they are there."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from linux import mounts as m
from linux import syscalls

from tests.kernel.runtime.bundle import Bundle, is_gone, namespace, wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def shared(bundle: Bundle) -> Bundle:
    """A bundle without a mount namespace."""
    kinds = [item for item in bundle.linux["namespaces"] if item["type"] != "mount"]
    bundle.linux.update(namespaces=kinds, maskedPaths=[], readonlyPaths=[])
    return bundle


def mounted(bundle: Bundle) -> list[str]:
    """What is mounted on the host below the bundle, but for the runtime's own interpreter."""
    found = [point.target for point in m.mount_table() if point.target.startswith(str(bundle.folder))]
    return [target for target in found if "@python" not in target]


def test_it_has_its_root_and_its_mounts(shared: Bundle) -> None:
    propagation = [(p.target, p.fields) for p in m.mount_table() if p.target == "/"]
    script = "cat /proc/1/comm; ls /dev/null /dev/shm/../pts/ptmx; readlink /proc/self/ns/mnt; touch /x; ls /"
    done = shared.run("sh", "-c", script, check=False)
    lines = done.stdout.splitlines()
    assert lines[:4] == ["sh", "/dev/null", "/dev/shm/../pts/ptmx", namespace("self", "mnt")]
    assert lines[4:] == ["bin", "dev", "etc", "proc", "sys"]
    assert "Read-only file system" in done.stderr
    assert mounted(shared) == []
    assert sorted(os.listdir(shared.rootfs / "dev")) == []
    assert [(p.target, p.fields) for p in m.mount_table() if p.target == "/"] == propagation


def test_its_mounts_go_with_it(shared: Bundle) -> None:
    container_id, pid = shared.start("sleep", "60")
    place = shared.root / container_id / "rootfs"
    assert {f"{place}/proc", f"{place}/dev/shm", str(place)} <= set(mounted(shared))
    assert os.path.samefile(f"/proc/{pid}/root", place)
    done = shared.call("exec", container_id, "sh", "-c", "pwd; ls /; readlink /proc/self/ns/mnt")
    assert done.stdout.split() == ["/", "bin", "dev", "etc", "proc", "sys", namespace("self", "mnt")]
    shared.call("kill", container_id, "KILL")
    wait_until(lambda: is_gone(pid))
    assert mounted(shared) != []
    shared.call("delete", container_id)
    assert mounted(shared) == []
    assert (shared.rootfs / "bin/busybox").exists()


def test_a_failed_creation_leaves_no_mount(shared: Bundle) -> None:
    assert "executable file not found" in shared.run("nosuch", check=False).stderr
    assert mounted(shared) == []
    assert shared.call("list", "-q").stdout == ""


def test_on_shared_mounts_nothing_spreads(shared: Bundle, tmp_path: Path) -> None:
    """The records lie on a shared mount, as below /run: another mount namespace sees none of the mounts in
    the root, and after the removal nothing at all.
    """
    syscalls.mount(str(tmp_path), str(tmp_path), "", m.MS_BIND)
    syscalls.mount("", str(tmp_path), "", m.MS_SHARED)
    words = ["unshare", "-m", "--propagation", "unchanged", "sleep", "60"]
    with subprocess.Popen(words) as other:
        try:
            wait_until(lambda: namespace(other.pid, "mnt") != namespace("self", "mnt"))
            container_id, _ = shared.start("sleep", "60")
            place = f"{shared.root}/{container_id}/rootfs"
            seen = {point.target for point in m.mount_table(other.pid)}
            assert place in seen
            assert f"{place}/proc" not in seen
            shared.call("delete", "--force", container_id)
            assert place not in {point.target for point in m.mount_table(other.pid)}
        finally:
            other.kill()
    syscalls.umount2(str(tmp_path), m.MNT_DETACH)


@pytest.mark.crash
@pytest.mark.parametrize("point", ["runc.create.cgroup-made", "runc.create.ready"])
def test_a_killed_creation_can_be_removed(shared: Bundle, point: str) -> None:
    shared.process["args"] = ["sleep", "60"]
    container_id = shared.new_id()
    null = subprocess.DEVNULL
    done = subprocess.run(
        shared.command("create", container_id),
        stdin=null,
        stdout=null,
        stderr=null,
        cwd=shared.folder,
        env={**os.environ, "BUOY_CRASH_AT": point},
        timeout=30,
    )
    assert done.returncode == -signal.SIGKILL
    assert (shared.root / container_id / "rootfs").is_dir()
    shared.call("delete", "--force", container_id)
    assert mounted(shared) == []
    assert not (shared.root / container_id).exists()

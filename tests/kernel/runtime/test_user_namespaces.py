"""User namespaces: made with mappings or joined by path, alone or with other namespaces."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel.runtime.bundle import Bundle, namespace

pytestmark = pytest.mark.root

FIRST = 200000  # of the ids outside
SIZE = 1001
MAPPINGS = [{"containerID": 0, "hostID": FIRST, "size": SIZE}]
KINDS = ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup")


@pytest.fixture
def mapped(bundle: Bundle) -> Bundle:
    """A bundle whose container has a user namespace, and a root that its root owns."""
    bundle.linux["namespaces"].append({"type": "user"})
    bundle.linux["uidMappings"] = bundle.linux["gidMappings"] = MAPPINGS
    os.chown(bundle.rootfs, FIRST, FIRST)
    return bundle


@contextmanager
def holder(*flags: str) -> Iterator[int]:
    """The pid of a process in new namespaces."""
    words = ["unshare", *flags, "sh", "-c", "echo; exec sleep 100"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def set_path(bundle: Bundle, kind: str, path: str) -> None:
    namespaces = bundle.linux["namespaces"]
    namespaces[:] = [item for item in namespaces if item["type"] != kind]
    namespaces.append({"type": kind, "path": path})


def without_sys(bundle: Bundle) -> None:
    """Nobody may mount sysfs who does not own the network namespace."""
    bundle.spec["mounts"] = [m for m in bundle.spec["mounts"] if not m["destination"].startswith("/sys")]


def test_ids_are_mapped_and_all_namespaces_belong_to_it(mapped: Bundle) -> None:
    capabilities = ("CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_CHOWN")
    mapped.process["capabilities"] = {
        kind: list(capabilities) for kind in ("bounding", "effective", "permitted")
    }
    script = (
        "cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; grep Groups /proc/self/status;"
        "hostname changed && hostname; ip link set lo up && ip link show lo | head -n1;"
        "touch /dev/shm/f && stat -c %u:%g /dev/shm/f /dev/mqueue; stat -c %t:%T /dev/null;"
        "mount -t tmpfs none /dev/shm && echo mounted"
    )
    lines = mapped.run("sh", "-c", script).stdout.splitlines()
    assert [line.split() for line in lines[:2]] == [["0", str(FIRST), str(SIZE)]] * 2
    assert lines[2:5] == ["allow", "Groups:\t ", "changed"]
    assert "LOOPBACK,UP" in lines[5]
    assert lines[6:] == ["0:0", "0:0", "1:3", "mounted"]


def test_the_process_outside(mapped: Bundle) -> None:
    mapped.process["user"] = {"uid": 1000, "gid": 7, "additionalGids": [8, 9]}
    mapped.process["oomScoreAdj"] = 321
    _, pid = mapped.start("sleep", "60")
    status = (Path("/proc") / str(pid) / "status").read_text()
    assert re.search(rf"^Uid:\t{FIRST + 1000}\t{FIRST + 1000}\t", status, re.MULTILINE)
    assert re.search(rf"^Gid:\t{FIRST + 7}\t", status, re.MULTILINE)
    assert re.search(rf"^Groups:\t{FIRST + 8} {FIRST + 9} $", status, re.MULTILINE)
    assert (Path("/proc") / str(pid) / "oom_score_adj").read_text() == "321\n"
    for kind in KINDS:
        assert namespace(pid, kind) != namespace("self", kind)


def test_an_exec_is_in_it_too(mapped: Bundle) -> None:
    container_id, pid = mapped.start("sleep", "60")
    script = (
        "id -u; id -G; for kind in user mnt net ipc uts cgroup pid; do readlink /proc/self/ns/$kind; done"
    )
    done = mapped.call("exec", "-u", "12:13", "-g", "14", container_id, "sh", "-c", script)
    assert done.stdout.splitlines()[:2] == ["12", "13 14"]
    kinds = ("user", "mnt", "net", "ipc", "uts", "cgroup", "pid")
    assert done.stdout.splitlines()[2:] == [namespace(pid, kind) for kind in kinds]
    done = mapped.call("exec", "-u", str(SIZE), container_id, "true", check=False)
    assert f"cannot setuid to unmapped uid {SIZE} in user namespace" in done.stderr


def test_streams_that_are_pipes_can_be_opened_again(mapped: Bundle) -> None:
    mapped.process["user"] = {"uid": 5, "gid": 5}
    done = mapped.run("sh", "-c", "echo out > /dev/stdout; echo err > /dev/stderr")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    container_id, _ = mapped.start("sleep", "60")
    done = mapped.call("exec", "-u", "6", container_id, "sh", "-c", "echo out > /dev/stdout")
    assert done.stdout == "out\n"


def test_a_terminal(mapped: Bundle) -> None:
    mapped.process["terminal"] = True
    mapped.process["user"] = {"uid": 5, "gid": 5}
    done = mapped.run("sh", "-c", "tty; stat -c %u $(tty); echo again > /dev/tty")
    assert done.stdout.split() == ["/dev/pts/0", "5", "again"]


def test_what_root_alone_may_reach_can_be_bound(mapped: Bundle, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(0o700)
    (closed / "file").write_text("bound")
    (closed / "file").chmod(0o644)
    (mapped.rootfs / "mnt").touch()
    mapped.spec["mounts"].append(
        {"destination": "/mnt", "type": "bind", "source": str(closed / "file"), "options": ["bind", "ro"]}
    )
    assert mapped.run("cat", "/mnt").stdout == "bound"


def test_a_sysctl_of_the_namespace(mapped: Bundle) -> None:
    mapped.linux["sysctl"] = {"user.max_user_namespaces": "7"}
    before = Path("/proc/sys/user/max_user_namespaces").read_text()
    assert mapped.run("cat", "/proc/sys/user/max_user_namespaces").stdout == "7\n"
    assert Path("/proc/sys/user/max_user_namespaces").read_text() == before


def test_hooks_and_both_sides(mapped: Bundle, tmp_path: Path) -> None:
    """createRuntime runs outside, createContainer inside the user namespace; both see the host's files."""
    script = f"read -r line < /proc/self/uid_map; echo $line >> {tmp_path}/hooks"
    for kind in ("createRuntime", "createContainer"):
        mapped.spec.setdefault("hooks", {})[kind] = [{"path": "/bin/sh", "args": ["sh", "-c", script]}]
    tmp_path.chmod(0o711)
    tmp_path.parent.chmod(0o711)
    tmp_path.parent.parent.chmod(0o711)
    (tmp_path / "hooks").touch()
    (tmp_path / "hooks").chmod(0o666)
    mapped.run("true")
    lines = [line.split() for line in (tmp_path / "hooks").read_text().splitlines()]
    assert lines == [["0", "0", "4294967295"], ["0", str(FIRST), str(SIZE)]]


@pytest.mark.parametrize("given", [False, True])
def test_another_s_user_namespace_is_joined(mapped: Bundle, given: bool) -> None:
    _, pid = mapped.start("sleep", "60")
    mapped.linux["cgroupsPath"] += "2"
    set_path(mapped, "user", f"/proc/{pid}/ns/user")
    set_path(mapped, "network", f"/proc/{pid}/ns/net")
    if not given:
        del mapped.linux["uidMappings"], mapped.linux["gidMappings"]
    other_id, other = mapped.start("sleep", "60")
    for kind in KINDS:
        assert (namespace(other, kind) == namespace(pid, kind)) is (kind in ("user", "net"))
    assert (Path("/proc") / str(other)).stat().st_uid == FIRST
    script = "cat /proc/self/uid_map; stat -c %u /dev/mqueue; readlink /proc/self/ns/pid"
    done = mapped.call("exec", other_id, "sh", "-c", script)
    assert done.stdout.split() == ["0", str(FIRST), str(SIZE), "0", namespace(other, "pid")]


def test_a_mapping_that_the_joined_one_does_not_have(mapped: Bundle) -> None:
    _, pid = mapped.start("sleep", "60")
    set_path(mapped, "user", f"/proc/{pid}/ns/user")
    mapped.linux["uidMappings"] = [{"containerID": 0, "hostID": FIRST, "size": SIZE - 1}]
    done = mapped.run("true", check=False)
    assert "both namespace path and non-matching mapping specified" in done.stderr
    set_path(mapped, "user", f"/proc/{pid}/ns/net")
    assert "failed to cache mappings for userns" in mapped.run("true", check=False).stderr


def test_the_host_s_namespaces_beside_a_new_user_namespace(mapped: Bundle) -> None:
    """They are joined by the rights that end with the change of user namespace."""
    without_sys(mapped)
    with holder("-n", "-i", "-u") as pid:
        for kind, name in (("network", "net"), ("ipc", "ipc"), ("uts", "uts")):
            set_path(mapped, kind, f"/proc/{pid}/ns/{name}")
        mapped.spec["hostname"] = ""
        mapped.spec["mounts"] = [m for m in mapped.spec["mounts"] if m["type"] != "mqueue"]
        container_id, inside = mapped.start("sleep", "60")
        for kind in KINDS:
            assert (namespace(inside, kind) == namespace(pid, kind)) is (kind in ("net", "ipc", "uts"))
        done = mapped.call("exec", container_id, "readlink", "/proc/self/ns/net")
        assert done.stdout.strip() == namespace(pid, "net")


def test_a_pid_namespace_beside_a_new_user_namespace(mapped: Bundle) -> None:
    """Only children join a pid namespace; a user namespace may show no procfs of one that is not its own."""
    with holder("-f", "-p", "--kill-child") as pid:
        child = int((Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text())
        set_path(mapped, "pid", f"/proc/{child}/ns/pid")
        done = mapped.run("true", check=False)
        assert 'error mounting \\"proc\\" to rootfs at \\"/proc\\"' in done.stderr
        mapped.spec["mounts"] = [m for m in mapped.spec["mounts"] if m["type"] != "proc"]
        mapped.linux["maskedPaths"] = mapped.linux["readonlyPaths"] = []
        _, inside = mapped.start("sleep", "60")
        assert namespace(inside, "pid") == namespace(child, "pid")
        assert namespace(inside, "user") != namespace(child, "user")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"uidMappings": [], "gidMappings": []}, "no namespace path to join nor mappings to apply specified"),
        ({"gidMappings": []}, "user namespaces enabled, but no gid mappings found"),
        ({"uidMappings": [{"containerID": 1, "hostID": 5, "size": 9}]}, "no mapping found for uid 0"),
        ({"uidMappings": [*MAPPINGS, {"containerID": 9, "hostID": 5, "size": 1}]}, "ranges overlap at 9"),
        ({"gidMappings": [{"containerID": 0, "hostID": 2**32 - 2, "size": 2}]}, "beyond the largest id"),
        ({"gidMappings": [{"containerID": 0, "hostID": 1, "size": 0}]}, "linux.gidMappings.size must be"),
        ({"uidMappings": [{"containerID": i, "hostID": i, "size": 1} for i in range(341)]}, "more than 340"),
    ],
)
def test_mappings_that_cannot_be(mapped: Bundle, change: dict[str, object], text: str) -> None:
    mapped.linux.update(change)
    done = mapped.run("true", check=False)
    assert done.returncode == 1
    assert text in done.stderr
    assert not list(mapped.root.glob("t-*"))


def test_who_is_not_mapped(mapped: Bundle) -> None:
    for user, text in (
        ({"uid": SIZE, "gid": 0}, f"cannot setuid to unmapped uid {SIZE}"),
        ({"uid": 0, "gid": SIZE}, f"cannot setgid to unmapped gid {SIZE}"),
        ({"uid": 0, "gid": 0, "additionalGids": [SIZE]}, f"cannot setgid to unmapped gid {SIZE}"),
    ):
        mapped.process["user"] = user
        assert text in mapped.run("true", check=False).stderr
    mapped.process["user"] = {"uid": 0, "gid": 0}
    mapped.spec["mounts"][2]["options"] = ["gid=2000"]
    assert "cannot specify gid=2000 mount option (/dev/pts)" in mapped.run("true", check=False).stderr
    assert not list(mapped.root.glob("t-*"))


def test_mappings_want_a_user_namespace(bundle: Bundle) -> None:
    bundle.linux["uidMappings"] = MAPPINGS
    done = bundle.run("true", check=False)
    assert "mappings specified, but user namespace isn't enabled in the config" in done.stderr
    del bundle.linux["uidMappings"]
    bundle.linux["sysctl"] = {"user.max_user_namespaces": "7"}
    done = bundle.run("true", check=False)
    assert "setting ucounts without a user namespace not allowed" in done.stderr


def test_nobody_inside_looks_into_a_process_on_its_way(mapped: Bundle) -> None:
    """A created container's init, and so the host's memory in it, is closed even to a tracer in there."""
    every = {kind: ["CAP_SYS_PTRACE", "CAP_SYS_ADMIN"] for kind in ("bounding", "effective", "permitted")}
    mapped.process["capabilities"] = every
    mapped.process["args"] = ["sleep", "60"]
    container_id = mapped.new_id()
    null = subprocess.DEVNULL
    words = mapped.command("create", container_id)
    assert subprocess.run(words, stdin=null, stdout=null, stderr=null, cwd=mapped.folder).returncode == 0
    looks = ("cat /proc/1/environ", "readlink /proc/1/exe", "ls /proc/1/fd")
    script = "; ".join(f"{look} || echo closed" for look in looks)
    done = mapped.call("exec", container_id, "sh", "-c", script)
    assert done.stdout.split() == ["closed"] * 3
    mapped.call("start", container_id)
    done = mapped.call("exec", container_id, "readlink", "/proc/1/exe")
    assert done.stdout == "/bin/busybox\n"

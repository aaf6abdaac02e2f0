"""Containers of an ordinary user, who makes and uses them without root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runc_bin.libcontainer.cgroups import hierarchy

from tests.kernel.runtime.bundle import is_gone, namespace, wait_until
from tests.kernel.runtime.home import USER, Home, a_home, forbidden
from tests.kernel.runtime.seccomp_agent import Agent

FIRST, COUNT = 300000, 5000  # of the ids that the user may map


@pytest.fixture(autouse=True)
def _allowed() -> None:
    if os.geteuid() == 0 and forbidden():
        pytest.skip(f"no user namespaces for ordinary users: {forbidden()}")


pytestmark = pytest.mark.root


@pytest.fixture
def home() -> Iterator[Home]:
    with a_home() as made:
        yield made


def test_run_by_an_ordinary_user(home: Home) -> None:
    shown = "/proc/self/uid_map /proc/self/gid_map /proc/self/setgroups"
    script = f"id; cat {shown}; readlink /proc/self/ns/net; exit 7"
    done = home.run("sh", "-c", script, check=False)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (7, "")
    assert lines[0] == "uid=0 gid=0"
    assert [line.split() for line in lines[1:3]] == [["0", str(USER), "1"]] * 2
    assert lines[3:] == ["deny", namespace("self", "net")]
    folder = home.run_dir / "buoy-runc"
    info = folder.stat()
    assert (info.st_uid, info.st_mode & 0o7777) == (USER, 0o1700)
    assert home.records() == []


def test_the_life_of_a_container(home: Home) -> None:
    container_id, null = (
        home.prepare("sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.05; done"),
        subprocess.DEVNULL,
    )
    home.call("create", container_id, stdout=null, stderr=null)
    state = json.loads(home.call("state", container_id).stdout)
    assert state["status"] == "created"
    pid = state["pid"]
    assert home.call("exec", container_id, "id", "-u").stdout == "0\n"
    home.call("start", container_id)
    (found,) = json.loads(home.call("list", "-f", "json").stdout)
    assert (found["id"], found["pid"], found["status"]) == (container_id, pid, "running")
    assert home.call("exec", container_id, "id", "-u").stdout == "0\n"
    done = home.call("exec", container_id, "readlink", "/proc/self/ns/mnt")
    assert done.stdout.strip() == namespace(pid, "mnt")
    assert home.call("exec", container_id, "sh", "-c", "exit 5", check=False).returncode == 5
    assert pid in json.loads(home.call("ps", "-f", "json", container_id).stdout)
    assert str(pid) in home.call("ps", container_id).stdout
    home.call("kill", container_id, "TERM")
    wait_until(lambda: is_gone(pid))
    assert json.loads(home.call("state", container_id).stdout)["status"] == "stopped"
    home.call("delete", container_id)
    assert home.records() == []


def test_delete_ends_all_of_it(home: Home) -> None:
    home.spec["linux"]["namespaces"] = [n for n in home.spec["linux"]["namespaces"] if n["type"] != "pid"]
    home.spec["mounts"] = [m for m in home.spec["mounts"] if m["type"] != "proc"]
    home.spec["mounts"].append(
        {"destination": "/proc", "type": "none", "source": "/proc", "options": ["rbind", "nosuid", "nodev"]}
    )
    container_id, pid = home.start("sh", "-c", "sleep 61 & sleep 62 & wait")
    wait_until(lambda: len(json.loads(home.call("ps", "-f", "json", container_id).stdout)) == 3)
    pids = json.loads(home.call("ps", "-f", "json", container_id).stdout)
    home.call("delete", "--force", container_id)
    wait_until(lambda: all(is_gone(one) for one in [pid, *pids]))


def test_what_wants_a_cgroup_is_refused(home: Home) -> None:
    container_id, _ = home.start("sleep", "60")
    for words in (("pause",), ("update", "--pids-limit", "9"), ("events", "--stats")):
        done = home.call(*words, container_id, check=False)
        assert done.returncode == 1
        assert "cgroup" in done.stderr
    home.spec["linux"]["resources"] = {"pids": {"limit": 10}}
    done = home.run("true", check=False)
    assert "cannot set pids limit: container could not join or create cgroup" in done.stderr
    home.spec["linux"]["resources"] = {}
    home.spec["linux"]["cgroupsPath"] = "/not-mine"
    assert "permission denied" in home.run("true", check=False).stderr
    del home.spec["linux"]["cgroupsPath"]
    home.prepare("true")
    assert "permission denied" in home.call("--rootless=false", "run", home.ids[-1], check=False).stderr
    assert home.records() == [container_id]


def test_no_control_group_of_the_host_can_be_written(home: Home) -> None:
    """CVE-2023-25809, with the host's cgroup namespace and with one of its own."""
    script = (
        "for f in /sys/fs/cgroup/* /sys/fs/cgroup/*/*; do"
        "  [ -f $f ] && (echo 1 > $f) 2>/dev/null && echo $f;"
        "  [ -d $f ] && touch $f/x 2>/dev/null && echo $f;"
        "done; true"
    )
    for _ in range(2):
        assert home.run("sh", "-c", script).stdout == ""
        kinds = home.spec["linux"]["namespaces"]
        home.spec["linux"]["namespaces"] = [item for item in kinds if item["type"] != "cgroup"]


@pytest.mark.skipif(hierarchy.unified(), reason="a host with cgroup v1")
def test_hierarchies_that_are_not_its_own_are_empty_folders_to_mount_on(home: Home) -> None:
    """As `podman run --systemd` wants it: a mount of its own below a cgroup mount that is read-only."""
    home.spec["linux"]["namespaces"] = [
        item for item in home.spec["linux"]["namespaces"] if item["type"] != "cgroup"
    ]
    home.spec["mounts"] += [
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"]},
        {"destination": "/sys/fs/cgroup/memory", "type": "tmpfs", "source": "tmpfs"},
    ]
    script = "ls /sys/fs/cgroup/pids; : >/sys/fs/cgroup/memory/mine && echo made"
    assert home.run("sh", "-c", script).stdout == "made\n"


def test_a_terminal_and_a_created_container_s_streams(home: Home) -> None:
    home.spec["process"]["terminal"] = True
    assert home.run("sh", "-c", "tty").stdout.strip() == "/dev/pts/0"


def test_time_offsets(home: Home) -> None:
    if not os.path.exists("/proc/self/timens_offsets"):
        pytest.skip("the kernel has no time namespaces")
    home.spec["linux"]["namespaces"].append({"type": "time"})
    home.spec["linux"]["timeOffsets"] = {"boottime": {"secs": 100000}}
    assert "100000" in home.run("cat", "/proc/self/timens_offsets").stdout


def test_a_user_namespace_that_the_user_has_made_is_joined(home: Home) -> None:
    _, pid = home.start("sleep", "60")
    for item in home.spec["linux"]["namespaces"]:
        if item["type"] in ("user", "ipc"):
            item["path"] = f"/proc/{pid}/ns/{item['type']}"
    container_id, other = home.start("sleep", "60")
    for kind in ("user", "ipc", "pid", "mnt", "uts"):
        assert (namespace(other, kind) == namespace(pid, kind)) is (kind in ("user", "ipc"))
    assert home.call("exec", container_id, "id", "-u").stdout == "0\n"


@pytest.mark.parametrize(
    ("process", "text"),
    [
        ({"user": {"uid": 0, "gid": 0, "additionalGids": [0]}}, "cannot set any additional groups"),
        ({"user": {"uid": 1, "gid": 0}}, "cannot setuid to unmapped uid 1 in user namespace"),
        ({"oomScoreAdj": -500}, "oom_score_adj: permission denied"),
    ],
)
def test_what_an_ordinary_user_may_not(home: Home, process: dict[str, Any], text: str) -> None:
    home.spec["process"].update(process)
    done = home.run("true", check=False)
    assert done.returncode == 1
    assert text in done.stderr
    assert home.records() == []


def test_it_needs_a_user_namespace_of_its_own_ids(home: Home) -> None:
    home.spec["linux"]["gidMappings"][0]["hostID"] = 0
    done = home.run("true", check=False)
    assert "gid_map" in done.stderr or "newgidmap" in done.stderr
    for kind in ("uidMappings", "gidMappings"):
        del home.spec["linux"][kind]
    kinds = home.spec["linux"]["namespaces"]
    home.spec["linux"]["namespaces"] = [item for item in kinds if item["type"] != "user"]
    assert "rootless container requires user namespaces" in home.run("true", check=False).stderr
    assert home.records() == []


def test_root_takes_no_group_of_its_own_along(home: Home) -> None:
    """The user namespace forbids setgroups(2), so root's groups must be left before it is entered."""
    container_id, _ = home.start("sleep", "60")
    words = (
        "--root",
        str(home.run_dir / "buoy-runc"),
        "exec",
        container_id,
        "grep",
        "Groups",
        "/proc/self/status",
    )
    done = home.call(*words, user=0, group=0, extra_groups=[0, 4242])
    assert done.stdout.split() == ["Groups:"]


@pytest.mark.parametrize("again", [False, True])
def test_root_of_a_user_namespace_only(home: Home, again: bool) -> None:
    """As podman runs a runtime: inside its user namespace, where a container may have one more or none."""
    home.wrapper = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "unshare", "-Ur"]
    linux = home.spec["linux"]
    if again:
        linux["uidMappings"][0]["hostID"] = linux["gidMappings"][0]["hostID"] = 0
    else:
        del linux["uidMappings"], linux["gidMappings"]
        linux["namespaces"] = [item for item in linux["namespaces"] if item["type"] != "user"]
    done = home.run("sh", "-c", "id; cat /proc/self/uid_map")
    first = 0 if again else USER
    assert done.stdout.split() == ["uid=0", "gid=0", "0", str(first), "1"]
    assert home.records() == []


@pytest.fixture
def subids(home: Home) -> Home:
    """The user has a name and ids to map, in a mount namespace of the test's own."""
    if shutil.which("newuidmap") is None:
        pytest.skip("newuidmap is not installed")
    lines = {
        "passwd": Path("/etc/passwd").read_text() + f"sailor:x:{USER}:{USER}::/:/bin/sh\n",
        "subuid": f"sailor:{FIRST}:{COUNT}\n",
        "subgid": f"sailor:{FIRST}:{COUNT}\n",
    }
    mounts = []
    for name, text in lines.items():
        (home.folder / name).write_text(text)
        Path("/etc", name).touch()
        mounts.append(f"mount --bind {home.folder / name} /etc/{name}")
    script = f'{" && ".join(mounts)} && exec setpriv --reuid {USER} --regid {USER} --clear-groups "$@"'
    home.wrapper = ["unshare", "-m", "sh", "-c", script, "sh"]
    for kind in ("uidMappings", "gidMappings"):
        home.spec["linux"][kind].append({"containerID": 1, "hostID": FIRST, "size": COUNT})
    return home


def test_ids_of_the_user_s_own_ranges(subids: Home) -> None:
    subids.spec["process"]["user"] = {"uid": 1000, "gid": 7, "additionalGids": [8]}
    container_id, pid = subids.start("sleep", "60")
    status = (Path("/proc") / str(pid) / "status").read_text()
    assert f"Uid:\t{FIRST + 999}\t" in status
    assert f"Groups:\t{FIRST + 7} " in status
    script = "id -u; id -G; cat /proc/self/setgroups"
    done = subids.call("exec", "-u", "5:6", "-g", "9", container_id, "sh", "-c", script)
    assert done.stdout.splitlines()[0] == "5"
    assert done.stdout.splitlines()[-1] == "allow"
    subids.call("kill", container_id, "KILL")
    wait_until(lambda: is_gone(pid))
    subids.call("delete", container_id)


def test_ids_that_the_user_may_not_map(subids: Home) -> None:
    subids.spec["linux"]["uidMappings"][1]["size"] += 1
    done = subids.run("true", check=False)
    assert done.returncode == 1
    assert "failed to use newuidmap on " in done.stderr
    assert "uid range" in done.stderr
    assert subids.records() == []


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_system_calls_that_an_agent_answers(home: Home, no_new_privileges: bool) -> None:
    path = home.run_dir / "agent.sock"
    agent = Agent(path)
    os.chown(path, USER, USER)
    home.spec["process"]["noNewPrivileges"] = no_new_privileges
    home.spec["linux"]["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
        "listenerPath": str(path),
    }
    try:
        container_id, pid = home.start("sleep", "60")
        done = home.call("exec", container_id, "sh", "-c", "busybox mkdir /x && echo made")
        assert done.stdout == "made\n"
        assert [state["pid"] == pid for state in agent.states] == [True, False]
        home.call("delete", "--force", container_id)
    finally:
        agent.close()

"""From create to delete, and what callers parse."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from linux.fds import receive_fds

from tests.kernel.runtime.bundle import Bundle, is_gone, namespace, wait_until

pytestmark = pytest.mark.root


def create(bundle: Bundle, *args: str, extra: tuple[str, ...] = ()) -> tuple[str, int]:
    bundle.process["args"] = list(args)
    container_id = bundle.new_id()
    words = bundle.command("create", *extra, "--pid-file", str(bundle.folder / "pid"), container_id)
    null = subprocess.DEVNULL
    done = subprocess.run(
        words, stdin=null, stdout=null, stderr=subprocess.DEVNULL, cwd=bundle.folder, timeout=30
    )
    assert done.returncode == 0
    return container_id, int((bundle.folder / "pid").read_text())


def test_create_start_kill_delete(bundle: Bundle) -> None:
    container_id, pid = create(bundle, "sleep", "60")
    state = bundle.state(container_id)
    assert (state["status"], state["pid"], state["bundle"]) == ("created", pid, str(bundle.folder))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", state["created"])
    bundle.call("start", container_id)
    assert bundle.state(container_id)["status"] == "running"
    done = bundle.call("start", container_id, check=False)
    assert "cannot start an already running container" in done.stderr
    done = bundle.call("delete", container_id, check=False)
    assert f"cannot delete container {container_id} that is not stopped: running" in done.stderr
    done = bundle.call("create", container_id, check=False)
    assert "container with given ID already exists" in done.stderr
    bundle.call("kill", container_id, "KILL")
    wait_until(lambda: is_gone(pid))
    state = bundle.state(container_id)
    assert (state["status"], state["pid"]) == ("stopped", 0)
    assert "container not running" in bundle.call("kill", container_id, "KILL", check=False).stderr
    bundle.call("kill", "--all", container_id, "KILL")
    bundle.call("delete", container_id)
    assert bundle.cgroups() == []
    assert "container does not exist" in bundle.call("delete", container_id, check=False).stderr
    bundle.call("delete", "--force", container_id)


def test_a_created_container_can_be_deleted(bundle: Bundle) -> None:
    container_id, pid = create(bundle, "sleep", "60")
    bundle.call("delete", container_id)
    assert is_gone(pid)
    assert bundle.cgroups() == []


def test_list_and_ps(bundle: Bundle) -> None:
    one, pid = create(bundle, "sleep", "60")
    found = json.loads(bundle.call("list", "-f", "json").stdout)
    assert [(item["id"], item["pid"], item["status"], item["owner"]) for item in found] == [
        (one, pid, "created", "root")
    ]
    assert bundle.call("list", "-q").stdout == f"{one}\n"
    assert bundle.call("list").stdout.splitlines()[1].split()[:3] == [one, str(pid), "created"]
    assert json.loads(bundle.call("ps", "-f", "json", one).stdout) == [pid]
    assert str(pid) in bundle.call("ps", one).stdout


def test_pause_and_resume(bundle: Bundle) -> None:
    container_id, _ = bundle.start("sleep", "60")
    bundle.call("pause", container_id)
    assert bundle.state(container_id)["status"] == "paused"
    done = bundle.call("exec", container_id, "true", check=False)
    assert "cannot exec in a paused container" in done.stderr
    assert done.returncode == 255
    bundle.call("resume", container_id)
    assert bundle.state(container_id)["status"] == "running"
    assert "container not paused" in bundle.call("resume", container_id, check=False).stderr
    bundle.call("pause", container_id)
    bundle.call("delete", "--force", container_id)


def test_kill_all_without_a_pid_namespace(bundle: Bundle) -> None:
    bundle.linux["namespaces"] = [n for n in bundle.linux["namespaces"] if n["type"] != "pid"]
    container_id, pid = bundle.start("sh", "-c", "sleep 61 & sleep 62 & wait")
    wait_until(lambda: len(json.loads(bundle.call("ps", "-f", "json", container_id).stdout)) == 3)
    pids = json.loads(bundle.call("ps", "-f", "json", container_id).stdout)
    bundle.call("kill", container_id, "KILL")
    wait_until(lambda: all(is_gone(p) for p in pids))
    assert is_gone(pid)
    bundle.call("delete", container_id)


def test_limits_and_update(bundle: Bundle) -> None:
    bundle.linux["resources"]["pids"] = {"limit": 17}
    container_id, _ = bundle.start("sleep", "60")
    group = next(p for p in bundle.cgroups() if (p / "pids.max").exists())
    assert (group / "pids.max").read_text().strip() == "17"
    bundle.call("update", "--resources", "-", container_id, stdin=None, input='{"pids": {"limit": 23}}')
    assert (group / "pids.max").read_text().strip() == "23"


def test_exec(bundle: Bundle) -> None:
    container_id, pid = bundle.start("sleep", "60")
    script = "cat /proc/self/status; ls /proc/self/fd; readlink /proc/self/ns/net; echo $A; pwd; exit 5"
    done = bundle.call("exec", "-e", "A=b", "--cwd", "/dev", container_id, "sh", "-c", script, check=False)
    assert done.returncode == 5
    assert "CapInh:\t0000000000000000" in done.stdout
    assert f"CapEff:\t{1 << 29 | 1 << 5 | 1 << 10:016x}" in done.stdout
    assert done.stdout.splitlines()[-3:] == [namespace(pid, "net"), "b", "/dev"]
    assert "NoNewPrivs:\t1" in done.stdout
    group = (Path("/proc") / str(pid) / "cgroup").read_text()
    assert bundle.call("exec", container_id, "cat", "/proc/1/cgroup", "/proc/self/cgroup").stdout == (
        "".join(f"{line.split(':/')[0]}:/\n" for line in group.splitlines()) * 2
    )


def test_exec_of_a_process_file(bundle: Bundle, tmp_path: Path) -> None:
    container_id, _ = bundle.start("sleep", "60")
    process = {
        "args": ["sh", "-c", "id > /dev/shm/out; sleep 60"],
        "env": ["PATH=/bin"],
        "cwd": "/",
        "user": {"uid": 12, "gid": 13},
    }
    (tmp_path / "process.json").write_text(json.dumps(process))
    pid_file = tmp_path / "exec.pid"
    words = bundle.command(
        "exec", "--process", str(tmp_path / "process.json"), "-d", "--pid-file", str(pid_file), container_id
    )
    null = subprocess.DEVNULL
    assert subprocess.run(words, stdin=null, stdout=null, stderr=null, timeout=30).returncode == 0
    pid = int(pid_file.read_text())
    wait_until(
        lambda: "uid=12" in bundle.call("exec", container_id, "cat", "/dev/shm/out", check=False).stdout
    )
    assert not is_gone(pid)
    bundle.call("delete", "--force", container_id)
    wait_until(lambda: is_gone(pid))


def test_exec_errors(bundle: Bundle) -> None:
    container_id, pid = bundle.start("sleep", "60")
    done = bundle.call("exec", container_id, "nosuch", check=False)
    assert done.returncode == 255
    assert r"exec failed: unable to start container process: exec: \"nosuch\"" in done.stderr
    assert r"executable file not found in $PATH" in done.stderr
    done = bundle.call("exec", "--cwd", "/nowhere", container_id, "true", check=False)
    assert "chdir to cwd" in done.stderr
    for number in range(3, 9):
        done = bundle.call("exec", "--cwd", f"/proc/self/fd/{number}", container_id, "pwd", check=False)
        assert done.returncode == 255
        assert not done.stdout
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid))
    done = bundle.call("exec", container_id, "true", check=False)
    assert "cannot exec in a stopped container" in done.stderr
    assert "container does not exist" in bundle.call("exec", "nobody", "true", check=False).stderr


def test_a_terminal_over_the_console_socket(bundle: Bundle, tmp_path: Path) -> None:
    bundle.process["terminal"] = True
    bundle.process["consoleSize"] = {"height": 33, "width": 44}
    path = str(tmp_path / "console")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        script = "tty; stty size; stat -c %t:%T /dev/console; ls -1 /proc/1/fd; sleep 60"
        container_id, _ = create(bundle, "sh", "-c", script, extra=("--console-socket", path))
        connection, _ = listener.accept()
        with connection:
            _, (master,) = receive_fds(connection, 64, 1)
    try:
        bundle.call("start", container_id)
        text = ""
        while text.count("\n") < 6:
            text += os.read(master, 4096).decode()
        lines = text.split()
        assert lines[0] == "/dev/pts/0"
        assert lines[1:3] == ["33", "44"]
        assert lines[3] == "88:0"
        assert lines[4:7] == ["0", "1", "2"]
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path + "2")
            listener.listen()
            words = ("exec", "-t", "-d", "--console-socket", path + "2", container_id, "tty")
            bundle.call(*words)
            connection, _ = listener.accept()
            with connection:
                _, (second,) = receive_fds(connection, 64, 1)
            assert os.read(second, 100).decode().strip() == "/dev/pts/1"
            os.close(second)
    finally:
        os.close(master)


def test_a_terminal_in_the_foreground(bundle: Bundle) -> None:
    bundle.process["terminal"] = True
    done = bundle.run("sh", "-c", "tty; exit 6", check=False)
    assert (done.returncode, done.stdout.strip()) == (6, "/dev/pts/0")


def test_terminal_flags(bundle: Bundle) -> None:
    bundle.process["terminal"] = True
    done = bundle.call("create", bundle.new_id(), check=False)
    assert "cannot allocate tty if runc will detach without setting console socket" in done.stderr
    bundle.process["terminal"] = False
    done = bundle.call("create", "--console-socket", "/x", bundle.new_id(), check=False)
    assert "cannot use console socket if runc will not detach or allocate tty" in done.stderr
    assert not list(bundle.root.glob("t-*"))


def test_refused_options(bundle: Bundle) -> None:
    assert "Option --root" in bundle.call("--root", "/", "list", check=False).stderr
    assert "invalid container ID format" in bundle.call("create", "a/b", check=False).stderr
    assert "invalid container ID format" in bundle.call("state", "..", check=False).stderr


def test_a_spec_without_a_process(bundle: Bundle) -> None:
    del bundle.spec["process"]
    container_id = bundle.new_id()
    assert "process property must not be empty" in bundle.call("run", container_id, check=False).stderr
    with (bundle.folder / "stderr").open("w") as stderr:
        null = subprocess.DEVNULL
        subprocess.run(
            bundle.command("create", container_id), stdout=null, stderr=stderr, cwd=bundle.folder, check=True
        )
    assert bundle.state(container_id)["status"] == "created"
    bundle.call("start", container_id)
    wait_until(lambda: bundle.state(container_id)["status"] == "stopped")
    assert (bundle.folder / "stderr").read_text() == "process property must not be empty\n"
    bundle.call("delete", container_id)

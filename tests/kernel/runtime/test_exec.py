"""Flags of `exec`, and those that it shares with `create` and `run`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from linux.fds import receive_fds

from tests.kernel.runtime.bundle import Bundle, is_gone, wait_until

pytestmark = pytest.mark.root


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(10)
        yield listener


def received_pidfd(listener: socket.socket) -> tuple[bytes, int]:
    connection, _ = listener.accept()
    with connection:
        kind, (pidfd,) = receive_fds(connection, 64, 1)
    return kind, pidfd


def pid_of(pidfd: int) -> int:
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("Pid:")))


def test_a_pidfd_of_the_first_process_and_of_another(bundle: Bundle, tmp_path: Path) -> None:
    bundle.process["args"] = ["sleep", "60"]
    container = bundle.new_id()
    with listening(tmp_path / "s") as listener:
        socket_flag = ("--pidfd-socket", str(tmp_path / "s"))
        pid_file = tmp_path / "pid"
        bundle.detach("create", *socket_flag, "--pid-file", str(pid_file), container)
        kind, pidfd = received_pidfd(listener)
        assert (kind, pid_of(pidfd)) == (b"standard", int(pid_file.read_text()))
        bundle.call("start", container)
        bundle.detach("exec", "-d", *socket_flag, "--pid-file", str(pid_file), container, "sleep", "9")
        kind, other = received_pidfd(listener)
        assert (kind, pid_of(other)) == (b"setns", int(pid_file.read_text()))
        signal.pidfd_send_signal(other, signal.SIGKILL)
        wait_until(lambda: is_gone(int(pid_file.read_text())))
    os.close(pidfd)
    os.close(other)


def test_nobody_at_the_pidfd_socket(bundle: Bundle, tmp_path: Path) -> None:
    flag = ("--pidfd-socket", str(tmp_path / "none"))
    bundle.process["args"] = ["sleep", "60"]
    done = bundle.call("create", *flag, bundle.new_id(), check=False)
    assert f"dial unix {tmp_path}/none: connect: no such file or directory" in done.stderr
    assert not list(bundle.root.glob("t-*"))
    container, _ = bundle.start("sleep", "60")
    done = bundle.call("exec", *flag, container, "true", check=False)
    assert (done.returncode, "no such file or directory" in done.stderr) == (255, True)


def test_a_pid_file_that_cannot_be_written_ends_the_process(bundle: Bundle) -> None:
    container, _ = bundle.start("sleep", "60")
    done = bundle.call("exec", "-d", "--pid-file", "/no/where", container, "sleep", "77", check=False)
    assert done.returncode == 255
    assert "sleep" not in bundle.call("exec", container, "ps", "-o", "args").stdout.replace("sleep 60", "")


def members(group: Path) -> set[int]:
    return {int(word) for word in (group / "cgroup.procs").read_text().split()}


def test_a_cgroup_below_the_container_s(bundle: Bundle) -> None:
    container, _ = bundle.start("sleep", "60")
    groups = bundle.cgroups()
    pid_file = str(bundle.folder / "exec.pid")

    def run_in(*flags: str) -> int:
        bundle.detach("exec", "-d", *flags, "--pid-file", pid_file, container, "sleep", "60")
        return int(Path(pid_file).read_text())

    done = bundle.call("exec", "--cgroup", "below", container, "true", check=False)
    assert (done.returncode, "no such cgroup" in done.stderr) == (255, True)
    for group in groups:
        (group / "below").mkdir()
        for name in ("cpuset.cpus", "cpuset.mems"):
            if (group / name).exists():
                (group / "below" / name).write_text((group / name).read_text())
    pid = run_in("--cgroup", "/below")
    assert all(pid in members(group / "below") for group in groups)
    assert all(run_in("--cgroup", "/") in members(group) for group in groups[:1])
    for bad, message in (
        ("../..", "is not a sub cgroup path"),
        ("nosuch:below", "unknown controller nosuch"),
        (":below", "empty <controller> prefix"),
    ):
        done = bundle.call("exec", "--cgroup", bad, container, "true", check=False)
        assert (done.returncode, message in done.stderr) == (255, True)
    done = bundle.call("exec", "--cgroup", "a", "--cgroup", "b", container, "true", check=False)
    assert "missing <controller>: prefix" in done.stderr
    if Path("/sys/fs/cgroup/pids").is_dir():
        by_name = {group.relative_to("/sys/fs/cgroup").parts[0]: group for group in groups}
        pid = run_in("--cgroup", "pids,memory:below", "--cgroup", "devices:/below")
        inside = {name for name, group in by_name.items() if pid in members(group / "below")}
        assert inside == {"pids", "memory", "devices"}
        assert pid in members(by_name["cpuset"])
        done = bundle.call("exec", "--cgroup", "pids:a", "--cgroup", "pids:b", container, "true", check=False)
        assert "controller pids specified multiple times" in done.stderr


def test_who_the_process_is(bundle: Bundle) -> None:
    bundle.process["user"] = {"uid": 3, "gid": 4, "additionalGids": [5]}
    container, _ = bundle.start("sleep", "60")

    def ids(*flags: str) -> str:
        return bundle.call("exec", *flags, container, "sh", "-c", "id -u; id -g; id -G").stdout

    assert ids() == "3\n4\n4 5\n"
    assert ids("--user", "7") == "7\n4\n4 5\n"
    assert ids("-u", "7:8", "-g", "9", "--additional-gids", "10") == "7\n8\n8 5 9 10\n"
    for bad in ("x", "1:y", "-1", "01", str(2**32 - 1)):
        assert "exec failed: bad " in bundle.call("exec", "-u", bad, container, "true", check=False).stderr


def test_new_privileges(bundle: Bundle) -> None:
    container, _ = bundle.start("sleep", "60")
    show = ("grep", "NoNewPrivs", "/proc/self/status")
    assert bundle.call("exec", container, *show).stdout.split()[1] == "1"
    assert bundle.call("exec", "--no-new-privs=false", container, *show).stdout.split()[1] == "0"
    bundle.process["noNewPrivileges"] = False
    assert bundle.call("exec", container, *show).stdout.split()[1] == "0"
    assert bundle.call("exec", "--no-new-privs", container, *show).stdout.split()[1] == "1"


def test_a_paused_container(bundle: Bundle) -> None:
    container, _ = bundle.start("sleep", "60")
    bundle.call("pause", container)
    done = bundle.call("exec", container, "true", check=False)
    assert "cannot exec in a paused container (use --ignore-paused to override)" in done.stderr
    words = bundle.command("exec", "--ignore-paused", container, "echo", "hello")
    reader, writer = os.pipe()
    pid = os.posix_spawn(words[0], words, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1)])
    os.close(writer)
    # it is as frozen as the others: on v1 once it has joined, on v2 from its birth on
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    bundle.call("resume", container)
    with os.fdopen(reader) as output:
        assert output.read() == "hello\n"
    assert os.waitpid(pid, 0)[1] == 0


def test_preserved_descriptors(bundle: Bundle) -> None:
    container, _ = bundle.start("sleep", "60")
    reader, writer = os.pipe()
    words = bundle.command(
        "exec", "--preserve-fds", "2", container, "sh", "-c", "ls /proc/self/fd; echo x >&4"
    )
    out_reader, out_writer = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, fd, 90 + number) for number, fd in enumerate((out_writer, writer))]
    actions += [(os.POSIX_SPAWN_DUP2, *pair) for pair in ((90, 1), (91, 3), (91, 4), (91, 5))]
    pid = os.posix_spawn(words[0], words, os.environ, file_actions=actions)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(writer)
    os.close(out_writer)
    with os.fdopen(out_reader) as output, os.fdopen(reader) as passed:
        assert [int(line) for line in output] == [0, 1, 2, 3, 4, 5]  # 5 is the folder that `ls` reads
        assert passed.read() == "x\n"
    done = bundle.call("exec", "--preserve-fds", "1", container, "true", check=False)
    assert "unable to stat preserved-fd 0 (of 1)" in done.stderr


# A container that moves its first process down and hands on a controller, so that no process may stay above.
MOVED = """
set -e
mount --make-rprivate /
mount -t cgroup2 cgroup2 /sys/fs/cgroup
group=/sys/fs/cgroup$GROUP
trap '"$@" delete --force c; rmdir ${group%/*}' EXIT
"$@" run -d --pid-file pid c </dev/null >/dev/null 2>&1
mkdir $group/init.scope $group/other
cat pid >$group/init.scope/cgroup.procs
echo +hugetlb >$group/cgroup.subtree_control
for flags in "" "--cgroup other" "--cgroup /"; do
  "$@" exec $flags c cat /proc/self/cgroup 2>&1 | tail -n 1
done
"""


def test_a_container_that_has_moved_down_on_v2(hybrid_hugetlb: None, bundle: Bundle) -> None:
    bundle.process["args"] = ["sleep", "60"]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", MOVED, "sh", *bundle.command()],
        env={**os.environ, "GROUP": bundle.linux["cgroupsPath"]},
        capture_output=True,
        text=True,
        timeout=30,
        cwd=bundle.folder,
    )
    by_itself, named, above = done.stdout.splitlines()
    assert (by_itself, named) == ("0::/init.scope", "0::/other")
    assert "device or resource busy" in above

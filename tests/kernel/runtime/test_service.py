"""A container as a service of a manager: socket activation, readiness, orphans, its session keyring."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from linux.fds import receive_fds

from tests.kernel.runtime.bundle import Bundle, wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a service manager."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "manager"))
        made.settimeout(20)
        yield made


def under(manager: socket.socket) -> dict[str, str]:
    return {**os.environ, "NOTIFY_SOCKET": manager.getsockname()}


def hosts_end(bundle: Bundle, container: str) -> Path:
    """The container's socket, as the host sees it."""
    return bundle.root / container / "notify" / "notify.sock"


def say(path: Path, *messages: bytes) -> None:
    """Send what a program in the container would."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as program:
        program.connect(str(path))
        for message in messages:
            program.send(message)


def take_ready(manager: socket.socket) -> str:
    """The main process that the manager is told, by the message of readiness."""
    lines = manager.recv(100).decode().split()
    assert lines[1] == "READY=1"
    return lines[0].removeprefix("MAINPID=")


def release(manager: socket.socket) -> None:
    """Answer the barrier that follows."""
    data, (fd,) = receive_fds(manager, 64, 1)
    assert data == b"BARRIER=1"
    os.close(fd)


@pytest.mark.parametrize("mapped", [False, True])
def test_start_comes_back_when_the_program_is_ready(
    bundle: Bundle, manager: socket.socket, mapped: bool
) -> None:
    if mapped:
        bundle.linux["namespaces"].append({"type": "user"})
        ids = [{"containerID": 0, "hostID": 100000, "size": 1000}]
        bundle.linux["uidMappings"] = bundle.linux["gidMappings"] = ids
        os.chown(bundle.rootfs, 100000, 100000)
    script = (
        'echo "$NOTIFY_SOCKET" > /dev/shm/where; stat -c "%F %a" $NOTIFY_SOCKET > /dev/shm/socket; sleep 60'
    )
    bundle.process["args"] = ["sh", "-c", script]
    container = bundle.new_id()
    bundle.detach("create", "--pid-file", str(bundle.folder / "pid"), container, env=under(manager))
    starting = subprocess.Popen(
        bundle.command("start", container), env=under(manager), stderr=subprocess.PIPE
    )
    with starting:
        wait_until(lambda: bundle.state(container)["status"] == "running")
        say(hosts_end(bundle, container), b"STATUS=warming up", b"MAINPID=1")
        assert starting.poll() is None
        say(hosts_end(bundle, container), b"STATUS=well\nREADY=1")
        assert take_ready(manager) == (bundle.folder / "pid").read_text()
        assert starting.poll() is None, "it waits until the manager has read it"
        release(manager)
        assert starting.wait(20) == 0
    found = bundle.call("exec", container, "cat", "/dev/shm/where", "/dev/shm/socket").stdout
    assert found == "/run/notify/notify.sock\nsocket 777\n"
    done = bundle.call("exec", container, "touch", "/run/notify/x", check=False)
    assert "Read-only file system" in done.stderr
    bundle.call("delete", "--force", container)
    assert not (bundle.root / container).exists()


def test_a_program_that_ends_without_a_word(bundle: Bundle, manager: socket.socket) -> None:
    bundle.process["args"] = ["true"]
    done = bundle.call("run", "-d", bundle.new_id(), env=under(manager))
    assert done.returncode == 0
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(1)


def test_in_the_foreground_the_runtime_is_the_main_process(bundle: Bundle, manager: socket.socket) -> None:
    bundle.process["args"] = ["sleep", "60"]
    container = bundle.new_id()
    words = bundle.command("run", container)
    with subprocess.Popen(words, env=under(manager), stdin=subprocess.DEVNULL, cwd=bundle.folder) as running:
        wait_until(hosts_end(bundle, container).exists)
        say(hosts_end(bundle, container), b"READY=1\n")
        assert take_ready(manager) == str(running.pid)
        bundle.call("kill", container, "KILL")
        assert running.wait(20) == 137


def test_a_manager_that_is_gone(bundle: Bundle, tmp_path: Path) -> None:
    env = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "gone")}
    bundle.process["args"] = ["sleep", "60"]
    container = bundle.new_id()
    words = bundle.command("run", container)
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True, cwd=bundle.folder) as running:
        wait_until(hosts_end(bundle, container).exists)
        say(hosts_end(bundle, container), b"READY=1\n")
        assert running.stderr is not None
        assert "unable to notify" in running.stderr.readline()
        bundle.call("kill", container, "KILL")
        assert running.wait(20) == 137


def test_a_container_that_was_made_without(bundle: Bundle, manager: socket.socket) -> None:
    bundle.process["args"] = ["sleep", "60"]
    container = bundle.new_id()
    bundle.detach("create", container)
    done = bundle.call("start", container, check=False, env=under(manager))
    assert "NOTIFY_SOCKET is set, but was not when" in done.stderr
    assert bundle.state(container)["status"] == "created"


LISTENER = """
import os, sys
os.environ["LISTEN_PID"] = str(os.getpid() + int(sys.argv[1]))
os.dup2(int(sys.argv[2]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


@pytest.mark.parametrize("ours", [True, False])
def test_socket_activation(bundle: Bundle, ours: bool) -> None:
    script = 'ls /proc/self/fd | wc -l; echo "$LISTEN_FDS $LISTEN_PID $LISTEN_FDNAMES" $$'
    bundle.process["args"] = ["sh", "-c", script]
    words = bundle.command("run", "--preserve-fds", "1" if ours else "0", bundle.new_id())
    with socket.socket(socket.AF_UNIX) as passed:
        os.set_inheritable(passed.fileno(), True)
        prefix = [words[0], "-c", LISTENER, "0" if ours else "1", str(passed.fileno())]
        done = subprocess.run(
            [*prefix, *words],
            env={**os.environ, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "web"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            cwd=bundle.folder,
            close_fds=False,
        )
    # standard streams, the socket, one more that is preserved, and the folder that `ls` reads
    assert done.stdout == ("6\n1 1 web 1\n" if ours else "4\n   1\n")


@pytest.mark.parametrize("adopts", [True, False])
def test_who_adopts_orphans(bundle: Bundle, adopts: bool) -> None:
    """Without a pid namespace they have no parent in the container."""
    bundle.linux["namespaces"] = [item for item in bundle.linux["namespaces"] if item["type"] != "pid"]
    bundle.process["args"] = ["sh", "-c", "(sleep 60 >/dev/null & echo $!); exec sleep 60"]
    container = bundle.new_id()
    words = bundle.command("run", *([] if adopts else ["--no-subreaper"]), container)
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, cwd=bundle.folder, **options) as running:
        assert running.stdout is not None
        stat = Path(f"/proc/{int(running.stdout.readline())}/stat")
        wait_until(lambda: "(sleep)" in stat.read_text())
        parent = int(stat.read_text().rpartition(")")[2].split()[1])
        assert (parent == running.pid) == adopts
        bundle.call("kill", container, "KILL")
        assert running.wait(20) == 137


@pytest.mark.skipif(not Path("/proc/keys").exists(), reason="the kernel has no keyrings")
def test_a_session_keyring_of_its_own(bundle: Bundle) -> None:
    bundle.linux["maskedPaths"] = []
    bundle.process["args"] = ["cat", "/proc/keys"]
    own, callers = bundle.new_id(), bundle.new_id()
    assert f"keyring   _ses.{own}: empty" in bundle.call("run", own).stdout
    assert f"_ses.{callers}" not in bundle.call("run", "--no-new-keyring", callers).stdout
    bundle.process["args"] = ["sleep", "60"]
    for container, flags in ((bundle.new_id(), ()), (bundle.new_id(), ("--no-new-keyring",))):
        bundle.detach("run", "-d", *flags, container)
        keys = bundle.call("exec", container, "cat", "/proc/keys").stdout
        assert (f"_ses.{container}" in keys) == (not flags)
        bundle.call("delete", "--force", container)

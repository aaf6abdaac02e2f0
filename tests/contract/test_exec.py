"""docker exec: user, environment, folder, detaching, privileges, exit codes, inspect."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.engine import Engine, ForeignEngine

pytestmark = [pytest.mark.root]


@pytest.fixture(scope="module")
def host(shared_engine: Engine) -> Iterator[Engine]:
    """The engine with a running container `in`."""
    command = ("busybox", "sleep", "600")
    shared_engine.out("run", "-d", "--name", "in", "-e", "FROM=run", "-w", "/usr", "-u", "7:8", *command)
    yield shared_engine
    shared_engine.out("rm", "-f", "in")


@pytest.mark.parametrize(
    ("options", "script", "expected"),
    [
        ((), "id -u; id -g; pwd; echo $FROM", "7\n8\n/usr\nrun\n"),
        (("-u", "root"), "id -u; echo $HOME", "0\n/root\n"),
        (("-u", "5:6"), "id -u; id -g; id -G", "5\n6\n6\n"),
        (("-w", "/etc"), "pwd", "/etc\n"),
        (("-e", "A=b c", "-e", "FROM=exec"), "echo $A/$FROM", "b c/exec\n"),
        ((), "echo $HOSTNAME | wc -c", "13\n"),
        (("-u", "root"), "grep CapEff /proc/self/status", "CapEff:\t00000000a80425fb\n"),
        ((), "grep CapEff /proc/self/status", "CapEff:\t0000000000000000\n"),
        ((), "grep -c . /proc/1/cgroup > /dev/null && cat /proc/self/attr/current 2>/dev/null; echo", "\n"),
        ((), "ls -l /proc/self/fd | grep -c pipe", "2\n"),
    ],
)
def test_what_it_is_given(host: Engine, options: tuple[str, ...], script: str, expected: str) -> None:
    done = host.docker("exec", *options, "in", "sh", "-c", script, stdin=None)
    assert (done.stdout, done.returncode) == (expected, 0), done.stderr


def test_privileged(host: Engine) -> None:
    script = "grep -E 'CapEff|CapBnd' /proc/self/status"
    plain = host.out("exec", "-u", "root", "in", "sh", "-c", script)
    full = host.out("exec", "-u", "root", "--privileged", "in", "sh", "-c", script)
    assert plain.splitlines() == ["CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb"]
    effective = int(full.split()[1], 16)
    assert effective & 1 << 21  # CAP_SYS_ADMIN
    assert effective == int(full.split()[3], 16)


@pytest.mark.parametrize(
    ("command", "options", "code", "text"),
    [
        (("sh", "-c", "exit 9"), (), 9, ""),
        (("sh", "-c", "kill -9 $$"), (), 137, ""),
        (("nosuch",), (), 127, "executable file not found in $PATH"),
        (("/etc/passwd",), (), 126, "permission denied"),
        (("true",), ("-u", "nosuch"), 126, "unable to find user nosuch"),
        (("true",), ("-w", "/etc/passwd"), 127, "not a directory"),
    ],
)
def test_exit_codes(
    host: Engine, command: tuple[str, ...], options: tuple[str, ...], code: int, text: str
) -> None:
    done = host.docker("exec", *options, "in", *command)
    # An engine before 27 says 126 of every exec that cannot start.
    before_27 = isinstance(host, ForeignEngine) and code == 127
    assert done.returncode == (126 if before_27 else code), done.stderr
    assert text in done.stdout + done.stderr


def test_detached(host: Engine) -> None:
    with host.http() as client:
        body = {"Cmd": ["sh", "-c", "sleep 0.3; exit 4"], "Env": ["X=1"], "WorkingDir": "/tmp", "User": "3"}
        reply = client.post("/v1.44/containers/in/exec", json=body)
        assert reply.status_code == 201
        id = reply.json()["Id"]
        before = client.get(f"/v1.44/exec/{id}/json").json()
        assert (before["Running"], before["ExitCode"], before["Pid"]) == (False, None, 0)
        assert client.post(f"/v1.44/exec/{id}/start", json={"Detach": True}).status_code == 200
        during = client.get(f"/v1.44/exec/{id}/json").json()
        assert during["Running"]
        assert during["Pid"] > 0
        assert during["ProcessConfig"] == {
            "tty": False,
            "entrypoint": "sh",
            "arguments": ["-c", "sleep 0.3; exit 4"],
            "privileged": False,
            "user": "3",
        }
        assert id in client.get("/v1.44/containers/in/json").json()["ExecIDs"]
        assert client.post(f"/v1.44/exec/{id}/start", json={"Detach": True}).status_code == 409
        host.until("it ends", lambda: not client.get(f"/v1.44/exec/{id}/json").json()["Running"])
        after = client.get(f"/v1.44/exec/{id}/json").json()
        assert (after["ExitCode"], after["CanRemove"], after["ContainerID"]) == (
            4,
            False,
            host.inspect("in")["Id"],
        )


def test_execs_end_with_their_container(engine: Engine) -> None:
    engine.out("run", "-d", "--name", "short", "busybox", "sleep", "60")
    process = engine.start("exec", "short", "sleep", "60")
    try:
        engine.until("it runs", lambda: engine.out("top", "short").count("sleep") == 2)
        engine.out("kill", "short")
        assert process.wait(10) == 137
    finally:
        process.kill()
        process.wait()
    assert engine.docker("exec", "short", "true").returncode == 1

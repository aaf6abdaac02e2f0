"""The docker client's long connections while dockerd-api is killed under it, over and over."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from launcher.control import ask

from tests.support.engine import Engine

pytestmark = pytest.mark.root

Start = Callable[..., subprocess.Popen[str]]

COUNT = "i=0; while [ $i -lt {n} ]; do echo $i; i=$((i+1)); sleep 0.02; done; exit {code}"


@pytest.fixture(scope="module")
def killed() -> Iterator[Engine]:
    """An engine whose daemon these tests kill."""
    made = Engine()
    try:
        made.up()
        made.import_busybox()
        yield made
    finally:
        made.purge()


@pytest.fixture
def start(killed: Engine) -> Iterator[Start]:
    """Starts docker clients whose output is kept; none outlives the test."""
    clients: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        clients.append(killed.start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return clients[-1]

    yield begin
    for client in clients:
        if client.poll() is None:
            client.kill()
        client.communicate()


def status(engine: Engine) -> dict[str, Any]:
    found: dict[str, Any] = ask(engine.state / "run/launcher.sock", 5.0, op="status")["services"][
        "dockerd-api"
    ]
    return found


def kill(engine: Engine) -> None:
    """SIGKILL the daemon; return when the next one is ready."""
    starts = status(engine)["starts"]
    engine.kill("dockerd-api", signal.SIGKILL)
    engine.until(
        "dockerd-api ready again",
        lambda: status(engine)["starts"] > starts and status(engine)["phase"] == "ready",
    )


def numbers(count: int) -> str:
    return "".join(f"{number}\n" for number in range(count))


def test_every_client_of_a_container_survives_kills(killed: Engine, start: Start) -> None:
    """run, exec, logs -f, wait and events, each on connections of its own: exact, with true exit codes."""
    n = 160
    events = start("events", "--filter", "container=kills", "--format", "{{json .}}")
    killed.until("events under way", lambda: streams(killed) >= 1)
    script = COUNT.format(n=n, code=7)
    clients = {"run": start("run", "--name", "kills", "busybox", "sh", "-c", script)}
    killed.until("it runs", lambda: killed.docker("top", "kills").returncode == 0)
    clients["logs"] = start("logs", "-f", "kills")
    clients["wait"] = start("wait", "kills")
    clients["exec"] = start("exec", "kills", "sh", "-c", COUNT.format(n=60, code=9))
    killed.until(
        "execs under way", lambda: "exec_start" in killed.out("events", "--since", "1", "--until", "1s")
    )
    pid = killed.inspect("kills")["State"]["Pid"]
    kills = 0
    while clients["run"].poll() is None and kills < 4:
        kill(killed)
        kills += 1
    ended = {name: (client.communicate(timeout=60), client.returncode) for name, client in clients.items()}
    assert ended["run"] == ((numbers(n), ""), 7)
    assert ended["logs"] == ((numbers(n), ""), 0)
    assert ended["wait"] == (("7\n", ""), 0)
    assert ended["exec"] == ((numbers(60), ""), 9)
    assert pid
    killed.out("rm", "kills")
    killed.until("destroyed", lambda: "destroy" in killed.out("events", "--since", "1", "--until", "1s"))
    kill(killed)
    events.terminate()
    seen = [json.loads(line) for line in events.communicate(timeout=20)[0].splitlines()]
    actions = [event["Action"].partition(":")[0] for event in seen]
    expected = ["create", "attach", "start", "exec_create", "exec_start", "exec_die", "die", "destroy"]
    assert [action for action in actions if action != "top"] == expected
    codes = [event["Actor"]["Attributes"]["exitCode"] for event in seen if "die" in event["Action"]]
    assert codes == ["9", "7"]
    assert [event["timeNano"] for event in seen] == sorted({event["timeNano"] for event in seen})
    assert kills >= 2


def test_each_change_is_told_once_over_kills(killed: Engine, start: Start) -> None:
    """Containers and execs that come and go while the daemon is killed: what happened to each, in its order,
    once, and each exec client has its output and exit code.
    """
    names = [f"told{number}" for number in range(2)]
    for name in names:
        killed.out("run", "-d", "--name", name, "busybox", "sleep", "100")
    clients = []
    for number, name in enumerate(names):
        clients.append(start("exec", name, "sh", "-c", f"echo in; sleep 0.{3 * number}; exit {number}"))
        killed.until("it is asked for", partial(has, killed, name, "exec_start"))
        # Somewhere between the exec's record and its run.
        kill(killed)
    for number, client in enumerate(clients):
        assert client.communicate(timeout=30) == ("in\n", "")
        assert client.returncode == number
    for name in names:
        start("stop", "-t", "0", name)  # in a client of its own, which may lose its reply
        killed.until("it is to stop", partial(has, killed, name, "kill"))
        kill(killed)
    killed.until("all ended", lambda: not killed.out("ps", "-q", "--filter", "name=told"))
    for name in names:
        killed.out("rm", name)
    kill(killed)
    certain = ["create", "connect", "start", "exec_create", "exec_start", "exec_die", "disconnect", "die"]
    for name in names:
        actions = [action for action in told(killed, name) if action not in ("kill", "stop")]
        assert actions == [*certain, "destroy"]


def has(engine: Engine, name: str, action: str) -> bool:
    return action in told(engine, name)


def told(engine: Engine, name: str) -> list[str]:
    """The actions of the events about a container so far, those of its networks among them."""
    lines = engine.out("events", "--since", "1", "--until", f"{time.time():.9f}", "--format", "{{json .}}")
    seen = [json.loads(line) for line in lines.splitlines()]
    id = next((e["id"] for e in seen if e["Actor"]["Attributes"].get("name") == name), None)
    about = [e for e in seen if id in (e["Actor"]["ID"], e["Actor"]["Attributes"].get("container"))]
    return [event["Action"].partition(":")[0] for event in about]


def streams(engine: Engine) -> int:
    return len({name for name in status(engine)["stored"] if name.startswith("stream-")})


def test_attach_and_wait_before_start_survive_kills(killed: Engine) -> None:
    """What the client does in `run --rm`, with the daemon killed between each two steps."""
    created = killed.out("create", "-i", "--rm", "busybox", "sh", "-c", "read line; echo got $line; exit 5")
    with open_connection(killed) as attach, open_connection(killed) as wait:
        attach.sendall(
            f"POST /v1.47/containers/{created}/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\n"
            "Host: x\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nfirst ".encode()
        )
        assert read_head(attach) == (
            b"HTTP/1.1 101 UPGRADED\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\n"
            b"Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
        )
        kill(killed)
        wait.sendall(
            f"POST /v1.47/containers/{created}/wait?condition=removed HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        )
        assert read_head(wait).startswith(b"HTTP/1.1 200 OK\r\n")
        kill(killed)
        killed.out("start", created)
        kill(killed)
        attach.sendall(b"second\n")
        body = b"got first second\n"
        assert read_all(attach) == b"\x01\0\0\0" + len(body).to_bytes(4, "big") + body
        assert b'{"StatusCode":5}\n' in read_all(wait)
    assert created not in killed.out("ps", "-aq", "--no-trunc")


def open_connection(engine: Engine) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(30)
    sock.connect(engine.socket)
    return sock


def read_head(sock: socket.socket) -> bytes:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    return head


def read_all(sock: socket.socket) -> bytes:
    with sock.makefile("rb") as reply:
        return reply.read()


def test_run_rm_and_its_exit_code_over_a_kill(killed: Engine, start: Start) -> None:
    client = start(
        "run", "--rm", "--name", "once", "busybox", "sh", "-c", "echo one; sleep 2; echo two; exit 3"
    )
    killed.until("it runs", lambda: killed.docker("top", "once").returncode == 0)
    kill(killed)
    assert client.communicate(timeout=60) == ("one\ntwo\n", "")
    assert client.returncode == 3
    killed.until("removed", lambda: killed.docker("inspect", "once").returncode != 0)


def test_exit_while_the_daemon_is_down(killed: Engine, start: Start, tmp_path: Path) -> None:
    """The container ends while dockerd-api is stopped; who waited and followed is told by the next one."""
    go = tmp_path / "go"
    script = "echo begin; while [ ! -e /go/go ]; do sleep 0.05; done; echo end; exit 4"
    killed.out("run", "-d", "--name", "alone", "-v", f"{tmp_path}:/go", "busybox", "sh", "-c", script)
    clients = [start("wait", "alone"), start("logs", "-f", "alone")]
    killed.until("both under way", lambda: streams(killed) == 2)
    shim_child = killed.inspect("alone")["State"]["Pid"]
    killed.kill("dockerd-api", signal.SIGSTOP)
    go.touch()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{shim_child}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    kill(killed)
    assert [client.communicate(timeout=30) for client in clients] == [("4\n", ""), ("begin\nend\n", "")]
    killed.out("rm", "alone")


def test_nothing_stays_in_the_store(killed: Engine) -> None:
    killed.until("an empty store", lambda: status(killed)["stored"] == ["connstate"])

"""Client connections across restarts and kills of the server, with asyncio's loop and with uvloop."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launcher import commands
from launcher.control import ask
from launcher.layout import Layout, Refused

HERE = Path(__file__).parent


class Api:
    def __init__(self, state: Path, loop: str) -> None:
        self.layout = Layout.of(str(state))
        self.command = [sys.executable, str(HERE / "launch.py"), str(self.layout.state), loop]

    def raw(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(20)
        sock.connect(str(self.layout.run / "api.sock"))
        return sock

    def http(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("docker")
        connection.sock = self.raw()
        return connection

    def pid(self) -> int:
        return int(self.layout.pid_file("api").read_text())

    def kill(self) -> None:
        """SIGKILL, and the next process answers."""
        starts = self.status()["starts"]
        os.kill(self.pid(), signal.SIGKILL)
        until(lambda: self.status()["starts"] > starts and self.status()["phase"] == "ready")

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = ask(self.layout.control, 5.0, op="status")["services"]["api"]
        return status


def started(loop: str, folder: Path) -> Iterator[Api]:
    api = Api(folder / "state", loop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands, "ping", lambda layout: True)
        commands.up(api.layout, api.command)
    try:
        yield api
    finally:
        with contextlib.suppress(Refused):
            commands.down(api.layout)


@pytest.fixture(scope="module")
def on_uvloop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    yield from started("uvloop", tmp_path_factory.mktemp("api"))


@pytest.fixture(scope="module")
def on_asyncio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    yield from started("asyncio", tmp_path_factory.mktemp("api"))


@pytest.fixture
def api(on_uvloop: Api) -> Iterator[Api]:
    """The server on the loop that the daemon uses."""
    yield from left_clean(on_uvloop)


@pytest.fixture(params=["on_uvloop", "on_asyncio"])
def either(request: pytest.FixtureRequest) -> Iterator[Api]:
    """The server on each loop, for what depends on how the loop reads and writes."""
    yield from left_clean(request.getfixturevalue(request.param))


def left_clean(running: Api) -> Iterator[Api]:
    """Whatever a test did, nothing stays in the store but the map of connections."""
    yield running
    until(lambda: running.status()["stored"] == ["connstate"])
    for path in running.layout.run.glob("*held-*"):
        path.unlink()


def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def get(connection: http.client.HTTPConnection, path: str) -> bytes:
    connection.request("GET", path)
    return connection.getresponse().read()


@pytest.mark.parametrize("how", ["kill", "restart"])
def test_idle_connection_is_served_by_the_next_process(either: Api, how: str) -> None:
    with contextlib.closing(either.http()) as used, contextlib.closing(either.http()) as fresh:
        first = json.loads(get(used, "/pid"))["pid"]
        until(lambda: len(either.status()["stored"]) == 3)
        for _ in range(2):
            if how == "kill":
                either.kill()
            else:
                commands.restart(either.layout, "api")
            # The very sockets: neither was closed nor opened again.
            assert json.loads(get(used, "/pid"))["pid"] == either.pid() != first
        assert json.loads(get(fresh, "/pid"))["pid"] == either.pid()


@pytest.mark.parametrize("path", [b"/slow", b"/v1.50/exec/changing/start"])
def test_request_under_way_at_a_kill_ends_its_connection(path: bytes, api: Api) -> None:
    with api.raw() as sock:
        sock.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        until(lambda: len(api.status()["stored"]) == 2)
        time.sleep(0.1)
        api.kill()
        assert sock.recv(10) == b""


@pytest.mark.parametrize(
    ("line", "body"),
    [
        (b"GET /slow", b""),
        (b"POST /v1.50/containers/c/wait?condition=removed", b""),
        (b"POST /v1.50/exec/e/start", b'{"Detach":false}'),
    ],
)
def test_request_that_changes_nothing_is_served_by_the_next_process(
    line: bytes, body: bytes, api: Api
) -> None:
    head = b" HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    with api.raw() as sock:
        sock.sendall(line + head + body)
        until(lambda: len(api.status()["stored"]) == 2)
        time.sleep(0.1)
        api.kill()
        api.kill()
        (api.layout.run / "quick").touch()
        with sock.makefile("rb") as reply:
            got = reply.read()
        assert got.startswith(b"HTTP/1.1 200 OK")
        assert got.endswith(b"\r\n\r\n" + body)
        (api.layout.run / "quick").unlink()


def test_request_that_ends_each_process_is_given_up(api: Api) -> None:
    with api.raw() as sock:
        sock.sendall(b"GET /deadly HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(10) == b""
    until(lambda: bool(api.status()["phase"] == "ready"))


def test_half_sent_request_at_a_kill_ends_its_connection(api: Api) -> None:
    with api.raw() as sock:
        sock.sendall(b"GET /pid HT")
        until(lambda: len(api.status()["stored"]) == 2)
        time.sleep(0.1)
        api.kill()
        assert sock.recv(10) == b""


def test_request_sent_while_nobody_runs_is_answered(either: Api) -> None:
    with contextlib.closing(either.http()) as idle:
        get(idle, "/pid")
        os.kill(either.pid(), signal.SIGSTOP)
        # The server reads nothing of this.
        idle.request("GET", "/pid")
        queued = either.http()
        queued.request("GET", "/pid")
        either.kill()
        assert json.loads(idle.getresponse().read())["pid"] == either.pid()
        assert json.loads(queued.getresponse().read())["pid"] == either.pid()
        queued.close()


def test_client_that_closes_leaves_the_store(either: Api) -> None:
    connection = either.http()
    get(connection, "/pid")
    until(lambda: len(either.status()["stored"]) == 2)
    connection.close()
    until(lambda: either.status()["stored"] == ["connstate"])


def test_server_that_closes_is_seen_by_the_client(either: Api) -> None:
    with either.raw() as sock:
        sock.sendall(b"GET /pid HTTP/1.0\r\n\r\n")
        with sock.makefile("rb") as reply:
            assert reply.read().startswith(b"HTTP/1.1 200")
    with either.raw() as sock:
        sock.sendall(b"nonsense\r\n\r\n")
        with sock.makefile("rb") as reply:
            assert reply.read().startswith(b"HTTP/1.1 400")


def test_long_replies_are_exact_while_the_server_is_killed(api: Api) -> None:
    total = 2000
    bodies: list[bytes] = []

    def client() -> None:
        connection = api.http()
        bodies.append(get(connection, f"/count?to={total}"))
        connection.close()

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    until(lambda: sum(name.startswith("stream-") for name in api.status()["stored"]) == 4)
    kills = 0
    while any(thread.is_alive() for thread in clients) and kills < 4:
        api.kill()
        kills += 1
        time.sleep(0.05)
    for thread in clients:
        thread.join(30)
    expected = b"".join(b"%d\n" % number for number in range(total))
    assert [body == expected for body in bodies] == [True] * 4
    assert kills >= 2


def test_stopped_client_blocks_nobody_and_loses_nothing(api: Api) -> None:
    """A client that does not read for a while, over a kill, gets everything then."""
    total = 60_000
    with api.raw() as sock:
        sock.sendall(b"GET /count?to=%d HTTP/1.0\r\n\r\n" % total)
        until(lambda: any(name.startswith("stream-") for name in api.status()["stored"]))
        with contextlib.closing(api.http()) as other:
            get(other, "/pid")
            api.kill()
            get(other, "/pid")
        # Numbers up to the total take a while to produce; what is looked at is their beginning.
        with sock.makefile("rb") as reply:
            while reply.readline().strip():
                pass
            got = b"".join(_chunks(reply, 20_000))
    lines = got.split(b"\n")[:-1]
    assert lines == [b"%d" % number for number in range(len(lines))]


def _chunks(reply: Any, least: int) -> Iterator[bytes]:
    size = 0
    while size < least:
        length = int(reply.readline(), 16)
        if length == 0:
            return
        yield reply.read(length)
        reply.readline()
        size += length


def test_client_that_leaves_a_waiting_reply_is_noticed(api: Api) -> None:
    run = api.layout.run
    connection = api.http()
    connection.request("GET", "/hold")
    response = connection.getresponse()  # it holds the socket
    until(lambda: bool(list(run.glob("held-*"))))
    api.kill()
    response.close()
    connection.close()
    until(lambda: bool(list(run.glob("gone-*"))) or not _streams(api))
    for path in run.glob("gone-*"):
        path.unlink()


def _streams(api: Api) -> list[str]:
    return [name for name in api.status()["stored"] if name.startswith("stream-")]


def test_waiting_reply_survives_kills_and_a_restart(api: Api) -> None:
    connection = api.http()
    connection.request("GET", "/hold")
    response = connection.getresponse()
    api.kill()
    commands.restart(api.layout, "api")
    (api.layout.run / "release").touch()
    assert response.read() == b"released\n"
    (api.layout.run / "release").unlink()
    connection.close()


UPGRADE = b"Connection: Upgrade\r\nUpgrade: tcp\r\n"


@pytest.mark.parametrize("upgrade", [True, False])
@pytest.mark.parametrize("body", [b"", b'{"Detach":false}'])
@pytest.mark.parametrize("pieces", [1, 2, 1000])
def test_bytes_behind_a_request_arrive_once(either: Api, upgrade: bool, body: bytes, pieces: int) -> None:
    length = b"Content-Length: %d\r\n" % len(body) if body else b""
    request = b"POST /containers/x/attach HTTP/1.1\r\nHost: x\r\n" + (UPGRADE if upgrade else b"") + length
    leading = b"GET / HTTP/1.1\r\n\r\nleading\n"
    everything = request + b"\r\n" + body + leading
    with either.raw() as sock:
        step = -(-len(everything) // pieces)
        for at in range(0, len(everything), step):
            sock.sendall(everything[at : at + step])
            time.sleep(0.0005)
        sock.sendall(b"later\n")
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as reply:
            got = reply.read()
    head, _, rest = got.partition(b"\r\n\r\n")
    assert head == (b"HTTP/1.1 101 UPGRADED" if upgrade else b"HTTP/1.1 200 OK")
    assert rest == b"%d:" % len(body) + leading + b"later\n"


@pytest.mark.parametrize("upgrade", [True, False])
def test_connection_goes_on_behind_a_refused_attach(api: Api, upgrade: bool) -> None:
    request = b"POST /containers/refused/attach HTTP/1.1\r\nHost: x\r\n" + (UPGRADE if upgrade else b"")
    with api.raw() as sock:
        sock.sendall(request + b"\r\nGET /pid HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        with sock.makefile("rb") as reply:
            got = reply.read()
    assert got.startswith(b"HTTP/1.1 404")
    assert b'{"message":"no"}HTTP/1.1 200 OK' in got


def test_half_closed_client_gets_its_reply(either: Api) -> None:
    with either.raw() as sock:
        sock.sendall(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
        sock.shutdown(socket.SHUT_WR)
        with sock.makefile("rb") as reply:
            got = reply.read()
    assert got.startswith(b"HTTP/1.1 200")
    assert got.endswith(b"hello")


def test_pipelined_and_chunked_requests(api: Api) -> None:
    chunks = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    chunked = b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    plain = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nxyz"
    last = b"GET /pid HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with api.raw() as sock:
        sock.sendall(plain + plain + chunked)
        time.sleep(0.05)
        sock.sendall(last)
        with sock.makefile("rb") as reply:
            got = reply.read()
    assert got.count(b"HTTP/1.1 200") == 4
    assert got.count(b"\r\n\r\nxyz") == 2
    assert b"\r\n\r\nabcde" in got


def test_big_reply_then_idle(either: Api) -> None:
    """The connection counts as idle only when all of the reply has left."""
    with contextlib.closing(either.http()) as connection:
        connection.request("GET", f"/big?size={8 << 20}")
        response = connection.getresponse()
        time.sleep(0.1)
        either.kill()
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
    with contextlib.closing(either.http()) as connection:
        assert len(get(connection, f"/big?size={8 << 20}")) == 8 << 20
        assert get(connection, "/pid")

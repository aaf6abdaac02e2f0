"""The launcher over a service of the test's own that speaks sd_notify: what systemd does, it does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from launcher import commands
from launcher.control import ask
from launcher.layout import Layout, Refused
from launcher.process import start_time

HERE = Path(__file__).parent


class Engine:
    def __init__(self, state: Path) -> None:
        self.layout = Layout.of(str(state))
        self.clients: list[socket.socket] = []

    def command(self, watchdog: float = 0.0, stop: float = 10.0, kill_mode: str = "group") -> list[str]:
        script = str(HERE / "fake_launcher.py")
        return [sys.executable, script, str(self.layout.state), str(watchdog), str(stop), kill_mode]

    def up(self, **options: Any) -> None:
        commands.up(self.layout, self.command(**options))

    def tell(self, words: str, *, keep: bool = False) -> Any:
        """One word to the service, and what it says; `keep`: the connection stays open on our side."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(20)
        sock.connect(str(self.layout.run / "fake.sock"))
        sock.sendall(words.encode() + b"\n")
        try:
            with sock.makefile("r") as lines:
                line = lines.readline()
        except OSError:
            sock.close()
            raise
        if keep:
            self.clients.append(sock)
        else:
            sock.close()
        return json.loads(line)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = ask(self.layout.control, 5.0, op="status")["services"]["fake"]
        return status

    def launcher_pid(self) -> int:
        return int(self.layout.lock.read_text())

    def pid(self) -> int:
        return int(self.layout.pid_file("fake").read_text())


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    # The fake service has no HTTP API; what `up` asks of it is asked of the real one elsewhere.
    monkeypatch.setattr(commands, "ping", lambda layout: True)
    one = Engine(tmp_path / "state")
    try:
        yield one
    finally:
        for client in one.clients:
            client.close()
        with contextlib.suppress(Refused):
            commands.down(one.layout)


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


def test_up_passes_sockets_and_down_leaves_nothing(engine: Engine) -> None:
    engine.up()
    assert engine.tell("pid") == engine.pid() == engine.status()["pid"]
    assert engine.status()["status"] == "here"
    assert (engine.layout.run / "fake.sock").stat().st_mode & 0o777 == 0o660
    assert engine.layout.run.stat().st_mode & 0o777 == 0o700
    assert engine.tell("fds") == [["fake.sock", "socket"]]
    pid, launcher = engine.pid(), engine.launcher_pid()
    commands.down(engine.layout)
    assert start_time(pid) is None
    until(lambda: start_time(launcher) is None)
    assert not list(engine.layout.run.glob("*.sock"))
    assert not list(engine.layout.run.glob("*.pid"))


def test_second_up_names_the_holder(engine: Engine) -> None:
    engine.up()
    with pytest.raises(Refused, match=f"already: launcher pid {engine.launcher_pid()}"):
        engine.up()
    assert engine.tell("pid") == engine.pid()


def test_failing_service_shows_the_end_of_its_log(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAILS", "1")
    with pytest.raises(Refused, match=r"(?s)fake ended before it was ready.*cannot go on: the test says so"):
        engine.up()
    until(lambda: not engine.layout.control.exists())


def test_restart_in_place_keeps_socket_and_store(engine: Engine) -> None:
    engine.up()
    assert engine.tell("store-memory note hello")
    assert engine.tell("store conn-1", keep=True)
    before = engine.pid()
    commands.restart(engine.layout, "fake")
    assert engine.pid() != before
    assert engine.tell("pid") == engine.pid()
    assert engine.tell("fds") == [["conn-1", "socket"], ["fake.sock", "socket"], ["note", "file"]]
    assert engine.tell("read note") == ["hello"]
    assert engine.tell("remove note")
    commands.restart(engine.layout, "fake")
    assert engine.tell("fds") == [["conn-1", "socket"], ["fake.sock", "socket"]]
    with pytest.raises(Refused, match="no service is called 'nothing'"):
        commands.restart(engine.layout, "nothing")


def test_killed_service_is_started_at_once_each_time(engine: Engine) -> None:
    """Twelve kills in a row; the clients of each interval queue, and what was stored is there."""
    engine.up()
    assert engine.tell("store-memory note hello")
    for _ in range(12):
        pid = engine.tell("pid")
        os.kill(pid, signal.SIGKILL)
        # A connection that it accepted as it died would be lost with it.
        until(lambda pid=pid: start_time(pid) is None)  # type: ignore[misc]
        began = time.monotonic()
        assert engine.tell("read note") == ["hello"]
        assert time.monotonic() - began < 5
        assert engine.tell("pid") != pid


def test_stored_socket_leaves_when_its_peer_hangs_up(engine: Engine) -> None:
    engine.up()
    assert engine.tell("store conn-1", keep=True)
    assert engine.tell("store conn-2", keep=True)
    assert engine.tell("store-memory note hello")
    assert sorted(engine.status()["stored"]) == ["conn-1", "conn-2", "note"]
    engine.clients.pop(0).close()
    until(lambda: sorted(engine.status()["stored"]) == ["conn-2", "note"])


def test_last_words_of_a_killed_service_count(engine: Engine) -> None:
    """What is stored without a barrier just before the end is passed to the next process."""
    engine.up()
    pid = engine.pid()
    os.kill(engine.launcher_pid(), signal.SIGSTOP)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(engine.layout.run / "fake.sock"))
            sock.sendall(b"store-memory note last\n")
            time.sleep(0.3)  # It sends, then waits in its barrier for the stopped launcher.
            os.kill(pid, signal.SIGKILL)
    finally:
        os.kill(engine.launcher_pid(), signal.SIGCONT)
    assert engine.tell("read note") == ["last"]


def test_hung_service_is_ended(engine: Engine) -> None:
    engine.up(watchdog=1.0)
    # It never says WATCHDOG=1, so each of its processes has a second from READY=1 on.
    first = engine.pid()
    until(lambda: engine.status()["starts"] >= 2)
    assert start_time(first) is None


def test_stop_kills_what_does_not_end(engine: Engine) -> None:
    engine.up(stop=0.3)
    pid = engine.pid()
    os.kill(pid, signal.SIGSTOP)
    with contextlib.suppress(Refused):
        commands.restart(engine.layout, "fake")
    until(lambda: start_time(pid) is None)
    assert engine.tell("pid") != pid


def test_main_process_may_change(engine: Engine) -> None:
    engine.up()
    pid = engine.pid()
    successor = engine.tell("mainpid")
    assert successor != pid
    until(lambda: engine.pid() == successor)
    assert engine.tell("pid") == successor
    assert engine.status()["starts"] == 1
    os.kill(successor, signal.SIGKILL)
    until(lambda: start_time(successor) is None)
    assert engine.tell("pid") not in (pid, successor)


@pytest.mark.parametrize(("kill_mode", "survives"), [("group", False), ("process", True)])
def test_kill_mode(engine: Engine, kill_mode: str, survives: bool) -> None:
    engine.up(kill_mode=kill_mode)
    orphan = engine.tell("orphan")
    try:
        commands.restart(engine.layout, "fake")
        if survives:
            assert start_time(orphan) is not None
        else:
            until(lambda: start_time(orphan) is None)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(orphan, signal.SIGKILL)


def test_others_are_not_heard(engine: Engine) -> None:
    """Only the main process has a say (NotifyAccess=main)."""
    engine.up()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(str(engine.layout.notify_socket("fake")))
        sock.send(b"STATUS=mine")
        sock.send(b"\xff\xfe=\nnothing at all")
    assert engine.tell("barrier")
    assert engine.status()["status"] == "here"


def test_up_takes_over_from_a_killed_launcher(engine: Engine) -> None:
    engine.up()
    pid, launcher = engine.pid(), engine.launcher_pid()
    os.kill(launcher, signal.SIGKILL)
    until(lambda: start_time(launcher) is None)
    assert start_time(pid) is not None
    engine.up()
    assert start_time(pid) is None
    assert engine.tell("pid") == engine.pid() != pid


def test_down_after_a_killed_launcher(engine: Engine) -> None:
    engine.up()
    pid, launcher = engine.pid(), engine.launcher_pid()
    os.kill(launcher, signal.SIGKILL)
    until(lambda: start_time(launcher) is None)
    commands.down(engine.layout)
    assert start_time(pid) is None


def test_launcher_outlives_a_hang_up(engine: Engine) -> None:
    engine.up()
    os.kill(engine.launcher_pid(), signal.SIGHUP)
    assert engine.tell("pid") == engine.pid() == engine.status()["pid"]


def test_refused_folders(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="too long for a state folder"):
        Layout.of("/tmp/" + "x" * 80)
    used = tmp_path / "used"
    used.mkdir()
    (used / "letter").write_text("dear")
    with pytest.raises(Refused, match="neither empty nor the state folder"):
        Layout.of(str(used)).make()
    assert [p.name for p in used.iterdir()] == ["letter"]
    with pytest.raises(Refused, match="is not the state folder"):
        commands.down(Layout.of(str(used)))
    with pytest.raises(Refused, match="is not the state folder"):
        commands.restart(Layout.of(str(tmp_path / "none")), "fake")

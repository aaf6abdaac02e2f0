"""Daemons restarted and killed under a running container that prints, is asked for, awaited and followed."""

from __future__ import annotations

import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from functools import partial

import pytest

from tests.support.engine import SERVICES, Engine, start_time

pytestmark = [pytest.mark.root, pytest.mark.slow]

PRINTER = """mkdir /www; echo payload > /www/index.html; httpd -p 80 -h /www
trap 'exit 7' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done"""


class Prober(threading.Thread):
    """Asks a published port every 50 ms until stopped; `failed` lists wrong and late answers."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.url = f"http://127.0.0.1:{port}/"
        self.asked = 0
        self.failed: list[str] = []
        self.stopped = threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.05):
            try:
                with urllib.request.urlopen(self.url, timeout=1) as reply:
                    if reply.read() != b"payload\n":
                        self.failed.append("another payload")
            except OSError as error:
                self.failed.append(repr(error))
            self.asked += 1


@pytest.fixture
def own_engine() -> Iterator[Engine]:
    made = Engine()
    try:
        made.up()
        made.import_busybox()
        yield made
    finally:
        made.purge()


@pytest.mark.parametrize("how", ["kill", "restart"])
@pytest.mark.parametrize("service", SERVICES)
def test_one_service(engine: Engine, service: str, how: str) -> None:
    id = engine.out("run", "-d", "-p", "80", "busybox", "sh", "-c", PRINTER)
    before = engine.inspect(id)["State"]
    began = start_time(before["Pid"])
    port = int(engine.out("port", id, "80").splitlines()[0].rpartition(":")[2])
    waiter = engine.start("wait", id, stdout=subprocess.PIPE)
    follower = engine.start("logs", "-f", id, stdout=subprocess.PIPE)
    probing = Prober(port)
    probing.start()
    try:
        engine.until("the page", lambda: probing.asked > 1)
        if how == "kill":
            engine.kill_and_wait(service)
        else:
            engine.restart(service)
        after = engine.inspect(id)["State"]
        assert (after["Pid"], after["StartedAt"]) == (before["Pid"], before["StartedAt"])
        assert start_time(after["Pid"]) == began
        assert engine.out("exec", id, "echo", "still here") == "still here"
    finally:
        probing.stopped.set()
        probing.join()
    assert probing.failed == []
    engine.out("kill", "-s", "TERM", id)
    assert waiter.communicate(timeout=30)[0] == "7\n"
    lines = follower.communicate(timeout=30)[0].splitlines()
    assert lines == [str(n) for n in range(len(lines))]
    assert engine.docker("logs", id).stdout.splitlines() == lines


def test_both_daemons_killed_ten_times(own_engine: Engine) -> None:
    engine = own_engine
    id = engine.out("run", "-d", "-p", "80", "busybox", "sh", "-c", PRINTER)
    pid = engine.inspect(id)["State"]["Pid"]
    began = start_time(pid)
    clients = {
        "wait": engine.start("wait", id, stdout=subprocess.PIPE),
        "logs": engine.start("logs", "-f", id, stdout=subprocess.PIPE),
        "attach": engine.start("attach", "--no-stdin", id, stdout=subprocess.PIPE),
    }
    outputs = {name: client.stdout for name, client in clients.items() if client.stdout}
    # A request that a kill finds under way may be lost: these are answered when the first line is there.
    begun = {name: outputs[name].readline() for name in ("logs", "attach")}
    for _ in range(10):
        old = {name: engine.pid(name) for name in ("containerd-svc", "dockerd-api")}
        for name in old:
            engine.kill(name)
        engine.until("both back", partial(_replaced, engine, old))
        assert engine.inspect(id)["State"]["Pid"] == pid
        assert start_time(pid) == began
    engine.out("kill", "-s", "TERM", id)
    assert outputs["wait"].read() == "7\n"
    printed = engine.docker("logs", id).stdout
    numbers = printed.splitlines()
    assert numbers == [str(n) for n in range(len(numbers))]
    assert begun["logs"] + outputs["logs"].read() == printed
    attached = begun["attach"] + outputs["attach"].read()
    assert clients["attach"].wait(30) == 7
    assert printed.endswith(attached)
    assert attached.count("\n") > len(numbers) * 3 / 4
    assert engine.out("wait", id) == "7"
    for client in clients.values():
        client.communicate(timeout=30)


def _replaced(engine: Engine, old: dict[str, int]) -> bool:
    return all(engine.pid(name) not in (0, pid) for name, pid in old.items())


EXITS = {
    "zero": ("exit 0", [], 0, False),
    "three": ("exit 3", [], 3, False),
    "signal": ("kill -9 $$", ["--init"], 137, False),
    "memory": ("x=a; while :; do x=$x$x; done", ["--memory", "16m"], 137, True),
}


def test_exits_while_everything_is_down(own_engine: Engine) -> None:
    engine = own_engine
    ids = {}
    for name, (script, options, _, _) in EXITS.items():
        begin = "while [ ! -e /go/now ]; do sleep 0.05; done; "
        (engine.state / "go").mkdir(exist_ok=True)
        mount = ["-v", f"{engine.state}/go:/go"]
        ids[name] = engine.out("run", "-d", *mount, *options, "busybox", "sh", "-c", begin + script)
    pids = [engine.inspect(id)["State"]["Pid"] for id in ids.values()]
    engine.down()
    (engine.state / "go/now").touch()
    deadline = time.monotonic() + 20
    while any(_runs(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    engine.up()
    for name, (_, _, code, oom) in EXITS.items():
        state = engine.inspect(ids[name])["State"]
        assert (state["Status"], state["ExitCode"], state["OOMKilled"]) == ("exited", code, oom), name


def _runs(pid: int) -> bool:
    try:
        start_time(pid)
    except OSError:
        return False
    return True


def test_second_engine_on_the_same_state_is_refused(engine: Engine) -> None:
    with pytest.raises(AssertionError, match=r"launcher up: .*\b\d+\b"):
        engine.up()

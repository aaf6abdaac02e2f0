"""A container's life as clients see it: events and their order, wait, rename, restart, pause, policies."""

from __future__ import annotations

import json
import re
import threading
import time
from typing import Any

import pytest

from tests.support.engine import Engine

pytestmark = [pytest.mark.root]


def actions(engine: Engine, since: float, id: str) -> list[str]:
    """What happened to a container, network included, in the order that the engine tells it."""
    engine.until("its end is told", lambda: "destroy" in _actions(engine, since, id))
    return _actions(engine, since, id)


def _actions(engine: Engine, since: float, id: str) -> list[str]:
    query = {"since": f"{since:.3f}", "until": f"{time.time():.3f}"}
    with engine.http() as client:
        lines = client.get("/v1.44/events", params=query).text.splitlines()
    events = [json.loads(line) for line in lines]
    return [
        event["Action"].partition(":")[0]
        for event in events
        if id in (event["Actor"]["ID"], event["Actor"]["Attributes"].get("container"))
    ]


def test_events_of_run_rm(engine: Engine) -> None:
    since = time.time() - 0.001
    engine.out("run", "--rm", "--cidfile", f"{engine.state}/run-rm", "busybox", "true")
    id = (engine.state / "run-rm").read_text()
    (engine.state / "run-rm").unlink()
    told = actions(engine, since, id)
    assert sorted(told) == ["attach", "connect", "create", "destroy", "die", "disconnect", "start"]
    kept = [action for action in told if action not in ("connect", "disconnect")]
    assert kept == ["create", "attach", "start", "die", "destroy"]
    assert told.index("connect") < told.index("start")
    assert told.index("disconnect") > told.index("start")


def test_events_of_run_kill_rm(engine: Engine) -> None:
    since = time.time() - 0.001
    id = engine.out("run", "-d", "--label", "tier=back", "--name", "lives", "busybox", "sleep", "60")
    engine.out("kill", "lives")
    engine.out("wait", "lives")
    engine.out("rm", "lives")
    told = actions(engine, since, id)
    kept = [action for action in told if action not in ("connect", "disconnect")]
    assert kept == ["create", "start", "kill", "die", "destroy"]
    query = {"since": f"{since:.3f}", "until": f"{time.time():.3f}"}
    query["filters"] = json.dumps({"container": ["lives"], "event": ["die", "kill"], "type": ["container"]})
    with engine.http() as client:
        lines = client.get("/v1.44/events", params=query).text.splitlines()
    kill, die = (json.loads(line) for line in lines)
    assert (kill["status"], kill["id"], kill["from"], kill["scope"]) == ("kill", id, "busybox", "local")
    assert kill["Actor"]["Attributes"] == {
        "image": "busybox",
        "name": "lives",
        "signal": "9",
        "tier": "back",
    }
    assert die["Actor"]["Attributes"]["exitCode"] == "137"
    assert die["Actor"]["Attributes"]["execDuration"].isdecimal()
    assert die["time"] == die["timeNano"] // 10**9


def test_wait_conditions(engine: Engine) -> None:
    engine.out("create", "--name", "waited", "busybox", "sh", "-c", "sleep 0.2; exit 6")
    got: dict[str, Any] = {}

    def wait(condition: str) -> None:
        with engine.http() as client:
            reply = client.post("/v1.44/containers/waited/wait", params={"condition": condition})
        got[condition] = (reply.status_code, reply.json())

    with engine.http() as client:
        created = client.post("/v1.44/containers/waited/wait", params={"condition": "not-running"})
        assert created.json() == {"StatusCode": 0}
        bad = client.post("/v1.44/containers/waited/wait", params={"condition": "sometimes"})
        assert bad.status_code == 400
        assert "invalid condition" in bad.json()["message"]
    threads = [threading.Thread(target=wait, args=(word,)) for word in ("next-exit", "removed")]
    for thread in threads:
        thread.start()
    time.sleep(0.3)  # both wait now: nothing in the API tells when
    engine.out("start", "waited")
    engine.until("next-exit", lambda: "next-exit" in got)
    assert "removed" not in got
    assert engine.out("wait", "waited") == "6"
    engine.out("rm", "waited")
    for thread in threads:
        thread.join(10)
    assert got == {"next-exit": (200, {"StatusCode": 6}), "removed": (200, {"StatusCode": 6})}


def test_rename(engine: Engine) -> None:
    id = engine.out("run", "-d", "--name", "before", "busybox", "sleep", "60")
    engine.out("create", "--name", "other", "busybox", "true")
    assert engine.docker("rename", "before", "other").returncode == 1
    assert engine.docker("rename", "before", "bad name").returncode == 1
    engine.out("rename", "before", "after")
    assert engine.inspect("after")["Id"] == id
    assert engine.inspect("after")["Name"] == "/after"
    assert engine.docker("inspect", "before").returncode == 1
    assert engine.out("ps", "--filter", "name=^/after$", "--format", "{{.Names}}") == "after"


def test_restart_keeps_what_was_written(engine: Engine) -> None:
    script = "echo run >> /log; cat /log; exec sleep 60"
    engine.out("run", "-d", "--name", "again", "busybox", "sh", "-c", script)
    engine.until("it runs", lambda: engine.out("logs", "again") == "run")
    before = engine.inspect("again")["State"]
    engine.out("restart", "-t", "0", "again")
    engine.until("it runs again", lambda: engine.out("logs", "again") == "run\nrun\nrun")
    after = engine.inspect("again")["State"]
    assert after["Running"]
    assert after["Pid"] != before["Pid"]
    assert after["StartedAt"] > before["StartedAt"]
    assert engine.inspect("again")["RestartCount"] == 0


def test_pause(engine: Engine) -> None:
    script = "while :; do echo tick; sleep 0.02; done"
    engine.out("run", "-d", "--name", "frozen", "busybox", "sh", "-c", script)
    engine.out("pause", "frozen")
    state = engine.inspect("frozen")["State"]
    assert (state["Status"], state["Paused"], state["Running"]) == ("paused", True, True)
    assert engine.out("ps", "--filter", "status=paused", "--format", "{{.Names}}") == "frozen"
    before = engine.out("logs", "frozen")
    time.sleep(0.2)
    assert engine.out("logs", "frozen") == before
    with engine.http() as client:
        assert client.post("/v1.44/containers/frozen/pause").status_code == 409
        exec_body = {"Cmd": ["true"], "AttachStdout": True}
        assert client.post("/v1.44/containers/frozen/exec", json=exec_body).status_code == 409
        assert client.post("/v1.44/containers/frozen/start").status_code == 409
    engine.out("unpause", "frozen")
    engine.until("it goes on", lambda: engine.out("logs", "frozen") != before)
    engine.out("rm", "-f", "frozen")


def test_stop_signal_and_timeout(engine: Engine) -> None:
    script = "trap 'exit 3' USR1; trap '' TERM; while :; do sleep 0.02; done"
    options = ("--stop-signal", "SIGUSR1", "--name", "asked")
    engine.out("run", "-d", *options, "busybox", "sh", "-c", f"{script}")
    engine.until("it runs", lambda: "sh" in engine.out("top", "asked"))
    engine.out("stop", "asked")
    assert engine.inspect("asked")["State"]["ExitCode"] == 3
    engine.out("start", "asked")
    engine.out("stop", "-s", "TERM", "-t", "1", "asked")
    assert engine.inspect("asked")["State"]["ExitCode"] == 137


def test_on_failure(engine: Engine) -> None:
    options = ("--restart", "on-failure:2", "--name", "policy")
    engine.out("run", "-d", *options, "busybox", "sh", "-c", "echo run; exit 4")
    engine.until("it gives up", lambda: engine.inspect("policy")["State"]["Status"] == "exited")
    found = engine.inspect("policy")
    assert (found["RestartCount"], found["State"]["ExitCode"]) == (2, 4)
    assert engine.out("logs", "policy") == "run\nrun\nrun"
    engine.out("run", "-d", "--restart", "on-failure", "--name", "fine", "busybox", "true")
    engine.until("it ends", lambda: engine.inspect("fine")["State"]["Status"] == "exited")
    assert engine.inspect("fine")["RestartCount"] == 0


@pytest.mark.parametrize("policy", ["always", "unless-stopped"])
def test_a_stop_holds(engine: Engine, policy: str) -> None:
    engine.out("run", "-d", "--restart", policy, "--name", "policy", "busybox", "sh", "-c", "sleep 60")
    first = engine.inspect("policy")["State"]["Pid"]
    engine.out("stop", "-t", "0", "policy")
    state = engine.inspect("policy")["State"]
    assert (state["Status"], state["Pid"]) == ("exited", 0)
    time.sleep(0.4)  # longer than the first back-off
    assert engine.inspect("policy")["State"]["Status"] == "exited"
    engine.out("start", "policy")
    assert engine.inspect("policy")["State"]["Pid"] not in (0, first)


def test_always_comes_back(engine: Engine) -> None:
    script = "test -e /second && exec sleep 60; touch /second; exit 0"
    engine.out("run", "-d", "--restart", "always", "--name", "policy", "busybox", "sh", "-c", script)
    engine.until("it is back", lambda: engine.inspect("policy")["RestartCount"] == 1)
    engine.until("it runs", lambda: engine.inspect("policy")["State"]["Status"] == "running")
    found = engine.inspect("policy")
    assert found["HostConfig"]["RestartPolicy"] == {"Name": "always", "MaximumRetryCount": 0}
    engine.out("rm", "-f", "policy")


def test_a_start_that_fails_can_be_tried_again(engine: Engine) -> None:
    engine.out("create", "--name", "failed", "-p", "127.0.0.1::80", "busybox", "nosuch")
    with engine.http() as client:
        reply = client.post("/v1.44/containers/failed/start")
        assert reply.status_code == 400
        assert re.search(r'exec: "nosuch": executable file not found in \$PATH', reply.json()["message"])
        state = client.get("/v1.44/containers/failed/json").json()["State"]
        assert (state["Status"], state["ExitCode"], state["Pid"]) == ("created", 127, 0)
        assert "nosuch" in state["Error"]
        assert client.post("/v1.44/containers/failed/start").status_code == 400
        attached = client.get("/v1.44/networks/bridge").json()["Containers"]
    assert engine.inspect("failed")["Id"] not in attached

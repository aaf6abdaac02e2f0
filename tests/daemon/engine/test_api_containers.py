"""Containers over the API: status codes, words, what is left behind. Facts seen on the real engine."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.engine import Engine

pytestmark = pytest.mark.root


@pytest.fixture
def http(engine: Engine) -> Iterator[httpx.Client]:
    with engine.http() as client:
        yield client


def create(http: httpx.Client, name: str = "", /, **document: Any) -> str:
    reply = http.post(
        "/v1.50/containers/create",
        params={"name": name} if name else {},
        json={"Image": "busybox", **document},
    )
    assert reply.status_code == 201, reply.text
    container_id: str = reply.json()["Id"]
    return container_id


def said(reply: httpx.Response) -> tuple[int, str]:
    return reply.status_code, reply.json()["message"] if reply.content else ""


def test_versions_and_unknown_routes(http: httpx.Client) -> None:
    reply = http.head("/_ping")
    assert reply.status_code == 200
    assert reply.headers["api-version"] == "1.50"
    assert reply.headers["ostype"] == "linux"
    assert http.get("/_ping").text == "OK"
    for version in ("1.24", "1.50"):
        assert http.get(f"/v{version}/version").json()["MinAPIVersion"] == "1.24"
    assert said(http.get("/v1.51/version")) == (
        400,
        "client version 1.51 is too new. Maximum supported API version is 1.50",
    )
    assert http.get("/v1.23/version").status_code == 400
    for method, path in (("GET", "/foo"), ("PUT", "/containers/json"), ("GET", "/containers/create")):
        assert said(http.request(method, path)) == (404, "page not found")
    assert http.get("/volumes").status_code == 501
    assert http.get("/info").json()["OSType"] == "linux"


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        (b"{bad", 400, "invalid JSON: invalid character 'b' looking for beginning of object key string"),
        (b"", 400, "invalid JSON: got EOF while reading request body"),
        (b'{"Image":"busybox"} {}', 400, "unexpected content after JSON"),
        (b"{}", 400, "config cannot be empty in order to create a container"),
        (b"[]", 400, "cannot unmarshal array into Go value"),
        (b'{"Image":""}', 400, "no command specified"),
        (b'{"Image":"nope"}', 404, "No such image: nope:latest"),
        (b'{"Image":"busybox","HostConfig":{"Memory":-1}}', 400, "Minimum memory limit allowed is 6MB"),
        (b'{"Image":"busybox","WorkingDir":"../.."}', 400, "it needs to be an absolute path"),
        (b'{"Image":"busybox","Cmd":["sh"],"WorkingDir":"/bin/sh"}', 500, "/bin/sh is not a directory"),
        (b'{"Image":"busybox","HostConfig":{"PidMode":"container:nope"}}', 400, "No such container: nope"),
        (b'{"Image":"busybox","HostConfig":{"Links":["a:b"]}}', 501, "not implemented"),
    ],
)
def test_bad_bodies_change_nothing(http: httpx.Client, body: bytes, status: int, text: str) -> None:
    before = len(http.get("/containers/json?all=1").json())
    reply = http.post("/containers/create", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == status
    assert text in reply.text.replace("\\u0027", "'")
    if status >= 400:
        assert len(http.get("/containers/json?all=1").json()) == before


def test_names(http: httpx.Client) -> None:
    first = create(http, "name-a", Cmd=["true"])
    create(http, "name-b", Cmd=["true"])
    status, text = said(
        http.post("/containers/create?name=name-a", json={"Image": "busybox", "Cmd": ["true"]})
    )
    assert (status, text) == (
        409,
        f'Conflict. The container name "/name-a" is already in use by container "{first}". '
        "You have to remove (or rename) that container to be able to reuse that name.",
    )
    assert http.post("/containers/name-a/rename?name=name-b").status_code == 409
    assert http.post("/containers/name-a/rename?name=bad!").status_code == 400
    assert http.post("/containers/name-a/rename?name=name-c").status_code == 204
    assert http.get("/containers/name-c/json").json()["Id"] == first
    assert said(http.get("/containers/name-a/json")) == (404, "No such container: name-a")
    assert http.get(f"/containers/{first[:12]}/json").json()["Name"] == "/name-c"


def test_a_life(http: httpx.Client) -> None:
    container = create(http, "life", Cmd=["sleep", "1000"], Labels={"a": "b"})
    assert said(http.post("/containers/life/kill"))[0] == 409
    assert http.post("/containers/life/stop").status_code == 304
    assert said(http.post("/containers/life/pause")) == (409, f"container {container} is not running")
    assert http.post("/containers/life/start").status_code == 204
    assert http.post("/containers/life/start").status_code == 304
    assert said(http.post("/containers/life/kill?signal=FOO")) == (
        400,
        "cannot kill container: life: invalid signal: FOO",
    )
    assert http.delete("/containers/life").status_code == 409
    assert http.post("/containers/life/pause").status_code == 204
    assert http.get("/containers/life/json").json()["State"]["Status"] == "paused"
    assert http.post("/containers/life/exec", json={"Cmd": ["true"]}).status_code == 409
    assert http.post("/containers/life/unpause").status_code == 204
    pid = http.get("/containers/life/json").json()["State"]["Pid"]
    assert http.post("/containers/life/restart?t=0").status_code == 204
    state = http.get("/containers/life/json").json()["State"]
    assert state["Running"]
    assert state["Pid"] != pid
    assert [row[-1] for row in http.get("/containers/life/top").json()["Processes"]] == ["sleep 1000"]
    assert http.post("/containers/life/kill").status_code == 204
    state = http.get("/containers/life/json").json()["State"]
    assert (state["Status"], state["ExitCode"], state["Pid"]) == ("exited", 137, 0)
    for query, expected in (
        ("all=1", True),
        ("", False),
        ('filters={"status":["exited"]}', True),
        ('filters={"label":["a=b"],"exited":["137"]}', True),
        ('filters={"label":["a=c"]}&all=1', False),
        ('filters={"name":["^/life$"]}&all=1', True),
    ):
        found = [entry["Id"] for entry in http.get(f"/containers/json?{query}").json()]
        assert (container in found) is expected, query
    assert http.get('/containers/json?filters={"zz":["a"]}').status_code == 400
    assert http.delete("/containers/life").status_code == 204
    assert http.delete("/containers/life").status_code == 404


@pytest.mark.parametrize(
    ("document", "status", "text", "code"),
    [
        ({"Cmd": ["nope"]}, 400, 'exec: "nope": executable file not found in $PATH', 127),
        ({"Cmd": ["/nope"]}, 400, "no such file or directory", 127),
        ({"Cmd": ["/etc"]}, 400, "permission denied", 126),
        ({"Cmd": ["sh"], "User": "nobodyx"}, 500, "unable to find user nobodyx: no matching entries", 128),
        ({"Cmd": ["sh"], "User": "4294967296"}, 500, "uids and gids must be in range 0-2147483647", 128),
        ({"Cmd": ["sh"], "HostConfig": {"Devices": [{"PathOnHost": "/dev/nope"}]}}, 400, "/dev/nope", 128),
        (
            {"Cmd": ["sh"], "HostConfig": {"NetworkMode": "container:nope"}},
            404,
            "No such container: nope",
            128,
        ),
    ],
)
def test_starts_that_fail_leave_nothing(
    http: httpx.Client, document: dict[str, Any], status: int, text: str, code: int
) -> None:
    container = create(http, **document)
    reply = http.post(f"/containers/{container}/start")
    assert reply.status_code == status, reply.text
    assert text in reply.json()["message"]
    state = http.get(f"/containers/{container}/json").json()["State"]
    assert (state["Status"], state["ExitCode"]) == ("created", code)
    assert text in state["Error"]
    assert container not in http.get("/networks/bridge").json()["Containers"]


def test_execs(http: httpx.Client) -> None:
    create(http, "ex", Cmd=["sleep", "1000"])
    assert http.post("/containers/ex/exec", json={"Cmd": ["true"]}).status_code == 409
    http.post("/containers/ex/start")
    assert said(http.post("/containers/ex/exec", json={})) == (400, "No exec command specified")
    assert said(http.get("/exec/nope/json")) == (404, "No such exec instance: nope")

    def run(**document: Any) -> tuple[int, dict[str, Any]]:
        exec_id = http.post("/containers/ex/exec", json=document).json()["Id"]
        status = http.post(f"/exec/{exec_id}/start", json={"Detach": True}).status_code
        found = http.get(f"/exec/{exec_id}/json").json()
        for _ in range(200):
            if not found["Running"]:
                break
            found = http.get(f"/exec/{exec_id}/json").json()
        return status, found

    status, found = run(Cmd=["sh", "-c", "exit 5"], User="0", Env=["A=1"], WorkingDir="/tmp")
    assert (status, found["ExitCode"]) == (200, 5)
    assert found["ProcessConfig"]["entrypoint"] == "sh"
    assert http.post(f"/exec/{found['ID']}/start", json={"Detach": True}).status_code == 409
    status, found = run(Cmd=["nope"])
    assert (status, found["ExitCode"]) == (400, 127)
    status, found = run(Cmd=["true"], User="nobodyx")
    assert (status, found["ExitCode"]) == (500, 126)


def test_events_come_in_dockers_order(http: httpx.Client) -> None:
    container = create(http, "ev", Cmd=["sleep", "1000"])
    http.post("/containers/ev/start")
    http.post("/containers/ev/stop?t=0")
    http.delete("/containers/ev")
    now = time.time()
    reply = http.get("/events", params={"since": f"{now - 60:.3f}", "until": f"{now + 0.2:.3f}"})
    seen = [json.loads(line) for line in reply.text.splitlines()]
    mine = [
        event["Action"]
        for event in seen
        if container in (event["Actor"]["ID"], event["Actor"]["Attributes"].get("container"))
    ]
    assert mine[:3] == ["create", "connect", "start"]
    words = [action for action in mine if action not in ("connect", "disconnect")]
    # `sleep` as the first process ignores SIGTERM: there is a second kill
    assert list(dict.fromkeys(words)) == [
        "create", "start", "kill", "die", "stop", "destroy",
    ]  # fmt: skip


def test_limits_reach_the_kernel(engine: Engine) -> None:
    printed = engine.out(
        "run", "--rm", "--memory", "32m", "--pids-limit", "9", "--cpus", "0.5",
        "--ulimit", "nofile=77", "--tmpfs", "/t",
        "--hostname", "box", "--user", "5:6", "--workdir", "/a/b", "-e", "X=y", "--read-only",
        "busybox", "sh", "-c", "hostname; id -u; id -g; pwd; echo $X; ulimit -n; touch /x 2>&1; :",
    )  # fmt: skip
    assert printed.splitlines() == [
        "box", "5", "6", "/a/b", "y", "77", "touch: /x: Read-only file system",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("busybox", "sh", "-c", "exit 3"), 3),
        (("busybox", "nope"), 127),
        (("busybox", "/etc"), 126),
        (("--user", "nobodyx", "busybox", "true"), 125),
        (("--memory", "1m", "busybox", "true"), 125),
        (("nope-image", "true"), 125),
    ],
)
def test_exit_codes_of_the_client(engine: Engine, arguments: tuple[str, ...], code: int) -> None:
    assert engine.docker("run", "--rm", *arguments).returncode == code
    assert engine.out("ps", "-aq") == ""


def test_restart_policies(engine: Engine) -> None:
    container = engine.out("run", "-d", "--restart", "on-failure:2", "busybox", "sh", "-c", "exit 4")
    engine.until("given up", lambda: engine.inspect(container)["State"]["Status"] == "exited")
    found = engine.inspect(container)
    assert (found["RestartCount"], found["State"]["ExitCode"]) == (2, 4)
    always = engine.out("run", "-d", "--restart", "always", "busybox", "sleep", "1000")
    engine.out("stop", "-t", "0", always)
    assert engine.inspect(always)["State"]["Status"] == "exited"


def test_a_second_engine_is_refused(engine: Engine) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dockerd_api", "--data-root", f"{engine.state}/lib/docker", "--instance", "x"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1
    assert f"in use by another engine (process {engine.pid('dockerd-api')})" in done.stderr

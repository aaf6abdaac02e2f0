"""Bad input: Docker's status, message shape and exit code of the client, and nothing left behind."""

from __future__ import annotations

import io
import json
import tarfile
from typing import Any

import pytest

from tests.support.engine import Engine, ForeignEngine

pytestmark = [pytest.mark.root]

NOWHERE = "0123456789abcdef"


def message(body: bytes) -> str:
    """The message of an error reply, which has this one key."""
    document = json.loads(body)
    assert list(document) == ["message"]
    assert isinstance(document["message"], str)
    return str(document["message"])


@pytest.mark.parametrize(
    ("method", "path", "text"),
    [
        ("GET", "/containers/nosuch/json", "No such container: nosuch"),
        ("POST", "/containers/nosuch/start", "No such container: nosuch"),
        ("POST", "/containers/nosuch/wait", "No such container: nosuch"),
        ("GET", "/containers/nosuch/logs?stdout=1", "No such container: nosuch"),
        ("DELETE", "/containers/nosuch", "No such container: nosuch"),
        ("POST", "/containers/nosuch/rename?name=x", "No such container: nosuch"),
        ("GET", "/images/nosuch/json", "No such image: nosuch"),
        ("DELETE", "/images/nosuch", "No such image: nosuch"),
        ("GET", "/networks/nosuch", "network nosuch not found"),
        ("GET", f"/exec/{NOWHERE}/json", f"No such exec instance: {NOWHERE}"),
        ("GET", "/nosuch", "page not found"),
    ],
)
def test_what_does_not_exist(engine: Engine, method: str, path: str, text: str) -> None:
    with engine.http() as client:
        reply = client.request(method, f"/v1.44{path}")
    assert reply.status_code == 404
    assert text in message(reply.content)


CREATE: list[tuple[str, dict[str, Any], int, str]] = [
    ("no image", {"Image": "nosuch"}, 404, "No such image: nosuch:latest"),
    ("no command", {"Image": "busybox", "Cmd": []}, 400, "no command specified"),
    (
        "negative memory",
        {"Image": "busybox", "Cmd": ["true"], "HostConfig": {"Memory": -1}},
        400,
        "Minimum memory limit allowed is 6MB",
    ),
    (
        "little memory",
        {"Image": "busybox", "Cmd": ["true"], "HostConfig": {"Memory": 4096}},
        400,
        "Minimum memory limit allowed is 6MB",
    ),
    (
        "bad port",
        {
            "Image": "busybox",
            "Cmd": ["true"],
            "ExposedPorts": {"80/tcp": {}},
            "HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": "99999"}]}},
        },
        400,
        "99999",
    ),
    (
        "relative mount",
        {"Image": "busybox", "Cmd": ["true"], "HostConfig": {"Binds": ["/tmp:relative"]}},
        400,
        "mount path must be absolute",
    ),
    (
        "missing source",
        {
            "Image": "busybox",
            "Cmd": ["true"],
            "HostConfig": {"Mounts": [{"Type": "bind", "Source": "/nosuch", "Target": "/x"}]},
        },
        400,
        "bind source path does not exist: /nosuch",
    ),
    (
        "bad capability",
        {"Image": "busybox", "Cmd": ["true"], "HostConfig": {"CapAdd": ["CAP_NOSUCH"]}},
        400,
        "CAP_NOSUCH",
    ),
    (
        "bad restart policy",
        {"Image": "busybox", "Cmd": ["true"], "HostConfig": {"RestartPolicy": {"Name": "sometimes"}}},
        400,
        "sometimes",
    ),
    (
        "relative workdir",
        {"Image": "busybox", "Cmd": ["true"], "WorkingDir": "relative"},
        400,
        "needs to be an absolute path",
    ),
    (
        "bad signal",
        {"Image": "busybox", "Cmd": ["true"], "StopSignal": "SIGNOSUCH"},
        400,
        "SIGNOSUCH",
    ),
]


@pytest.mark.parametrize(
    ("body", "status", "text"), [case[1:] for case in CREATE], ids=[case[0] for case in CREATE]
)
def test_create_refuses(engine: Engine, body: dict[str, Any], status: int, text: str) -> None:
    with engine.http() as client:
        reply = client.post("/v1.44/containers/create?name=refused", json=body)
        # The real engine calls some of these its own fault (500); Buoy does not.
        assert reply.status_code in (status, 500 if isinstance(engine, ForeignEngine) else status), reply.text
        assert text.lower() in message(reply.content).lower()
        assert client.get("/v1.44/containers/refused/json").status_code == 404


@pytest.mark.parametrize(
    "body", [b"{", b'{"Image": 7}', b"[]", b""], ids=["cut off", "wrong type", "no object", "nothing"]
)
def test_malformed_json(engine: Engine, body: bytes) -> None:
    with engine.http() as client:
        headers = {"Content-Type": "application/json"}
        reply = client.post("/v1.44/containers/create", content=body, headers=headers)
    assert reply.status_code == 400
    assert message(reply.content)


def test_name_in_use(engine: Engine) -> None:
    id = engine.out("create", "--name", "taken", "busybox", "true")
    with engine.http() as client:
        body = {"Image": "busybox", "Cmd": ["true"]}
        reply = client.post("/v1.44/containers/create?name=taken", json=body)
        assert reply.status_code == 409
        assert message(reply.content) == (
            f'Conflict. The container name "/taken" is already in use by container "{id}". '
            "You have to remove (or rename) that container to be able to reuse that name."
        )
        assert client.post("/v1.44/containers/create?name=-bad-", json=body).status_code == 400


def test_unknown_signal(engine: Engine) -> None:
    engine.out("run", "-d", "--name", "target", "busybox", "sleep", "60")
    with engine.http() as client:
        reply = client.post("/v1.44/containers/target/kill?signal=SIGNOSUCH")
        assert reply.status_code == 400
        assert "invalid signal: SIGNOSUCH" in message(reply.content)
        assert client.get("/v1.44/containers/target/json").json()["State"]["Running"]


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("busybox", "nosuch"), 127, "executable file not found in $PATH"),
        (("busybox", "/nosuch"), 127, "no such file or directory"),
        (("busybox", "/etc/passwd"), 126, "permission denied"),
        (
            ("-u", "nosuch", "busybox", "true"),
            125,
            "unable to find user nosuch: no matching entries in passwd",
        ),
        (("busybox", "sh", "-c", "exit 5"), 5, ""),
        (("--network", "nosuch", "busybox", "true"), 125, "network nosuch not found"),
    ],
)
def test_run_exits_as_dockers(engine: Engine, arguments: tuple[str, ...], code: int, text: str) -> None:
    done = engine.docker("run", "--rm", "--name", "ended", *arguments)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    engine.until("removed", lambda: engine.docker("inspect", "ended").returncode == 1)


def test_states_that_forbid(engine: Engine) -> None:
    engine.out("create", "--name", "made", "busybox", "sleep", "60")
    with engine.http() as client:
        assert client.post("/v1.44/containers/made/stop").status_code == 304
        reply = client.post("/v1.44/containers/made/kill")
        assert reply.status_code == 409
        assert "is not running" in message(reply.content)
        assert client.post("/v1.44/containers/made/pause").status_code == 409
        exec_body = {"Cmd": ["true"], "AttachStdout": True}
        assert client.post("/v1.44/containers/made/exec", json=exec_body).status_code == 409
        assert client.post("/v1.44/containers/made/start").status_code == 204
        assert client.post("/v1.44/containers/made/start").status_code == 304
        reply = client.delete("/v1.44/containers/made")
        assert reply.status_code == 409
        assert "cannot remove container" in message(reply.content)


def test_port_in_use(engine: Engine) -> None:
    engine.out("run", "-d", "--name", "holder", "-p", "127.0.0.1:18080:80", "busybox", "sleep", "60")
    done = engine.docker(
        "run", "-d", "--name", "second", "-p", "127.0.0.1:18080:80", "busybox", "sleep", "60"
    )
    assert done.returncode == 125
    assert "port is already allocated" in done.stderr
    assert engine.inspect("second")["State"]["Status"] == "created"


def _tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "archive",
    [
        b"this is no archive at all" * 100,
        _tar((tarfile.TarInfo("manifest.json"), b"[{]")),
        _tar((tarfile.TarInfo("manifest.json"), b'[{"Config":"../../etc/passwd","Layers":[]}]')),
        _tar((tarfile.TarInfo("manifest.json"), b'[{"Config":"c.json","Layers":["l.tar"]}]')),
    ],
    ids=["no tar", "bad manifest", "config outside", "parts missing"],
)
def test_load_refuses(engine: Engine, archive: bytes) -> None:
    before = engine.out("images", "-aq")
    with engine.http() as client:
        reply = client.post(
            "/v1.44/images/load?quiet=1", content=archive, headers={"Content-Type": "application/x-tar"}
        )
    if reply.status_code == 200:  # the stream had begun: the error is its last line
        assert "error" in json.loads(reply.content.splitlines()[-1])
    else:
        assert reply.status_code in (400, 500)
        assert message(reply.content)
    assert engine.out("images", "-aq") == before

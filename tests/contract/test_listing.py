"""What the engine says of what it has: lists and their filters, inspect, images, networks, versions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.engine import Engine

pytestmark = [pytest.mark.root]


@pytest.fixture(scope="module")
def three(shared_engine: Engine) -> Iterator[Engine]:
    """The engine with three containers: `runs`, `ended` and `made`, all with the label group=three."""
    label = ("--label", "group=three")
    shared_engine.out("run", "-d", "--name", "runs", *label, "--label", "x=1", "-p", "127.0.0.1::80/tcp",
                      "--expose", "53/udp", "busybox", "sleep", "600")  # fmt: skip
    shared_engine.docker("run", "--name", "ended", *label, "busybox", "sh", "-c", "exit 3")
    shared_engine.out("create", "--name", "made", *label, "--network", "none", "busybox", "true")
    yield shared_engine
    shared_engine.out("rm", "-f", "runs", "ended", "made")


def listed(engine: Engine, **filters: list[str]) -> list[str]:
    query = {"all": "1", "filters": json.dumps({"label": ["group=three"], **filters})}
    with engine.http() as client:
        reply = client.get("/v1.44/containers/json", params=query)
    assert reply.status_code == 200, reply.text
    return [entry["Names"][0].removeprefix("/") for entry in reply.json()]


@pytest.mark.parametrize(
    ("filters", "names"),
    [
        ({}, ["made", "ended", "runs"]),
        ({"status": ["running"]}, ["runs"]),
        ({"status": ["exited", "created"]}, ["made", "ended"]),
        ({"exited": ["3"]}, ["ended"]),
        ({"name": ["^/?en"]}, ["ended"]),
        ({"name": ["e"]}, ["made", "ended"]),
        ({"label": ["group=three", "x"]}, ["runs"]),
        ({"label": ["group=three", "x=2"]}, []),
        ({"before": ["ended"]}, ["runs"]),
        ({"since": ["ended"]}, ["made"]),
        ({"ancestor": ["busybox"]}, ["made", "ended", "runs"]),
        ({"ancestor": ["nosuch"]}, []),
        ({"network": ["none"]}, ["made"]),
        ({"network": ["bridge"]}, ["ended", "runs"]),
        ({"publish": ["80"]}, []),
        ({"publish": ["80-90/udp"]}, []),
        ({"expose": ["53/udp"]}, ["runs"]),
        ({"is-task": ["true"]}, []),
    ],
)
def test_filters(three: Engine, filters: dict[str, list[str]], names: list[str]) -> None:
    assert listed(three, **filters) == names


def test_lists(three: Engine) -> None:
    with three.http() as client:
        for query, status in (
            ({"filters": '{"nosuch":["x"]}'}, 400),
            ({"filters": '{"status":["sleepy"]}'}, 400),
            ({"filters": "{"}, 400),
        ):
            assert client.get("/v1.44/containers/json", params=query).status_code == status, query
        # The real engine answers 500 to a number that is none.
        assert client.get("/v1.44/containers/json?limit=x").status_code in (400, 500)
        assert len(client.get("/v1.44/containers/json?limit=1").json()) == 1
        running = client.get("/v1.44/containers/json").json()
        entry = next(entry for entry in running if entry["Names"] == ["/runs"])
        size = client.get("/v1.44/containers/json?size=1&all=1").json()[-1]
    assert {"SizeRootFs"} <= set(size)
    assert entry["Image"] == "busybox"
    assert entry["ImageID"].startswith("sha256:")
    assert entry["Command"] == "sleep 600"
    assert entry["State"] == "running"
    assert re.fullmatch(r"Up (\d+ seconds?|Less than a second|About a minute)", entry["Status"])
    assert entry["HostConfig"]["NetworkMode"] in ("default", "bridge")
    assert entry["Labels"] == {"group": "three", "x": "1"}
    ports = sorted(entry["Ports"], key=lambda port: port["PrivatePort"])
    assert ports[0] == {"PrivatePort": 53, "Type": "udp"}
    assert ports[1] | {"PublicPort": 0} == {
        "IP": "127.0.0.1",
        "PrivatePort": 80,
        "PublicPort": 0,
        "Type": "tcp",
    }
    assert three.out("port", "runs") == f"80/tcp -> 127.0.0.1:{ports[1]['PublicPort']}"
    shown = three.out("ps", "-a", "--filter", "name=^/ended$", "--format", "{{.Status}}")
    assert shown.startswith("Exited (3) ")


def test_inspect(three: Engine) -> None:
    found = three.inspect("runs")
    state = found["State"]
    assert set(state) >= {
        "Status", "Running", "Paused", "Restarting", "OOMKilled", "Dead", "Pid", "ExitCode", "Error",
        "StartedAt", "FinishedAt",
    }  # fmt: skip
    assert state["FinishedAt"] == "0001-01-01T00:00:00Z"
    assert (found["Path"], found["Args"]) == ("sleep", ["600"])
    assert found["Config"]["Image"] == "busybox"
    assert found["Config"]["Hostname"] == found["Id"][:12]
    assert found["Config"]["ExposedPorts"] == {"53/udp": {}, "80/tcp": {}}
    assert found["Config"]["Cmd"] == ["sleep", "600"]
    assert found["HostConfig"]["PortBindings"] == {"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": ""}]}
    assert found["HostConfig"]["IpcMode"] == "private"
    assert found["HostConfig"]["ShmSize"] == 64 << 20
    assert found["HostConfig"]["RestartPolicy"] == {"Name": "no", "MaximumRetryCount": 0}
    assert found["HostConfig"]["LogConfig"] == {"Type": "json-file", "Config": {}}
    assert "/proc/kcore" in found["HostConfig"]["MaskedPaths"]
    assert "/proc/sys" in found["HostConfig"]["ReadonlyPaths"]
    network = found["NetworkSettings"]["Networks"]["bridge"]
    assert re.fullmatch(r"[0-9.]+", network["IPAddress"])
    assert network["Gateway"]
    assert network["IPPrefixLen"] > 0
    assert re.fullmatch(r"(..:){5}..", network["MacAddress"])
    assert found["NetworkSettings"]["SandboxKey"]
    assert set(found["NetworkSettings"]["Ports"]) == {"53/udp", "80/tcp"}
    assert found["LogPath"].endswith("-json.log")
    for key in ("HostsPath", "HostnamePath", "ResolvConfPath"):
        assert found["Id"] in found[key]
    ended = three.inspect("ended")
    assert ended["State"]["Pid"] == 0
    assert ended["State"]["FinishedAt"] > ended["State"]["StartedAt"] > "2"
    assert ended["NetworkSettings"]["Networks"]["bridge"]["IPAddress"] == ""
    with three.http() as client:
        sized = client.get("/v1.44/containers/runs/json?size=1").json()
    assert sized["SizeRootFs"] > 0
    assert sized["SizeRw"] >= 0


def test_top(three: Engine) -> None:
    with three.http() as client:
        shown = client.get("/v1.44/containers/runs/top").json()
        chosen = client.get("/v1.44/containers/runs/top?ps_args=-o%20pid,args").json()
        assert client.get("/v1.44/containers/ended/top").status_code in (409, 500)
    assert shown["Titles"] == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert [row[-1] for row in shown["Processes"]] == ["sleep 600"]
    assert chosen["Titles"] == ["PID", "COMMAND"]
    assert len(chosen["Processes"]) == 1


def test_images(engine: Engine) -> None:
    id = engine.inspect("busybox")["Id"]
    engine.out("tag", "busybox", "contract/other:v1")
    with engine.http() as client:
        found = client.get("/v1.44/images/contract/other:v1/json").json()
        assert found["Id"] == id
        assert "contract/other:v1" in found["RepoTags"]
        assert (found["Os"], found["Architecture"]) == ("linux", "amd64")
        assert len(found["RootFS"]["Layers"]) == 1
        assert found["Size"] > 100_000
        assert client.get(f"/v1.44/images/{id.removeprefix('sha256:')[:10]}/json").json()["Id"] == id
        query = {"filters": json.dumps({"reference": ["contract/*"]})}
        listed_images = client.get("/v1.44/images/json", params=query).json()
        assert [image["RepoTags"] for image in listed_images] == [["contract/other:v1"]] or any(
            "contract/other:v1" in image["RepoTags"] for image in listed_images
        )
        history = client.get("/v1.44/images/contract/other:v1/history").json()
        assert history[0]["Id"] == id
        engine.out("create", "--name", "uses", "contract/other:v1", "true")
        assert client.post("/v1.44/images/nosuch/tag?repo=a&tag=b").status_code == 404
        assert client.post("/v1.44/images/busybox/tag?repo=UPPER&tag=b").status_code == 400
    done = engine.out("rmi", "contract/other:v1")
    assert done == "Untagged: contract/other:v1"
    assert engine.inspect("uses")["Config"]["Image"] == "contract/other:v1"
    assert engine.docker("rmi", "contract/other:v1").returncode == 1


def test_an_image_in_use_stays(engine: Engine) -> None:
    engine.import_busybox("contract/used")
    engine.out("run", "-d", "--name", "user", "contract/used", "sleep", "60")
    done = engine.docker("rmi", "contract/used")
    assert done.returncode == 1
    assert "conflict" in done.stderr.lower()
    assert engine.docker("run", "--rm", "contract/used", "true").returncode == 0
    engine.out("rm", "-f", "user")
    assert engine.out("rmi", "contract/used").startswith("Untagged: contract/used:latest")


def test_networks(three: Engine) -> None:
    with three.http() as client:
        networks: list[dict[str, Any]] = client.get("/v1.44/networks").json()
        kinds = {network["Name"]: network["Driver"] for network in networks}
        assert {"bridge": "bridge", "host": "host", "none": "null"}.items() <= kinds.items()
        bridge = client.get("/v1.44/networks/bridge").json()
        assert client.get(f"/v1.44/networks/{bridge['Id'][:12]}").json()["Name"] == "bridge"
        query = {"filters": json.dumps({"driver": ["null"]})}
        assert [n["Name"] for n in client.get("/v1.44/networks", params=query).json()] == ["none"]
        assert client.delete("/v1.44/networks/bridge").status_code == 403
    assert (bridge["Scope"], bridge["Internal"], bridge["Attachable"]) == ("local", False, False)
    config = bridge["IPAM"]["Config"][0]
    found = three.inspect("runs")
    member = bridge["Containers"][found["Id"]]
    address = found["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
    assert member["Name"] == "runs"
    assert member["IPv4Address"].split("/")[0] == address
    assert member["IPv4Address"].split("/")[1] == config["Subnet"].split("/")[1]


def test_versions(engine: Engine) -> None:
    with engine.http() as client:
        ping = client.get("/_ping")
        assert (ping.status_code, ping.text) == (200, "OK")
        newest, least = ping.headers["api-version"], client.get("/version").json()["MinAPIVersion"]
        assert least == "1.24"
        for version in ("v1.24", "v1.30", "v1.41", f"v{newest}"):
            about = client.get(f"/{version}/version").json()
            assert (about["ApiVersion"], about["Os"]) == (newest, "linux")
            assert isinstance(client.get(f"/{version}/containers/json?all=1").json(), list)
            made = client.post(f"/{version}/containers/create", json={"Image": "busybox", "Cmd": ["true"]})
            assert made.status_code == 201, made.text
            id = made.json()["Id"]
            older = version in ("v1.24", "v1.30")
            mode = client.get(f"/{version}/containers/{id}/json").json()["HostConfig"]["IpcMode"]
            assert mode == ("shareable" if older else "private")
            assert client.post(f"/{version}/containers/{id}/start").status_code == 204
            assert client.post(f"/{version}/containers/{id}/wait").json()["StatusCode"] == 0
            assert client.delete(f"/{version}/containers/{id}").status_code == 204
        assert client.get("/containers/json").status_code == 200
        assert client.head("/_ping").status_code == 200
        new = client.get("/v1.99/info")
        assert new.status_code == 400
        assert new.json()["message"] == (
            f"client version 1.99 is too new. Maximum supported API version is {newest}"
        )
        old = client.get("/v1.12/info")
        assert old.status_code == 400
        assert old.json()["message"].startswith(
            "client version 1.12 is too old. Minimum supported API version is 1.24"
        )
        short = client.get("/v1/info")
        assert short.status_code == 400
        assert short.json()["message"].startswith("client version 1 is too old.")
        for path in ("/vx.y/info", "/v1.44/", "/v1.44"):
            assert client.get(path).status_code == 404, path
    for version in ("1.24", "1.40", newest):
        done = engine.docker("version", "-f", "{{.Client.APIVersion}}", env={"DOCKER_API_VERSION": version})
        assert done.stdout.strip() == version
        run = engine.docker("run", "--rm", "busybox", "echo", "ok", env={"DOCKER_API_VERSION": version})
        assert run.stdout == "ok\n", run.stderr

"""/images over the API socket: statuses, messages and shapes, and the docker client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.archives import saved_image, tar
from tests.support.engine import Engine

pytestmark = pytest.mark.root


def message(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["message"]


def test_load_list_remove(engine: Engine) -> None:
    _, archive = saved_image(["img:1"], [{"f": b"12345"}])
    with engine.http() as http:
        answer = http.post("/v1.45/images/load", content=archive)
        assert (answer.status_code, answer.json()) == (200, {"stream": "Loaded image: img:1\n"})
        filters = json.dumps({"reference": ["img"]})
        [entry] = http.get("/v1.45/images/json", params={"filters": filters}).json()
        image_id, size = entry["Id"], entry["Size"]
        assert (entry["RepoTags"], entry["RepoDigests"]) == (["img:1"], [f"img@{image_id}"])
        assert "VirtualSize" not in entry
        [entry] = http.get("/v1.43/images/json", params={"filters": filters}).json()
        assert entry["VirtualSize"] == size
        assert http.get(f"/images/{image_id}/json").json()["RepoTags"] == ["img:1"]
        assert http.post("/images/img:1/tag", params={"repo": "x.io/y", "tag": "2"}).status_code == 201
        assert http.get("/images/x.io/y:2/history").json()[0:1] == []
        assert http.delete("/images/x.io/y:2").json() == [{"Untagged": "x.io/y:2"}]
        [usage] = [image for image in http.get("/system/df").json()["Images"] if image["Id"] == image_id]
        assert (usage["Containers"], usage["SharedSize"]) == (0, 0)
        gone = http.delete("/images/img:1").json()
        assert gone == [{"Untagged": "img:1"}, {"Deleted": image_id}]
        assert message(http.get("/images/img:1/json")) == (404, "No such image: img:1")


def test_one_platform_of_an_archive(engine: Engine) -> None:
    with engine.http() as http:
        query = {"platform": json.dumps({"os": "linux", "architecture": "arm64"})}
        answer = http.post("/v1.48/images/load", params=query, content=saved_image(["img:2"], [])[1])
        refused = (404, "image img:2 doesn't provide the requested platform (linux/arm64)")
        assert message(answer) == refused
        assert http.get("/images/img:2/json").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/images/nope/json", (404, "No such image: nope:latest")),
        (
            "GET",
            "/images/NOPE/json",
            (400, "invalid reference format: repository name (library/NOPE) must be lowercase"),
        ),
        ("POST", "/images/nope/tag?repo=a", (404, "No such image: nope:latest")),
        (
            "POST",
            "/images/busybox/tag?repo=UP",
            (400, "invalid reference format: repository name (library/UP) must be lowercase"),
        ),
        ("POST", "/images/busybox/tag?repo=a&tag=b%20c", (400, "invalid tag format")),
        ("DELETE", "/images/nope", (404, "No such image: nope:latest")),
        ("GET", "/images/json?filters=x", (400, "invalid filter")),
        ("GET", '/images/json?filters={"foo":["x"]}', (400, "invalid filter 'foo'")),
        ("GET", '/images/json?filters={"since":["x"]}', (404, "No such image: x:latest")),
        ("POST", "/images/create?fromImage=busybox:x@y", (400, "invalid reference format")),
        (
            "POST",
            "/images/create?fromSrc=-&changes=FOO%20bar",
            (400, "FOO is not a valid change command"),
        ),
    ],
)
def test_refused(method: str, path: str, expected: tuple[int, str], engine: Engine) -> None:
    with engine.http() as http:
        assert message(http.request(method, f"/v1.45{path}")) == expected


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/images/create?fromImage=scratch", (403, "'scratch' is a reserved name")),
        ("POST", "/images/create?fromImage=a&tag=b%20c", (400, "invalid tag format")),
        (
            "POST",
            "/images/create?fromImage=a&platform=a/b/c/d",
            (400, '"a/b/c/d": cannot parse platform specifier: invalid argument'),
        ),
        ("POST", "/images/a@sha256:00/push", (400, "invalid reference format")),
        ("GET", "/distribution/scratch/json", (400, "'scratch' is a reserved name")),
        ("GET", "/images/search?term=a&limit=101", (400, "limit 101 is outside the range of [1, 100]")),
        (
            "POST",
            "/images/create?fromImage=127.0.0.1:1/a",
            (500, 'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused'),
        ),
    ],
)
def test_refused_of_registries(method: str, path: str, expected: tuple[int, str], engine: Engine) -> None:
    with engine.http() as http:
        assert message(http.request(method, f"/v1.45{path}")) == expected


def test_a_push_of_nothing(engine: Engine) -> None:
    with engine.http() as http:
        answer = http.post("/v1.45/images/a.example/b/push?tag=1")
    assert answer.status_code == 200
    first, second = answer.text.splitlines()
    assert json.loads(first) == {"status": "The push refers to repository [a.example/b]"}
    told = "tag does not exist: a.example/b:1"
    assert json.loads(second) == {"errorDetail": {"message": told}, "error": told}


@pytest.mark.parametrize(
    "data", [b"hello\n", saved_image(["a:1"], [{"f": bytes(9000)}])[1][:7000], tar({"../x": b"1"})]
)
def test_bad_archives(data: bytes, engine: Engine) -> None:
    before = stored(engine)
    with engine.http() as http:
        for path in ("load", "create?fromSrc=-&repo=bad"):
            answer = http.post(f"/v1.45/images/{path}", content=data)
            assert answer.status_code == 400
            assert set(answer.json()) == {"message"}
    engine.until("everything is gone", lambda: stored(engine) == before)


def stored(engine: Engine) -> list[Any]:
    """What lies in the stores, by name."""
    root = Path(engine.state) / "lib"
    folders = ("containerd/content/blobs/sha256", "containerd/content/ingest", "containerd/snapshots")
    return [sorted(path.name for path in (root / folder).iterdir()) for folder in folders]


def test_docker_client(engine: Engine, tmp_path: Path) -> None:
    _, archive = saved_image(["cli:1"], [{"f": b"1"}])
    (tmp_path / "a.tar").write_bytes(archive)
    assert engine.out("load", "-i", str(tmp_path / "a.tar")) == "Loaded image: cli:1"
    assert engine.out("images", "-q", "cli:1") == engine.out("images", "-q", "cli")
    (tmp_path / "r.tar").write_bytes(tar({"x": b"1"}))
    engine.out("import", "-c", "CMD x", "-m", "why", str(tmp_path / "r.tar"), "cli:2")
    assert "why" in engine.out("history", "cli:2")
    assert engine.out("image", "inspect", "-f", "{{.Config.Cmd}}", "cli:2") == "[/bin/sh -c x]"
    engine.out("rmi", "cli:1", "cli:2")
    done = engine.docker("rmi", "cli:1")
    assert (done.returncode, "No such image: cli:1" in done.stderr) == (1, True)

"""`docker commit`: images of containers, running and stopped, that run again."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tests.support.engine import Engine

pytestmark = pytest.mark.root


def events_of(engine: Engine, kind: str, actor: str) -> list[dict[str, Any]]:
    """The events about one container or image until now."""
    with engine.http() as http:
        now = http.get("/info").json()["SystemTime"]
        query = {"since": "1", "until": now, "filters": json.dumps({"type": [kind]})}
        lines = http.get("/events", params=query).text.splitlines()
    return [event for event in map(json.loads, lines) if event["Actor"]["ID"] == actor]


def test_a_stopped_container(engine: Engine) -> None:
    engine.out("run", "--name", "made", "-e", "A=1", "busybox", "sh", "-c", "echo kept >/new; rm /bin/vi")
    before = engine.inspect("made")["State"]["FinishedAt"]
    committed = engine.out(
        "commit", "-m", "why", "-a", "who", "-c", 'CMD ["cat","/new"]', "-c", "ENV B=2", "made", "made:1"
    )
    with engine.http() as http:
        image = http.get("/images/made:1/json").json()
        parent = http.get("/images/busybox/json").json()
        [newest, *older] = http.get("/images/made:1/history").json()
    assert image["Id"] == committed
    assert image["RootFS"]["Layers"][:-1] == parent["RootFS"]["Layers"]
    assert (image["Author"], image["Comment"]) == ("who", "why")
    assert image["Config"]["Cmd"] == ["cat", "/new"]
    assert {"A=1", "B=2"} <= set(image["Config"]["Env"])
    assert newest["CreatedBy"] == "sh -c echo kept >/new; rm /bin/vi"
    assert (newest["Comment"], newest["Size"] > 0, len(older)) == ("why", True, 1)
    assert engine.out("run", "--rm", "made:1") == "kept"
    assert engine.docker("run", "--rm", "made:1", "ls", "/bin/vi").returncode == 1
    [event] = [
        event
        for event in events_of(engine, "container", engine.inspect("made")["Id"])
        if event["Action"] == "commit"
    ]
    assert (
        event["Actor"]["Attributes"]
        | {
            "comment": "why",
            "imageID": committed,
            "imageRef": "made:1",
        }
        == event["Actor"]["Attributes"]
    )
    assert engine.inspect("made")["State"]["FinishedAt"] == before
    engine.out("rmi", "made:1")


def test_a_running_container_is_frozen_meanwhile(engine: Engine) -> None:
    container = engine.out("run", "-d", "busybox", "sh", "-c", "echo 1 >/f; sleep 1000")
    engine.until("written", lambda: engine.docker("exec", container, "test", "-s", "/f").returncode == 0)
    for options, expected in (((), ["pause", "unpause", "commit"]), (("--pause=false",), ["commit"])):
        start = len(events_of(engine, "container", container))
        image = engine.out("commit", *options, container)
        assert engine.inspect(container)["State"]["Status"] == "running"
        told = [event["Action"] for event in events_of(engine, "container", container)[start:]]
        assert told == expected
        assert engine.out("run", "--rm", image, "cat", "/f") == "1"
        with engine.http() as http:
            assert http.get(f"/images/{image}/json").json()["RepoTags"] == []
        engine.out("rmi", "-f", image)
    engine.out("pause", container)
    image = engine.out("commit", container)
    assert engine.inspect(container)["State"]["Status"] == "paused"
    engine.out("unpause", container)
    engine.out("rmi", image)


def test_nothing_changed(engine: Engine) -> None:
    container = engine.out("create", "busybox", "true")
    engine.out("commit", container, "same:1")
    with engine.http() as http:
        layers = [http.get(f"/images/{name}/json").json()["RootFS"] for name in ("same:1", "busybox")]
    assert layers[0] == layers[1]
    assert engine.docker("run", "--rm", "same:1").returncode == 0
    engine.out("rmi", "same:1")


def test_an_entrypoint_discards_the_command(engine: Engine) -> None:
    container = engine.out("create", "busybox", "echo", "old")
    engine.out("commit", "-c", 'ENTRYPOINT ["echo","new"]', container, "entry:1")
    assert engine.out("run", "--rm", "entry:1") == "new"
    engine.out("rmi", "entry:1")


def test_several_at_once(engine: Engine) -> None:
    container = engine.out("run", "-d", "busybox", "sh", "-c", "echo 1 >/f; sleep 1000")
    codes: list[int] = []

    def one(number: int) -> None:
        codes.append(engine.docker("commit", container, f"many:{number}").returncode)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [0, 0, 0]
    assert engine.inspect(container)["State"]["Status"] == "running"
    for number in range(3):
        engine.out("rmi", f"many:{number}")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"container": "nope"}, (404, "No such container: nope")),
        ({"repo": "a@b"}, (400, "invalid reference format")),
        ({"repo": "a", "tag": "/"}, (400, "invalid tag format")),
        ({"changes": "RUN x"}, (400, "RUN is not a valid change command")),
    ],
)
def test_what_is_refused(engine: Engine, query: dict[str, str], expected: tuple[int, str]) -> None:
    container = engine.out("create", "busybox", "true")
    with engine.http() as http:
        answer = http.post("/commit", params={"container": container, **query})
        assert (answer.status_code, answer.json()["message"]) == expected
        images = http.get("/images/json").json()
    assert all(image["RepoTags"] for image in images)

"""`docker logs` and its options, against lines whose times are known from the log itself."""

from __future__ import annotations

import time

import pytest

from tests.support.engine import Engine

pytestmark = [pytest.mark.root]

SCRIPT = "for i in 1 2 3 4 5; do echo out $i; echo err $i >&2; sleep 0.05; done"


@pytest.fixture
def spoken(engine: Engine) -> Engine:
    """The engine with a container `spoken` that has said ten lines."""
    engine.docker("run", "--name", "spoken", "busybox", "sh", "-c", SCRIPT)
    return engine


def test_streams(spoken: Engine) -> None:
    done = spoken.docker("logs", "spoken")
    assert done.stdout.splitlines() == [f"out {i}" for i in range(1, 6)]
    assert done.stderr.splitlines() == [f"err {i}" for i in range(1, 6)]
    with spoken.http() as client:
        for query, words in (("stderr=1", b"err"), ("stdout=1", b"out")):
            reply = client.get(f"/v1.44/containers/spoken/logs?{query}")
            assert reply.headers["content-type"] == "application/vnd.docker.multiplexed-stream"
            frames = reply.content
            assert frames[:8] == bytes([2 if words == b"err" else 1, 0, 0, 0, 0, 0, 0, 6])
            assert frames.count(words) == 5
        old = client.get("/v1.41/containers/spoken/logs?stdout=1")
        assert old.headers["content-type"] == "application/vnd.docker.raw-stream"
        none = client.get("/v1.44/containers/spoken/logs")
        assert none.status_code == 400
        assert none.json() == {"message": "Bad parameters: you must choose at least one stream"}


def test_tail(spoken: Engine) -> None:
    assert spoken.docker("logs", "--tail", "0", "spoken").stdout == ""
    last = spoken.docker("logs", "--tail", "3", "spoken")
    assert sorted((last.stdout + last.stderr).splitlines()) == ["err 4", "err 5", "out 5"]
    assert len(spoken.docker("logs", "--tail", "100", "spoken").stdout.splitlines()) == 5
    assert len(spoken.docker("logs", "--tail", "all", "spoken").stdout.splitlines()) == 5


def test_times(spoken: Engine) -> None:
    lines = spoken.docker("logs", "-t", "spoken").stdout.splitlines()
    moments = [line.split(" ", 1)[0] for line in lines]
    assert moments == sorted(moments)
    assert all(moment.endswith("Z") and "." in moment for moment in moments)
    assert [line.split(" ", 1)[1] for line in lines] == [f"out {i}" for i in range(1, 6)]
    since = spoken.docker("logs", "--since", moments[2], "spoken").stdout.splitlines()
    assert since == ["out 3", "out 4", "out 5"]
    until = spoken.docker("logs", "--until", moments[2], "spoken").stdout.splitlines()
    assert until == ["out 1", "out 2", "out 3"]
    assert spoken.docker("logs", "--since", "2100-01-01T00:00:00Z", "spoken").stdout == ""
    with spoken.http() as client:
        for option in ("since", "until"):
            reply = client.get(f"/v1.44/containers/spoken/logs?stdout=1&{option}=yesterday")
            assert reply.status_code in (400, 500)


def test_follow_ends_with_the_container(engine: Engine) -> None:
    began = time.monotonic()
    engine.out("run", "-d", "--name", "speaks", "busybox", "sh", "-c", "echo one; sleep 0.5; echo two")
    assert engine.docker("logs", "-f", "speaks").stdout == "one\ntwo\n"
    assert time.monotonic() - began > 0.5
    assert engine.docker("logs", "-f", "--tail", "1", "speaks").stdout == "two\n"


def test_what_has_no_log(engine: Engine) -> None:
    engine.out("run", "--log-driver", "none", "--name", "mute", "busybox", "echo", "unheard")
    done = engine.docker("logs", "mute")
    assert done.returncode == 1
    assert "configured logging driver does not support reading" in done.stderr


def test_terminal_log_is_raw(engine: Engine) -> None:
    engine.out("run", "-t", "--name", "term", "busybox", "sh", "-c", "echo out; echo err >&2")
    with engine.http() as client:
        reply = client.get("/v1.44/containers/term/logs?stdout=1&stderr=1")
    assert reply.headers["content-type"] == "application/vnd.docker.raw-stream"
    assert reply.content == b"out\r\nerr\r\n"


def test_long_and_unended_lines(engine: Engine) -> None:
    script = "head -c 40000 /dev/zero | tr '\\0' x; echo; printf end"
    engine.out("run", "--name", "long", "busybox", "sh", "-c", script)
    assert engine.docker("logs", "long").stdout == "x" * 40000 + "\nend"
    assert engine.docker("logs", "--tail", "1", "long").stdout == "end"

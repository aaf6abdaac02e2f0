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


def test_the_driver_local(engine: Engine) -> None:
    engine.docker("run", "--name", "locally", "--log-driver", "local", "busybox", "sh", "-c", SCRIPT)
    done = engine.docker("logs", "locally")
    assert done.stdout.splitlines() == [f"out {i}" for i in range(1, 6)]
    assert done.stderr.splitlines() == [f"err {i}" for i in range(1, 6)]
    last = engine.docker("logs", "--tail", "3", "locally")
    assert sorted((last.stdout + last.stderr).splitlines()) == ["err 4", "err 5", "out 5"]
    moments = [line.split(" ")[0] for line in engine.docker("logs", "-t", "locally").stdout.splitlines()]
    since = engine.docker("logs", "--since", moments[2], "locally")
    assert since.stdout.splitlines() == ["out 3", "out 4", "out 5"]
    found = engine.inspect("locally")
    assert found["LogPath"] == ""
    assert found["HostConfig"]["LogConfig"] == {"Type": "local", "Config": {}}


def test_rotated_and_compressed(engine: Engine) -> None:
    """What is kept is the end of what was said."""
    options = ("max-size=20k", "max-file=3", "compress=true")
    words = [word for option in options for word in ("--log-opt", option)]
    script = "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done"
    engine.docker(
        "run", "--name", "rotated", "--log-driver", "json-file", *words, "busybox", "sh", "-c", script
    )

    def kept() -> list[int]:
        return [int(line) for line in engine.docker("logs", "rotated").stdout.splitlines()]

    numbers = kept()
    assert numbers == list(range(numbers[0], 2000))
    assert 200 < len(numbers) < 1500
    tail = engine.docker("logs", "--tail", "300", "rotated").stdout.splitlines()
    assert tail == [str(number) for number in range(1700, 2000)]


def test_attributes(engine: Engine) -> None:
    engine.out(
        *("run", "--name", "tagged", "--log-opt", "tag={{.Name}}", "--log-opt", "labels=a"),
        *("--log-opt", "env=X", "-e", "X=y z", "--label", "a=1", "busybox", "echo", "hi"),
    )
    assert engine.docker("logs", "--details", "tagged").stdout == "X=y+z,a=1,tag=tagged hi\n"
    assert engine.docker("logs", "tagged").stdout == "hi\n"


def test_wrong_options(engine: Engine) -> None:
    for driver, option, text in (
        ("json-file", "foo=1", "unknown log opt 'foo' for json-file log driver"),
        ("local", "labels=1", "unknown log opt 'labels' for log driver local"),
        ("journald", "max-size=1m", "unknown log opt 'max-size' for journald log driver"),
        ("json-file", "mode=x", "logger: logging mode not supported: x"),
    ):
        done = engine.docker("create", "--log-driver", driver, "--log-opt", option, "busybox", "true")
        assert done.returncode
        assert text in done.stderr

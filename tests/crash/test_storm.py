"""Containers run and end while both daemons are killed over and over: nothing is lost, told twice or wrong.

A request whose reply was under way at a kill may be asked again, as any client of a service that restarts
does. What has been answered holds; a client that waits gets its answer whatever is killed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.support.engine import Engine
from tests.support.remains import remains

pytestmark = [pytest.mark.root, pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(180)]

CONTAINERS = 20  # all at once
LINES = 60
STORM = 15.0  # seconds
BETWEEN = 1.5  # seconds from one kill to the next


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine()
    try:
        engine.up()
        engine.import_busybox()
        yield engine
    finally:
        engine.purge()


class Storm(threading.Thread):
    """Kills the two daemons by turns for a while."""

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine
        self.kills = 0

    def run(self) -> None:
        end = time.monotonic() + STORM
        for service in itertools.cycle(("dockerd-api", "containerd-svc")):
            time.sleep(BETWEEN)
            if time.monotonic() > end:
                return
            with contextlib.suppress(ProcessLookupError):
                self._engine.kill(service)
                self.kills += 1


@dataclass
class Seen:
    """What one container's clients were told."""

    name: str
    code: int
    waited: str
    followed: str


def run(engine: Engine, number: int) -> Seen:
    """A container from its create to its end."""
    name, code = f"c{number}", number * 11 % 97
    pause = 0.02 + number % 5 * 0.05
    script = (
        f"i=0; while [ $i -lt {LINES} ]; do echo {name} $i; i=$((i+1)); sleep {pause:.2f}; done; exit {code}"
    )
    body = {"Image": "busybox", "Cmd": ["sh", "-c", script]}
    with engine.http() as client:
        asked(client, "POST", f"/containers/create?name={name}", (201, 409), body)
        start(client, name)
    with (
        engine.start("wait", name, stdout=-1, stderr=-1) as waiting,
        engine.start("logs", "-f", name, stdout=-1, stderr=-1) as following,
    ):
        waited, wait_errors = waiting.communicate(timeout=60)
        followed, log_errors = following.communicate(timeout=60)
    assert (waiting.returncode, wait_errors) == (0, ""), name
    assert (following.returncode, log_errors) == (0, ""), name
    return Seen(name, code, waited, followed)


def start(client: httpx.Client, name: str) -> None:
    """Start it once: a start that was cut short is looked after before it is asked for again."""

    def begun() -> bool:
        with contextlib.suppress(httpx.TransportError):
            if client.post(f"/containers/{name}/start").status_code in (204, 304):
                return True
        state = asked(client, "GET", f"/containers/{name}/json", (200,)).json()["State"]
        return bool(state["StartedAt"] > "0001-01-02")

    until(begun)


def asked(
    client: httpx.Client, method: str, path: str, expected: tuple[int, ...], body: Any = None
) -> httpx.Response:
    """The reply to a request that is repeated until there is one."""
    replies: list[httpx.Response] = []

    def answered() -> bool:
        with contextlib.suppress(httpx.TransportError):
            replies.append(client.request(method, path, json=body))
        return bool(replies)

    until(answered)
    assert replies[-1].status_code in expected, replies[-1].text
    return replies[-1]


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_storm(engine: Engine) -> None:
    began = time.time()
    storm = Storm(engine)
    with ThreadPoolExecutor(CONTAINERS) as pool:
        storm.start()
        runs = [pool.submit(run, engine, number) for number in range(CONTAINERS)]
        seen = [one.result() for one in runs]
        storm.join()
    assert storm.kills >= 8

    for one in seen:
        lines = "".join(f"{one.name} {number}\n" for number in range(LINES))
        assert one.waited == f"{one.code}\n", one.name
        assert one.followed == lines, one.name
        assert engine.out("logs", one.name) + "\n" == lines, one.name
        state = engine.inspect(one.name)["State"]
        assert (state["Status"], state["ExitCode"], state["Error"]) == ("exited", one.code, "")

    told = engine.out(
        "events", "--since", f"{began:.6f}", "--until", f"{time.time():.6f}", "--format", "json"
    )
    events = [json.loads(line) for line in told.splitlines()]
    died = Counter(
        (event["Actor"]["Attributes"]["name"], int(event["Actor"]["Attributes"]["exitCode"]))
        for event in events
        if event["Action"] == "die"
    )
    assert died == Counter({(one.name, one.code): 1 for one in seen})
    for action in ("create", "start"):
        names = Counter(e["Actor"]["Attributes"]["name"] for e in events if e["Action"] == action)
        assert names == Counter(one.name for one in seen), action

    engine.out("rm", *(one.name for one in seen))
    engine.until("nothing left", lambda: not remains(engine.state), explain=lambda: remains(engine.state))

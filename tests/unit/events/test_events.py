"""Events: stored, numbered, filtered as the real engine filters, told without gap or double."""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path

import errdefs
import pytest
from dockerd_api.engine import events as module
from dockerd_api.engine.events import MIGRATION, Event, Events, filters_of, included
from storage.database import Database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path / "engine.db", [MIGRATION])
    yield opened
    await opened.close()


async def listen(events: Events, count: int, **options: object) -> list[Event]:
    got = []
    async with asyncio.timeout(20):
        async for event in events.iterate(**options):  # type: ignore[arg-type]
            got.append(event)
            if len(got) == count:
                break
    return got


async def test_message_has_dockers_shape(database: Database) -> None:
    events = await Events.open(database)
    await events.publish("container", "start", "abc", {"name": "t", "image": "busybox"})
    (event,) = await listen(events, 1, after=0)
    document = json.loads(event.line)
    assert list(document) == ["status", "id", "from", "Type", "Action", "Actor", "scope", "time", "timeNano"]
    assert document["Actor"] == {"ID": "abc", "Attributes": {"image": "busybox", "name": "t"}}
    assert (document["status"], document["from"], document["scope"]) == ("start", "busybox", "local")
    assert document["time"] == document["timeNano"] // 1_000_000_000
    assert abs(document["timeNano"] - time.time_ns()) < 60e9
    await events.publish("network", "connect", "net", {"container": "abc"})
    (event,) = await listen(events, 1, after=event.cursor)
    assert "status" not in json.loads(event.line)


async def test_listeners_miss_nothing_while_events_come(database: Database) -> None:
    events = await Events.open(database)
    total = 3000

    async def publish() -> None:
        for first in range(0, total, 50):
            await asyncio.gather(
                *(events.publish("container", "die", str(n), {}) for n in range(first, first + 50))
            )

    quick = asyncio.create_task(listen(events, total, after=0))
    await publish()
    late = await listen(events, total, after=0)
    assert [event.cursor for event in await quick] == [event.cursor for event in late]
    assert sorted(int(event.document["Actor"]["ID"]) for event in late) == list(range(total))
    assert all(one.cursor < other.cursor for one, other in itertools.pairwise(late))
    again = await Events.open(database)
    assert again.last == late[-1].cursor
    middle = late[1234].cursor
    assert [e.cursor for e in await listen(again, 10, after=middle)] == [e.cursor for e in late[1235:1245]]


async def test_event_in_the_transaction_of_its_change(database: Database) -> None:
    events = await Events.open(database)
    listener = asyncio.create_task(listen(events, 1, after=0))

    def fails(connection: sqlite3.Connection) -> None:
        events.record(connection, "container", "die", "never", {})
        raise errdefs.Conflict("the change is undone, and its event with it")

    with pytest.raises(errdefs.Conflict):
        await database.write(fails, durable=False)
    await database.write(lambda c: events.record(c, "container", "die", "one", {}), durable=False)
    events.told()
    assert [event.document["Actor"]["ID"] for event in await listener] == ["one"]


async def test_until_ends_in_past_and_future(database: Database) -> None:
    events = await Events.open(database)
    await events.publish("container", "one", "a", {})
    await events.publish("container", "two", "a", {})
    first = (await listen(events, 1, after=0))[0].cursor
    past = [e.document["Action"] async for e in events.iterate(after=0, until=first)]
    assert past == ["one"]
    soon = asyncio.create_task(listen(events, 9, after=first, until=time.time_ns() + 300_000_000))
    await asyncio.sleep(0.05)
    await events.publish("container", "three", "a", {})
    assert [e.document["Action"] for e in await soon] == ["two", "three"]


async def test_old_events_are_deleted(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 100)
    events = await Events.open(database)
    for number in range(600):
        await events.publish("container", "die", str(number), {})
    count = await database.read(lambda c: c.execute("SELECT count(*) FROM events").fetchone()[0])
    assert 100 <= count < 600
    assert (await listen(await Events.open(database), 1, after=0))[0].document["Actor"]["ID"] == str(
        600 - count
    )


def message(type: str, action: str, id: str, **attributes: str) -> dict[str, object]:
    return {"Type": type, "Action": action, "Actor": {"ID": id, "Attributes": attributes}, "scope": "local"}


START = message("container", "start", "abcdef", name="web", image="repo/app:1", tier="front")
HEALTH = message("container", "health_status: healthy", "abcdef", name="web")
PULL = message("image", "pull", "busybox:latest", name="busybox")


@pytest.mark.parametrize(
    ("document", "filters", "passes"),
    [
        (START, {}, True),
        (START, {"event": ["start"]}, True),
        (START, {"event": ["sta"]}, False),
        (START, {"event": ["stop", "start"]}, True),
        (HEALTH, {"event": ["health_status"]}, True),
        (HEALTH, {"event": ["health_status: healthy"]}, True),
        (START, {"type": ["network"]}, False),
        (START, {"type": ["container"], "event": ["start"]}, True),
        (START, {"container": ["web"]}, True),
        (START, {"container": ["abc"]}, True),
        (START, {"container": ["xyz"]}, False),
        (PULL, {"container": ["web"]}, False),
        (START, {"image": ["repo/app:1"]}, True),
        (START, {"image": ["repo/app"]}, True),
        (START, {"image": ["repo"]}, False),
        (PULL, {"image": ["busybox"]}, True),
        (START, {"label": ["tier"]}, True),
        (START, {"label": ["tier=front"]}, True),
        (START, {"label": ["tier=back"]}, False),
        (START, {"label": ["tier", "other"]}, False),
        (START, {"scope": ["swarm"]}, False),
        (START, {"type": []}, True),
    ],
)
def test_filters(document: dict[str, object], filters: dict[str, list[str]], passes: bool) -> None:
    assert included(document, filters) is passes


def test_filters_of_both_encodings() -> None:
    assert filters_of("") == {}
    assert filters_of('{"type":["container"]}') == {"type": ["container"]}
    assert filters_of('{"type":{"container":true,"image":true,"x":false}}') == {
        "type": ["container", "image"]
    }
    for bad in ("{", "[]", '"a"', '{"type":"container"}', '{"type":[1]}', "3"):
        with pytest.raises(errdefs.InvalidArgument):
            filters_of(bad)

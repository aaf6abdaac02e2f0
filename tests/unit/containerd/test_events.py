"""containerd_svc.events over a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import errdefs
import pytest
from containerd_svc import events as module
from containerd_svc.events import Event, Events
from pb.containerd.events import ContainerDelete, TaskExit
from storage.database import Database


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[Events]:
    database = await Database.open(path / "meta.db", [module.MIGRATION])
    try:
        yield await Events.open(database)
    finally:
        await database.close()


def exit_of(name: str) -> TaskExit:
    return TaskExit(container_id=name, id=name, pid=1, exit_status=3)


async def take(events: AsyncIterator[Event], count: int) -> list[Event]:
    async with asyncio.timeout(10):
        return [await anext(events) for _ in range(count)]


async def test_events_come_in_order_with_times_of_their_own(tmp_path: Path) -> None:
    async with opened(tmp_path) as events:
        live = (await events.subscribe()).follow()
        first = asyncio.create_task(take(live, 200))
        await asyncio.sleep(0)
        made = await asyncio.gather(
            *(events.publish("moby", "/tasks/exit", exit_of(str(i))) for i in range(200))
        )
        got = await first
        assert [event.at for event in got] == sorted({event.at for event in made})
        assert len(got) == 200
        message = module.unpacked(got[0].type_url, got[0].value)
        assert isinstance(message, TaskExit)
        assert got[0].type_url == "containerd.events.TaskExit"
        assert message.exit_status == 3


async def test_a_subscriber_resumes_behind_its_cursor_also_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as events:
        for number in range(10):
            await events.publish("moby", "/tasks/exit", exit_of(str(number)))
        live = (await events.subscribe(after=0)).follow()
        first = await events.publish("moby", "/tasks/exit", exit_of("live"))
        assert (await take(live, 1))[
            0
        ] == first  # cursor 0 is older than the database: nothing to resume from
        some = (await events.subscribe(after=first.at)).follow()
        second = await events.publish("moby", "/tasks/exit", exit_of("second"))
        assert (await take(some, 1)) == [second]
    async with opened(tmp_path) as events:
        subscription = await events.subscribe(after=first.at)
        assert subscription.resumed
        third = await events.publish("moby", "/tasks/exit", exit_of("third"))
        assert await take(subscription.follow(), 2) == [second, third]
        assert third.at > second.at


async def test_resumption_is_denied_when_events_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEEP", 5)
    monkeypatch.setattr(module, "_TRIM_EVERY", 1)
    async with opened(tmp_path) as events:
        made = [await events.publish("moby", "/tasks/exit", exit_of(str(i))) for i in range(20)]
        assert not (await events.subscribe(after=made[10].at)).resumed
        assert not (await events.subscribe(after=made[-1].at + 10**9)).resumed
        assert (await events.subscribe(after=made[-1].at)).resumed
        kept = await events.subscribe(after=made[14].at)
        assert kept.resumed
        assert await take(kept.follow(), 5) == made[15:]


async def test_a_subscriber_that_lags_behind_memory_reads_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RECENT", 8)
    monkeypatch.setattr(module, "_PAGE", 3)
    async with opened(tmp_path) as events:
        slow = await events.subscribe()
        made = [await events.publish("moby", "/tasks/exit", exit_of(str(i))) for i in range(50)]
        assert await take(slow.follow(), 50) == made


async def test_filters_see_topic_namespace_and_fields(tmp_path: Path) -> None:
    async with opened(tmp_path) as events:
        wanted = (
            await events.subscribe(['topic=="/tasks/exit",event.container_id==b', "namespace==other"])
        ).follow()
        await events.publish("moby", "/tasks/exit", exit_of("a"))
        await events.publish("moby", "/containers/delete", ContainerDelete(id="b"))
        await events.publish("moby", "/tasks/exit", exit_of("b"))
        await events.publish("other", "/tasks/exit", exit_of("a"))
        got = await take(wanted, 2)
        assert [event.namespace for event in got] == ["moby", "other"]


async def test_what_a_failed_change_recorded_is_neither_kept_nor_delivered(tmp_path: Path) -> None:
    async with opened(tmp_path) as events:
        live = (await events.subscribe()).follow()

        def change(connection: object, record: module.Recorder) -> None:
            record("moby", "/tasks/exit", exit_of("lost"))
            raise errdefs.NotFound("no")

        with pytest.raises(errdefs.NotFound):
            await events.transact(change)
        kept = await events.publish("moby", "/tasks/exit", exit_of("kept"))
        assert await take(live, 1) == [kept]


@pytest.mark.parametrize("topic", ["", "tasks", "/", "/a//b", "/a b", "/tasks/"])
async def test_a_bad_topic_is_refused(tmp_path: Path, topic: str) -> None:
    async with opened(tmp_path) as events:
        with pytest.raises(errdefs.InvalidArgument):
            await events.publish("moby", topic, exit_of("a"))

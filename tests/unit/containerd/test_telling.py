"""How far a transfer is, told to clients that read, that do not, and that go away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from containerd_svc.transfer import telling
from containerd_svc.transfer.streams import Streams
from pb.containerd.types.transfer import Progress
from pb.google.protobuf import Any as AnyMessage


async def silent() -> AsyncIterator[AnyMessage]:
    """A client that says nothing."""
    await asyncio.Event().wait()
    yield AnyMessage()


def many() -> list[Progress]:
    """More than a stream holds: 100 blobs, each with many steps."""
    blobs = [f"layer-{number}" for number in range(100)]
    return [
        Progress(event=event, name=name, progress=progress)
        for event, last in (("waiting", 1), ("downloading", 50), ("complete", 1))
        for progress in range(last)
        for name in blobs
    ]


async def test_a_client_that_reads_late_gets_the_newest_of_all() -> None:
    with Streams().registered("moby", "told", silent()) as stream:
        async with asyncio.timeout(5), telling.telling(stream) as tell:
            for progress in many():
                await tell(progress)
                await asyncio.sleep(0)

            async def read() -> list[Progress]:
                return [Progress.parse(message.value) async for message in stream.outgoing()]

            reading = asyncio.create_task(read())
        told = await reading
    assert len(told) < len(many())
    newest = {(each.name, each.event): each for each in many()}
    assert {(each.name, each.event): each for each in told} == newest
    events = [each.event for each in told if each.name == "layer-99"]
    assert events == ["waiting", "downloading", "complete"]


@pytest.mark.parametrize("gone", [False, True])
async def test_a_client_that_never_reads_holds_nothing_back(
    gone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "_LAST_WORDS", 0.05)
    with Streams().registered("moby", "told", silent()) as stream:
        if gone:
            stream.close()
        async with asyncio.timeout(5), telling.telling(stream) as tell:
            for progress in many():
                await tell(progress)
                await asyncio.sleep(0)
    for _ in range(3):  # what was cancelled ends
        await asyncio.sleep(0)
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

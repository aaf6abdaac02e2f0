"""What happened in this shim, in order, for the process above to ask for (buoy.facts.v1.Facts)."""

from __future__ import annotations

import asyncio
import datetime
import os
import time

from betterproto2 import Message
from pb.buoy.facts.v1 import Fact, FactsBase, NextRequest, NextResponse
from pb.containerd.events import TaskOom
from pb.google.protobuf import Any

KEPT = 4096
"""How many facts are kept until they are asked for. A caller that is further behind sees a gap."""
_PER_REPLY = 256
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class Facts(FactsBase):
    """The facts of one shim process; serves `Next` and hands every new fact to whoever waits."""

    def __init__(self) -> None:
        self.epoch = os.urandom(8).hex()
        self._facts: list[Fact] = []
        self._last = 0
        self._last_us = 0
        self._news = asyncio.Event()

    def publish(self, topic: str, event: Message, *, package: str = "containerd.events") -> Fact:
        """Add a fact. topic: containerd's (`/tasks/exit`), or ours; event: the package's message for it."""
        # The times are cursors above: strictly increasing, in microseconds.
        self._last_us = max(self._last_us + 1, time.time_ns() // 1000)
        self._last += 1
        fact = Fact(
            seq=self._last,
            timestamp=_EPOCH + datetime.timedelta(microseconds=self._last_us),
            topic=topic,
            event=Any(type_url=f"{package}.{_name(event)}", value=bytes(event)),
        )
        self._facts.append(fact)
        if len(self._facts) > KEPT:
            del self._facts[0]
        news, self._news = self._news, asyncio.Event()
        news.set()
        return fact

    def after(self, seq: int) -> list[Fact]:
        """The facts behind number `seq`, oldest first, at most some hundred."""
        first = self._last - len(self._facts) + 1
        start = max(0, seq + 1 - first)
        return self._facts[start : start + _PER_REPLY]

    def forget(self, seq: int) -> None:
        """Facts up to this number are known above, and not asked for again."""
        first = self._last - len(self._facts) + 1
        del self._facts[: max(0, seq + 1 - first)]

    async def wait_after(self, seq: int) -> list[Fact]:
        """As `after`, but waits until there is one."""
        while not (found := self.after(seq)):
            await self._news.wait()
        return found

    async def next(self, message: NextRequest) -> NextResponse:
        """Serve the long poll: facts behind `after`, or an empty list when wait_ms have passed."""
        after = message.after if message.epoch == self.epoch else 0
        self.forget(after)
        try:
            async with asyncio.timeout(message.wait_ms / 1000):
                facts = await self.wait_after(after)
        except TimeoutError:
            facts = []
        return NextResponse(epoch=self.epoch, facts=facts)


def _name(event: Message) -> str:
    """The message's name in containerd's .proto file; the compiler for Python respells abbreviations."""
    return "TaskOOM" if isinstance(event, TaskOom) else type(event).__name__

"""How far a transfer is, told at the client's pace: a client that does not read holds nothing back.

What waits for the client is at most one message of each event and name: a newer one takes the older's place.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import errdefs
from pb.containerd.types.transfer import Progress

from containerd_svc.transfer.streams import Stream

Tell = Callable[[Progress], Awaitable[None]]

_LAST_WORDS = 1.0  # seconds that a transfer which is over waits for its client to take the rest


@contextlib.asynccontextmanager
async def telling(stream: Stream) -> AsyncIterator[Tell]:
    """How to tell the client of a stream, which is closed after the block. Never waits for the client while
    the block lasts; nothing is told to one that has gone."""
    teller = _Teller(stream)
    sending = asyncio.create_task(teller.send())
    try:
        yield teller.tell
    finally:
        teller.end()
        try:
            await asyncio.wait({sending}, timeout=_LAST_WORDS)
        finally:
            stream.close()  # ends the sending, too
            await asyncio.wait({sending})


class _Teller:
    """What waits for one client."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._waiting: dict[tuple[str, str], Progress] = {}
        self._news = asyncio.Event()
        self._over = False

    async def tell(self, progress: Progress) -> None:
        self._waiting[progress.name, progress.event] = progress
        self._news.set()

    def end(self) -> None:
        """Nothing more is told."""
        self._over = True
        self._news.set()

    async def send(self) -> None:
        """Send what waits, until all is sent and told, or the client has gone."""
        with contextlib.suppress(errdefs.Unavailable):
            while self._waiting or not self._over:
                await self._news.wait()
                self._news.clear()
                while self._waiting:
                    await self._stream.send(self._waiting.pop(next(iter(self._waiting))))

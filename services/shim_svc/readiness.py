"""Waiting on the loop for a descriptor that something else writes to, and not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence


async def either_readable(fds: Sequence[int], seconds: float) -> None:
    """Return once one of the descriptors is readable or at its end; TimeoutError after so many seconds."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[bool] = loop.create_future()

    def came(in_time: bool) -> None:
        if not ready.done():
            ready.set_result(in_time)

    for fd in fds:
        loop.add_reader(fd, came, True)
    timer = loop.call_later(seconds, came, False)
    try:
        if not await ready:
            raise TimeoutError
    finally:
        timer.cancel()
        for fd in fds:
            loop.remove_reader(fd)

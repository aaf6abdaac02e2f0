"""One operation at a time on a container: the second waits, up to a deadline, and readers never do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import errdefs


class Tokens:
    """A token per container id. A token is not a lock on data: what it orders are whole operations."""

    def __init__(self) -> None:
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: dict[str, int] = {}

    @asynccontextmanager
    async def hold(self, container_id: str, *, timeout: float = 60.0) -> AsyncIterator[None]:
        """Waits for the token at most `timeout` seconds, else Unavailable."""
        lock = self._locks.setdefault(container_id, asyncio.Lock())
        self._users[container_id] = self._users.get(container_id, 0) + 1
        try:
            try:
                async with asyncio.timeout(timeout):
                    await lock.acquire()
            except TimeoutError:
                raise errdefs.Unavailable(
                    f"another operation on container {container_id} has not ended within {timeout:g} s"
                ) from None
            try:
                yield
            finally:
                lock.release()
        finally:
            self._users[container_id] -= 1
            if not self._users[container_id]:
                del self._users[container_id], self._locks[container_id]

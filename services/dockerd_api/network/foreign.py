"""Other firewalls on the host that keep packets from containers, told as warnings of `info`.

A verdict in our table does not override another table's: a chain of theirs that drops forwarded packets by
policy (ufw, a former Docker) wins. Only nftables' own tables are seen, iptables-nft's among them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import errdefs

log = logging.getLogger(__name__)

_EVERY = 5.0  # seconds between two looks at most


class ForeignFirewalls:
    """Remembers what `drops()` (names of chains) said last; asking starts a new look when that is old."""

    def __init__(self, drops: Callable[[], Awaitable[list[str]]]) -> None:
        self._drops = drops
        self._chains: list[str] = []
        self._looked = 0.0
        self._looking: asyncio.Task[None] | None = None

    async def look(self) -> None:
        """Look now; a failure is logged."""
        self._looked = asyncio.get_running_loop().time()
        try:
            self._chains = await self._drops()
        except errdefs.BuoyError as error:
            log.warning("the host's firewall cannot be read: %s", error)

    def warnings(self) -> list[str]:
        """One line for each chain, as of the last look."""
        loop = asyncio.get_running_loop()
        if self._looking is None and loop.time() > self._looked + _EVERY:
            self._looking = loop.create_task(self.look(), name="network-foreign-firewalls")
            self._looking.add_done_callback(self._done)
        return [
            f"WARNING: the firewall chain {chain} drops forwarded packets; containers may be unreachable"
            for chain in self._chains
        ]

    def _done(self, task: asyncio.Task[None]) -> None:
        self._looking = None

    async def close(self) -> None:
        """Wait for a look under way."""
        if self._looking is not None:
            await self._looking

"""Hearing of it when somebody removes rules of ours: `nft flush ruleset`, a restarted nftables or firewalld.

nf_tables tells every change on a multicast group of nfnetlink. Only removals of tables, chains, rules and
sets that carry our table's name count; elements come and go by ourselves. Numbers are from
linux/netfilter/nf_tables.h and nfnetlink.h.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from dockerd_api.network import netlink

_NETLINK_NETFILTER = 12
_GROUP = 7  # NFNLGRP_NFTABLES
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_REMOVED = {2, 5, 8, 11}  # NFT_MSG_DELTABLE, DELCHAIN, DELRULE, DELSET
_TABLE_NAME = 1  # the same attribute in all four
_SETTLE = 0.1  # seconds: a reload removes and adds much at once


class Watch:
    """Calls `mend()` shortly after something of `table` was removed. Runs on the event loop until closed."""

    def __init__(self, table: str, mend: Callable[[], Awaitable[None]]) -> None:
        self._name = table.encode()
        self._mend = mend
        self._again = False
        self._task: asyncio.Task[None] | None = None
        self._netlink = netlink.Netlink.open(_NETLINK_NETFILTER)
        self._sock = self._netlink.sock
        self._sock.bind((0, 1 << (_GROUP - 1)))
        self._sock.setblocking(False)
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._readable)

    def _readable(self) -> None:
        while True:
            try:
                data = self._sock.recv(1 << 17)
            except BlockingIOError:
                return
            except OSError:
                removed = True  # ENOBUFS: events were lost, ours may be among them
            else:
                removed = any(self._concerns(kind, body) for kind, _, _, body in netlink.messages(data))
            if removed:
                self._schedule()

    def _concerns(self, kind: int, body: bytes) -> bool:
        if kind >> 8 != _SUBSYSTEM or kind & 0xFF not in _REMOVED:
            return False
        return dict(netlink.attributes(body, 4)).get(_TABLE_NAME, b"").rstrip(b"\0") == self._name

    def _schedule(self) -> None:
        self._again = True
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="network-watch")

    async def _run(self) -> None:
        try:
            while self._again:
                await asyncio.sleep(_SETTLE)
                self._again = False
                await self._mend()
        finally:
            self._task = None

    async def close(self) -> None:
        """Stop listening; a mend under way is finished first."""
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._again = False
        if self._task is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._netlink.close()

"""Sandboxes: namespaces pinned below `<exec_root>/netns`, and a few made ahead so that attaching is quick.

A ready sandbox with a bridge has its veth pair up and in the bridge and lacks only address and route. It has
no row in the database, so that whatever a crash leaves is found by its file and taken away at start.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import secrets
import socket
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import errdefs
from linux.syscalls import filesystem_type

from dockerd_api.network import netlink
from dockerd_api.network.netns_helper import NetnsHelper, SandboxSpec

log = logging.getLogger(__name__)

_NSFS_MAGIC = 0x6E736673


@dataclass
class Sandbox:
    """One namespace. `inside` is a socket opened in it, closed once it is
    configured."""

    name: str
    path: Path
    link: str = ""
    mac: str = ""
    index: int = 0
    inside: netlink.Netlink | None = field(default=None, repr=False)

    def configure(self, address: ipaddress.IPv4Interface, gateway: ipaddress.IPv4Address, mac: str) -> None:
        """Give the inner interface its address and route and tell the bridge's neighbours. Blocks shortly."""
        if self.inside is None:
            raise errdefs.Internal(f"sandbox {self.name} has no interface")
        self.inside.transact(
            netlink.new_address(self.index, address),
            netlink.default_route(self.index, gateway),
            # Last, since with arp_notify it makes the kernel announce the address: others may remember it
            # with the MAC of the container that had it before. (A packet socket could send that too, but
            # closing one waits for an RCU grace period.)
            netlink.set_link(self.index, mac=mac or self.mac),
        )

    def release(self) -> None:
        """Close the socket, which keeps the namespace alive."""
        if self.inside is not None:
            self.inside.close()
        self.inside = None


def random_mac() -> str:
    """A unicast, locally administered MAC."""
    raw = bytearray(secrets.token_bytes(6))
    raw[0] = (raw[0] & 0xFE) | 0x02
    return raw.hex(":")


def link_gone(name: str) -> bool:
    """Whether no interface of this name exists: a namespace's end takes its veth pair along, later."""
    try:
        socket.if_nametoindex(name)
    except OSError:
        return True
    return False


def bridges_filter() -> bool:
    """Whether bridged frames pass the IPv4 hooks here (br_netfilter).

    A container's packet to its own published port is then translated while it is still bridged, and leaves
    by the port it came in.
    """
    with contextlib.suppress(OSError):
        return Path("/proc/sys/net/bridge/bridge-nf-call-iptables").read_text().strip() == "1"
    return False


class Sandboxes:
    """Makes, keeps and removes the sandboxes of one engine."""

    def __init__(self, helper: NetnsHelper, folder: Path, *, ready: int = 4) -> None:
        self._helper = helper
        self.folder = folder
        self._size = {True: ready, False: min(ready, 1)}
        self._ready: dict[bool, deque[Sandbox]] = {True: deque(), False: deque()}
        self._spec = SandboxSpec(path="")
        self._refilling: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    def path(self, name: str) -> Path:
        """Where the namespace of this name is pinned."""
        return self.folder / name

    def start(self, *, bridge: int, mtu: int, isolated: bool) -> None:
        """Say what ready sandboxes are made of (bridge 0: only bare ones) and begin to make them."""
        self._spec = SandboxSpec(path="", bridge=bridge, mtu=mtu, isolated=isolated)
        if not bridge:
            self._size[True] = 0
        self._refilling = asyncio.create_task(self._refill(), name="network-sandboxes")
        self._wake.set()

    def take(self, *, bridged: bool) -> Sandbox | None:
        """A ready sandbox, or None; the place it leaves is filled in the background."""
        ready = self._ready[bridged]
        taken = ready.popleft() if ready else None
        self._wake.set()
        return taken

    @staticmethod
    def new_names() -> tuple[str, str]:
        """A fresh name of a namespace, and of its link on the host."""
        return secrets.token_hex(6), "veth" + secrets.token_hex(4)[:7]

    async def make(self, name: str, link: str, *, bridged: bool) -> Sandbox:
        """Make a sandbox now."""
        path, mac = self.path(name), random_mac() if bridged else ""
        spec = SandboxSpec(
            path=str(path),
            bridge=self._spec.bridge if bridged else 0,
            link=link,
            mac=mac,
            mtu=self._spec.mtu,
            hairpin=bridges_filter(),
            isolated=self._spec.isolated,
        )
        index, inside = await self._helper.make(spec)
        if inside is None:
            return Sandbox(name, path)
        return Sandbox(name, path, link, mac, index, netlink.Netlink(inside))

    async def destroy(self, *names: str) -> None:
        """Let go of namespaces (idempotent)."""
        if names:
            await self._helper.destroy([str(self.path(name)) for name in names])

    def exists(self, name: str) -> bool:
        """Whether a namespace of this name is pinned (a bare file, left by a boot, is none)."""
        try:
            return filesystem_type(str(self.path(name))) & 0xFFFFFFFF == _NSFS_MAGIC
        except OSError:
            return False

    async def sweep(self, known: set[str]) -> list[str]:
        """Remove every namespace below the folder that is not known; returns their names."""
        leaked = [name for name in os.listdir(self.folder) if name not in known]
        await self.destroy(*leaked)
        return leaked

    async def close(self) -> None:
        """Stop making sandboxes and remove the ready ones."""
        if self._refilling is not None:
            self._refilling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refilling
            self._refilling = None
        left = [one for ready in self._ready.values() for one in ready]
        for ready in self._ready.values():
            ready.clear()
        for one in left:
            one.release()
        await self.destroy(*(one.name for one in left))

    async def _refill(self) -> None:
        pause = 0.1
        while True:
            await self._wake.wait()
            self._wake.clear()
            # Let the request that took a sandbox go first.
            await asyncio.sleep(0.02)
            try:
                for bridged, ready in self._ready.items():
                    while len(ready) < self._size[bridged]:
                        name, link = self.new_names()
                        ready.append(await self.make(name, link, bridged=bridged))
                pause = 0.1
            except errdefs.BuoyError as error:
                log.warning("no sandbox could be made ahead: %s", error)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 30.0)
                self._wake.set()

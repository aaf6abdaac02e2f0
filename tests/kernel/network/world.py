"""A small world for the network's tests: private network and mount namespaces, a host, a LAN host beside it.

Scenarios run in a process of their own (see `run`), so that no rule, link or sysctl of the machine is
touched. A thread enters a namespace to make a socket there; the socket stays there for its life.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypeVar

from dockerd_api.network.manager import Attachment, AttachRequest, Networks, PortRequest
from linux import netns
from storage.database import Database

T = TypeVar("T")
HOST, LAN = "10.99.0.1", "10.99.0.2"
TIMEOUT = 5.0
REFUSED_AFTER = 0.4  # how long a packet that must not arrive is waited for


def run(module: str, scenario: str, folder: Path) -> None:
    """Run one scenario of a test module in fresh namespaces; fails with its output."""
    done = subprocess.run(
        [
            *("unshare", "--net", "--mount", "--propagation", "private"),
            *(sys.executable, "-W", "error", "-m", __name__),
            *(module, scenario, str(folder)),
        ],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONPATH": "services:."},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout


def command(*words: str) -> str:
    """Run a command; returns what it prints."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout


def inside(path: str | None, fn: Callable[[], T]) -> T:
    """`fn()` run by a thread in the namespace at `path` (None: here)."""
    result: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            if path is not None:
                netns.enter(path)
            result.append(fn())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


class Host:
    """The machine under test: its own address on a LAN with one other machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lan = str(folder / "lan-host")

    def make(self) -> None:
        """Bring the world up."""
        # A new namespace begins with the machine's own value.
        Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
        command("ip", "link", "set", "lo", "up")
        netns.create(self.lan)
        command("ip", "link", "add", "lan0", "type", "veth", "peer", "name", "lan1")
        inside(self.lan, lambda: command("ip", "link", "set", "lo", "up"))
        command("ip", "addr", "add", f"{HOST}/24", "dev", "lan0")
        command("ip", "link", "set", "lan0", "up")
        move = subprocess.Popen(["nsenter", f"--net={self.lan}", "sleep", "60"])
        try:
            _until(lambda: os.readlink(f"/proc/{move.pid}/ns/net") != os.readlink("/proc/self/ns/net"))
            command("ip", "link", "set", "lan1", "netns", str(move.pid))
        finally:
            move.kill()
            move.wait()
        inside(self.lan, lambda: command("ip", "addr", "add", f"{LAN}/24", "dev", "lan1"))
        inside(self.lan, lambda: command("ip", "link", "set", "lan1", "up"))
        # The LAN host knows the way to every container: only the firewall may keep it out.
        inside(self.lan, lambda: command("ip", "route", "add", "172.16.0.0/12", "via", HOST))

    def close(self) -> None:
        netns.delete(self.lan)

    @contextlib.asynccontextmanager
    async def networks(
        self, instance: str = "t", *, ready: int = 1, purge: bool = True, **config: object
    ) -> AsyncIterator[Networks]:
        """An engine's networks, opened; purged at the end unless told otherwise."""
        root = self.folder / (instance or "empty")
        database = await Database.open(root / "engine.db", [])
        try:
            networks = await Networks.open(
                database, instance=instance, exec_root=root / "run", config=config, ready=ready
            )
            try:
                yield networks
                if purge:
                    await networks.purge()
            finally:
                await networks.close()
        finally:
            await database.close()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


async def until(condition: Callable[[], bool]) -> None:
    """Poll with a deadline."""
    await asyncio.to_thread(_until, condition)


def want(number: int, *ports: PortRequest, **fields: Any) -> AttachRequest:
    """The request of container `number`."""
    return AttachRequest(f"{number:064x}", f"c{number}", hostname=f"h{number}", ports=ports, **fields)


def address(attachment: Attachment) -> str:
    """The container's address."""
    return attachment.endpoints[0].ip_address


def close_listeners(*attachments: Attachment) -> None:
    """Let go of the published ports' listeners, as a shim that ends does."""
    for attachment in attachments:
        for _, sock in attachment.listeners:
            sock.close()


@contextlib.asynccontextmanager
async def tcp_server(path: str | None, port: int, says: str, ip: str = "0.0.0.0") -> AsyncIterator[None]:
    """A server in a namespace that answers every connection with `says` and the client's address."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"{says} {writer.get_extra_info('peername')[0]}".encode())
        with contextlib.suppress(OSError):
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    sock = inside(path, lambda: socket.create_server((ip, port)))
    server = await asyncio.start_server(handle, sock=sock)
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()


async def ask(path: str | None, ip: str, port: int, timeout: float = TIMEOUT) -> str:
    """What a TCP server says to a client in a namespace; OSError or TimeoutError when it is not reached."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    sock = inside(path, lambda: socket.socket(family, socket.SOCK_STREAM))
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    with sock:
        async with asyncio.timeout(timeout):
            await loop.sock_connect(sock, (ip, port))
            return (await loop.sock_recv(sock, 1000)).decode()


async def connects_to_listener(path: str | None, ip: str, port: int, listener: socket.socket) -> None:
    """Fails unless a client's connection arrives at this very listener."""
    family = socket.AF_INET6 if ":" in ip else socket.AF_INET
    sock = inside(path, lambda: socket.socket(family, socket.SOCK_STREAM))
    sock.setblocking(False)
    listener.setblocking(False)
    loop = asyncio.get_running_loop()
    with sock:
        async with asyncio.timeout(TIMEOUT):
            await loop.sock_connect(sock, (ip, port))
            accepted, _ = await loop.sock_accept(listener)
            accepted.close()


async def unreachable(path: str | None, ip: str, port: int) -> bool:
    """Whether a client gets no connection."""
    try:
        await ask(path, ip, port, REFUSED_AFTER)
    except (OSError, TimeoutError):
        return True
    return False


async def ping(path: str | None, ip: str) -> bool:
    """Whether an ICMP echo is answered."""
    sock = inside(path, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    body = struct.pack("!BBHHH", 8, 0, 0, 7, 1)
    body = struct.pack("!BBHHH", 8, 0, _checksum(body), 7, 1)
    with sock:
        try:
            async with asyncio.timeout(REFUSED_AFTER):
                await loop.sock_sendto(sock, body, (ip, 0))
                while True:
                    data, (source, _) = await loop.sock_recvfrom(sock, 100)
                    if data[20] == 0 and source == ip:
                        return True
        except (OSError, TimeoutError):
            return False


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def ruleset() -> str:
    """The whole ruleset with handles."""
    return command("nft", "-a", "list", "ruleset")


async def _main(module: str, scenario: str, folder: Path) -> None:
    host = Host(folder)
    host.make()
    try:
        await getattr(importlib.import_module(module), scenario)(host)
    finally:
        host.close()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], Path(sys.argv[3])))

"""What happens to a connection, and in which order, when it is accepted."""

from __future__ import annotations

import asyncio
import errno
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from dockerd_api import accepting
from dockerd_api.accepting import Acceptor
from dockerd_api.streams.connections import Connections

CLIENTS = 5


class Recorder(asyncio.Protocol):
    """A protocol that says when it is told of its connection."""

    def __init__(self, happened: list[str]) -> None:
        self.happened = happened
        self.slot = -1
        self.http = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.happened.append(f"made {self.slot}")
        transport.close()


class Kept:
    """Stands for `Connections`: notes what the service manager was given."""

    def __init__(self, happened: list[str]) -> None:
        self.happened = happened

    def accepted(self, fd: int) -> int:
        slot = len(self.happened)
        self.happened.append(f"kept {slot}")
        return slot


class Refusing:
    """A listener that has no descriptor left, once."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.left = 1

    def accept(self) -> tuple[socket.socket, Any]:
        if self.left:
            self.left -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return self.listener.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.listener, name)


def bound(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(CLIENTS)
    return listener


def server(happened: list[str]) -> Any:
    config = SimpleNamespace(http_protocol_class=lambda **_: Recorder(happened))
    return SimpleNamespace(config=config, server_state=None, lifespan=SimpleNamespace(state={}))


def client(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.connect(str(path))
    return sock


async def until(happened: list[str], count: int) -> None:
    async with asyncio.timeout(5):
        while len(happened) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_all_are_kept_before_one_is_served(tmp_path: Path) -> None:
    happened: list[str] = []
    listener = bound(tmp_path / "s")
    clients = [client(tmp_path / "s") for _ in range(CLIENTS)]
    acceptor = Acceptor(server(happened), listener, cast(Connections, Kept(happened)))
    await until(happened, 2 * CLIENTS)
    acceptor.close()
    await acceptor.wait_closed()
    assert happened[:CLIENTS] == [f"kept {number}" for number in range(CLIENTS)]
    assert sorted(happened[CLIENTS:]) == [f"made {number}" for number in range(CLIENTS)]
    for sock in clients:
        sock.close()


async def test_a_process_without_descriptors_accepts_again(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(accepting, "_PAUSE", 0.01)
    happened: list[str] = []
    listener = bound(tmp_path / "s")
    refusing = cast(socket.socket, Refusing(listener))
    acceptor = Acceptor(server(happened), refusing, cast(Connections, Kept(happened)))
    with client(tmp_path / "s"):
        await until(happened, 2)
    acceptor.close()
    assert happened == ["kept 0", "made 0"]

"""A call that loses its server is answered by the next one."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
from pb.containerd.services.version.v1 import VersionBase, VersionResponse, VersionStub
from pb.google.protobuf import Empty
from rpc import persistent
from rpc.grpc import Channel, ConnectionLost, Server
from rpc.persistent import PersistentStub


class Stub(PersistentStub, VersionStub):
    pass


class Service(VersionBase):
    async def version(self, message: Empty) -> VersionResponse:
        return VersionResponse(version="1", revision="next")


async def test_is_asked_again(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(8)
    listener.setblocking(False)
    channel = Channel(str(path))
    try:
        asked = asyncio.create_task(Stub(channel).version(Empty()))
        loop = asyncio.get_running_loop()
        dying, _ = await loop.sock_accept(listener)
        await loop.sock_recv(dying, 1 << 16)
        dying.close()
        server = Server([Service()])
        await server.serve(listener)
        assert (await asked).revision == "next"
        await server.close()
    finally:
        channel.close()
        listener.close()


async def test_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persistent, "_WITHIN", 0.1)
    channel = Channel(str(tmp_path / "nobody"))
    try:
        with pytest.raises(ConnectionLost, match="no connection to"):
            await Stub(channel).version(Empty())
    finally:
        channel.close()

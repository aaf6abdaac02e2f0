"""What a process makes of the descriptors that the one before left."""

from __future__ import annotations

import os
import select
import socket

import pytest
from dockerd_api.hijack import Taken
from dockerd_api.streams import connections as module
from dockerd_api.streams.connections import SLOTS, Connections
from dockerd_api.streams.fdstore import FdStore
from dockerd_api.streams.reply import Streams

SLOT = 3


def state_file(state: int) -> int:
    fd = os.memfd_create("connstate")
    os.ftruncate(fd, SLOTS * module._SLOT)
    os.pwrite(fd, bytes([state]), SLOT * module._SLOT)
    return fd


def ended(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0]) and sock.recv(1, socket.MSG_PEEK) == b""


def recover(state: int, sock: socket.socket) -> Connections:
    passed = {"connstate": [state_file(state)], f"conn-{SLOT}": [os.dup(sock.fileno())]}
    store = FdStore(passed)
    made = Connections(store)
    made.recover(Streams(store).holds)
    for _, kept in made._taken_up:
        kept.close()
    return made


@pytest.mark.parametrize(
    ("state", "goes_on", "ends"),
    [
        (module._IDLE, True, False),
        (module._ANSWERED, True, False),
        (module._ASKED, True, False),
        (module._BUSY, False, True),
        # Somebody else holds the socket: a shim that it was handed to.
        (module._TAKEN, False, False),
    ],
)
def test_connection_by_its_state(state: int, goes_on: bool, ends: bool) -> None:
    client, shim = socket.socketpair()
    with client, shim:
        made = recover(state, shim)
        assert [slot for slot, _ in made._taken_up] == ([SLOT] if goes_on else [])
        assert ended(client) is ends


async def test_stream_finds_its_socket_among_the_connections() -> None:
    """The file alone is stored for a stream whose connection is; the pair is found whatever the order."""
    client, server = socket.socketpair()
    with client:
        server.setblocking(False)
        store = FdStore()
        streams = Streams(store)
        streams.produce("wait", _nothing)
        stream = streams.begin(
            "wait",
            Taken(server, b"", f"conn-{SLOT}", stored=lambda: None, released=lambda: None),
            {"n": 1},
            head=b"head ",
        )
        assert client.recv(100) == b"head "
        passed = {
            f"conn-{SLOT}": [os.dup(server.fileno())],
            "connstate": [state_file(module._TAKEN)],
            f"stream-{stream.id}": [os.dup(stream._file.fd)],
        }
        again = FdStore(passed)
        made = Connections(again)
        next_streams = Streams(again)
        next_streams.produce("wait", _finish)
        made.recover(next_streams.holds)
        assert next_streams.recover() == 1
        assert not ended(client)
        await _until_readable(client)
        assert client.recv(100) == b"tail"
        stream.detach()
        await next_streams.close()
        await streams.close()


async def _nothing(stream: object) -> None:
    pass


async def _finish(stream: object) -> None:
    stream.finish(b"tail")  # type: ignore[attr-defined]


async def _until_readable(sock: socket.socket) -> None:
    import asyncio

    for _ in range(200):
        if select.select([sock], [], [], 0)[0]:
            return
        await asyncio.sleep(0.005)
    pytest.fail("nothing came")

"""Running every code path of a shim once in the nursery, so that no shim pays for it, in time or in memory.

The message stubs build their tables at the first use of each class, asyncio and the servers their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys

import errdefs
import pb.buoy.attach.v1 as attach
import pb.buoy.facts.v1 as facts
import pb.containerd.events as events
import pb.containerd.runc.v1 as runc
import pb.containerd.task.v2 as task
import pb.containerd.types as types
import pb.containerd.v1.types as v1_types
import pb.google.protobuf as protobuf
import pb.ttrpc as wire
from betterproto2 import Message
from rpc import ttrpc

from shim_svc import logs
from shim_svc.facts import Facts
from shim_svc.reaper import Reaper
from shim_svc.service import V2, V3, TaskService

_MODULES = (attach, facts, events, runc, task, types, v1_types, protobuf, wire)


def _warm_messages() -> None:
    for module in _MODULES:
        for name in module.__all__:
            kind = getattr(module, name)
            if isinstance(kind, type) and issubclass(kind, Message):
                kind.parse(bytes(kind()))


async def _warm_server() -> None:
    ours, theirs = socket.socketpair()
    reaper = Reaper()
    service = TaskService(
        container_id="warm",
        namespace="warm",
        reaper=reaper,
        facts=Facts(),
        sockets="/",
        runtime_root="/",
        prepare=lambda path: None,
        shutdown=lambda: None,
    )
    server = ttrpc.Server([service, Facts()], aliases={V3: V2})
    server.serve_connection(theirs)
    client = await ttrpc.Client.over(ours)
    await client.call(V2, "Connect", task.ConnectRequest(id="warm"), task.ConnectResponse)
    with contextlib.suppress(errdefs.NotFound):
        await client.call(V3, "State", task.StateRequest(id="warm"), task.StateResponse)
    await client.close()
    await server.close()


_fillers: list[bytes] = []
_FILL = 48 * 1024  # bytes for each size of object
_SMALL = 512  # bytes; larger ones are not Python's own to place (Objects/obmalloc.c)
_OVERHEAD = sys.getsizeof(b"")


def fill_gaps() -> None:
    """Fill the gaps that the imports have left among Python's objects.

    What a shim allocates then lies together on new pages, instead of making a shared one private here and
    there. To be called last, before the first fork.
    """
    gc.collect()
    for size in range(48, _SMALL + 1, 16):
        _fillers.extend(bytes(size - _OVERHEAD) for _ in range(_FILL // size))
    gc.freeze()


def warm() -> None:
    """Import and run what a shim runs. Starts no thread and leaves no descriptor open."""
    _warm_messages()
    logs.escape(b'"\xff\x01<')
    logs.timestamp(1)
    loop = asyncio.SelectorEventLoop()
    try:
        loop.run_until_complete(_warm_server())
    finally:
        loop.close()

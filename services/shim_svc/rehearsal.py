"""A rehearsal: the life of a shim, with everything but a container, played in the nursery before it forks.

It runs what every shim runs. The interpreter then has its tables and caches filled, and has specialised the
bytecode (PEP 659: from the eighth call of a function on), which reads attributes without touching their
names. Each shim would otherwise do that on memory of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
from contextlib import ExitStack

import pb.containerd.task.v2 as task
from linux.crashpoints import arm
from pb.buoy.facts.v1 import NextRequest, NextResponse
from pb.containerd.runc.v1 import Options
from pb.google.protobuf import Any, Empty
from rpc import ttrpc

from shim_svc.bundle import PREFIX, write_file
from shim_svc.forks import fork_child
from shim_svc.service import V3
from shim_svc.shim import Shim, ShimOptions, bind

LIVES = 10
"""As many as it takes until every function that a life calls once is specialised."""
_ID = "rehearsal"
_RUNTIME = "/bin/true"  # stands for the OCI runtime: it is called, and does as it is told
_PATIENCE = 10.0  # seconds for one life


def rehearse(sockets: str, lives: int) -> None:
    """Live `lives` times. sockets: the folder of the shims' sockets, in which a folder is made and removed.

    Leaves no descriptor, process or signal handler behind. TimeoutError, OSError or an errdefs error when a
    life fails; the folder is removed also then.
    """
    bundle = f"{sockets}/r"
    shutil.rmtree(bundle, ignore_errors=True)
    os.makedirs(bundle, mode=0o700)
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, bundle, ignore_errors=True)
        here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        undo.callback(os.close, here)
        undo.callback(os.fchdir, here)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            undo.callback(signal.signal, number, signal.getsignal(number))
        undo.callback(arm, arm(""))
        os.chdir(bundle)
        _write_spec(bundle)
        for _ in range(lives):
            loop = asyncio.SelectorEventLoop()
            try:
                loop.run_until_complete(asyncio.wait_for(_live(bundle, sockets), _PATIENCE))
            finally:
                loop.close()


def _write_spec(bundle: str) -> None:
    annotations = {"container-dir": bundle, "log.driver": "json-file", "log.path": f"{bundle}/log"}
    spec = {
        "annotations": {PREFIX + name: value for name, value in annotations.items()},
        "linux": {"namespaces": [{"type": "pid"}]},
    }
    write_file(f"{bundle}/config.json", json.dumps(spec))


async def _live(bundle: str, sockets: str) -> None:
    """From the nursery's bind to Shutdown, by the calls that containerd makes."""
    options = ShimOptions(namespace=_ID, id=_ID, bundle=bundle, sockets=sockets, runtime_root=bundle)
    serving = asyncio.get_running_loop().create_task(Shim(options).run(bind(options)))
    client = await ttrpc.Client.connect(options.socket_path)
    # What a runtime would have made: init, and the file with its number.
    wait, end = os.pipe2(os.O_CLOEXEC)
    pid = fork_child(lambda: len(os.read(wait, 1)), keep=(wait,))
    os.close(wait)
    write_file(f"{bundle}/init.pid", str(pid))
    try:
        streams = f"attach://{bundle}/a"
        create = task.CreateTaskRequest(
            id=_ID,
            bundle=bundle,
            stdout=streams,
            stderr=streams,
            options=Any(type_url="containerd.runc.v1.Options", value=bytes(Options(binary_name=_RUNTIME))),
        )
        await client.call(V3, "Connect", task.ConnectRequest(id=_ID), task.ConnectResponse)
        await client.call(V3, "Create", create, task.CreateTaskResponse)
        await client.call(V3, "Start", task.StartRequest(id=_ID), task.StartResponse)
        await client.call(V3, "State", task.StateRequest(id=_ID), task.StateResponse)
        await client.call("buoy.facts.v1.Facts", "Next", NextRequest(wait_ms=1000), NextResponse)
    finally:
        os.close(end)
    await client.call(V3, "Wait", task.WaitRequest(id=_ID), task.WaitResponse)
    await client.call(V3, "Delete", task.DeleteRequest(id=_ID), task.DeleteResponse)
    await client.call(V3, "Shutdown", task.ShutdownRequest(id=_ID), Empty)
    await serving
    await client.close()

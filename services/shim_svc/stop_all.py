"""Ends every container as its own settings say, for the moments before the host goes down.

    python -m shim_svc.stop_all --state DIR

Works on bundles and shims alone, after the daemons have ended: so nobody starts a container again, nobody
takes it for stopped by hand, and the exit records on disk tell the daemons of the next boot what happened.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import betterproto2
import errdefs
from pb.containerd.task.v2 import (
    DeleteRequest,
    DeleteResponse,
    KillRequest,
    ResumeRequest,
    ShutdownRequest,
    StateRequest,
    StateResponse,
    WaitRequest,
    WaitResponse,
)
from pb.containerd.v1.types import Status
from pb.google.protobuf import Empty
from rpc import ttrpc

from shim_svc.bundle import PREFIX
from shim_svc.service import V2

log = logging.getLogger(__name__)

_TIMEOUT = 10.0  # seconds that a container gets which names none, as Docker gives
_LONGEST = 90.0  # seconds for one that asks never to be killed: the host does go down
_KILLED = 20.0  # seconds that a killed process may take to end (a stuck disk)
_CALL = 5.0


@dataclass(frozen=True)
class Ending:
    """How one container is to be ended. `timeout`: seconds from the signal to SIGKILL."""

    id: str
    address: str
    signal: int
    timeout: float


def endings(state: str) -> Iterator[Ending]:
    """What the bundles below the state folder say; a bundle without a shim's address has nothing to end."""
    for namespace in _folders(state):
        for bundle in _folders(namespace):
            try:
                with open(f"{bundle}/address", encoding="utf-8") as file:
                    address = file.read().strip()
            except OSError:
                continue
            number, timeout = _settings(f"{bundle}/config.json")
            yield Ending(os.path.basename(bundle), address, number, timeout)


def _folders(path: str) -> list[str]:
    try:
        return sorted(e.path for e in os.scandir(path) if e.is_dir() and not e.name.startswith("."))
    except OSError:
        return []


def _settings(path: str) -> tuple[int, float]:
    annotations: dict[str, Any] = {}
    try:
        with open(path, "rb") as file:
            annotations = json.loads(file.read()).get("annotations") or {}
        number = int(annotations.get(PREFIX + "stop.signal", int(signal.SIGTERM)))
        timeout = float(annotations.get(PREFIX + "stop.timeout", _TIMEOUT))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("%s: %s; the defaults hold", path, error)
        return int(signal.SIGTERM), _TIMEOUT
    return number, timeout if timeout >= 0 else _LONGEST


async def end(ending: Ending) -> None:
    """End one container and its shim. errdefs.BuoyError when its shim does not do as it is asked."""
    client = await ttrpc.Client.connect(ending.address, timeout=_CALL)
    try:
        with contextlib.suppress(errdefs.NotFound):  # between two tasks
            await _end_task(client, ending)
        # The shim is between the container and its files: without a task it can go, and lets go of them.
        await client.call(V2, "Shutdown", ShutdownRequest(id=ending.id), Empty, timeout=_CALL)
    finally:
        await client.close()


async def _end_task(client: ttrpc.Client, ending: Ending) -> None:
    async def call(
        method: str, request: betterproto2.Message, reply: type[Any] = Empty, timeout: float = _CALL
    ) -> Any:
        return await client.call(V2, method, request, reply, timeout=timeout)

    state = await call("State", StateRequest(id=ending.id), StateResponse)
    if state.status != Status.STOPPED:
        for number, timeout in ((ending.signal, ending.timeout), (int(signal.SIGKILL), _KILLED)):
            try:
                await call("Kill", KillRequest(id=ending.id, signal=number))
                if state.status == Status.PAUSED:
                    await call("Resume", ResumeRequest(id=ending.id))
                    state.status = Status.RUNNING
                await call("Wait", WaitRequest(id=ending.id), WaitResponse, max(timeout, 0.001))
                break
            except errdefs.DeadlineExceeded:
                log.info("%s did not end within %g s of signal %d", ending.id, timeout, number)
            except errdefs.NotFound:
                break  # it ended just now
    await call("Delete", DeleteRequest(id=ending.id), DeleteResponse, _KILLED)


async def stop_all(state: str) -> int:
    """End everything below the state folder side by side, then flush to disk. Returns how many did not
    end.
    """
    found = list(endings(state))
    results = await asyncio.gather(*(end(ending) for ending in found), return_exceptions=True)
    failed = 0
    for ending, result in zip(found, results, strict=True):
        if isinstance(result, errdefs.Unavailable):
            continue  # no shim lives there
        if isinstance(result, BaseException):
            failed += 1
            log.error("%s: %s", ending.id, result)
    os.sync()
    log.info("%d of %d containers ended", len(found) - failed, len(found))
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 when some container is left."""
    parser = argparse.ArgumentParser(
        prog="shim_svc.stop_all", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--state", required=True, help="folder of the bundles")
    arguments = parser.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    return 1 if asyncio.run(stop_all(arguments.state)) else 0


if __name__ == "__main__":
    sys.exit(main())

"""`docker export`: a container's whole tree as a tar, without what is mounted in it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import TypeVar

import errdefs

from dockerd_api.engine.engine import Engine
from dockerd_api.engine.model import Container, Phase
from dockerd_api.engine.rootfs import layer_paths

_CHUNK = 256 * 1024  # bytes that are held of the archive
_STALL = 60.0  # seconds within which the worker must have more (a stuck disk)
_LEAVING = (Phase.REMOVING, Phase.GONE)
_T = TypeVar("_T")


async def export(engine: Engine, ref: str) -> AsyncGenerator[bytes, None]:
    """The archive, piece by piece. Raises NotFound, Conflict for a container that is being removed, and
    Internal, also when it is removed before the archive is whole.
    """
    record = engine.containers.resolve(ref)
    if record.state.phase in _LEAVING:
        raise errdefs.Conflict(f"You cannot export container {record.id} which is being removed")
    mounts = await engine.images.snapshot_mounts(record.id)
    place = engine.settings.exec_root / "export"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    request = {"layers": layer_paths(mounts), "place": os.fspath(place)}
    async with contextlib.aclosing(_written(request)) as pieces:
        async for piece in pieces:
            yield piece
    _check_whole(engine, record)
    await engine.publish(record, "export")


def _check_whole(engine: Engine, record: Container) -> None:
    """Files of a container that is removed vanish while they are read, which the worker cannot tell."""
    now = engine.store.get(record.id)
    if now is None or now.state.phase in _LEAVING:
        raise errdefs.Internal(f"container {record.id} was removed while it was exported")


async def _written(request: Mapping[str, object]) -> AsyncGenerator[bytes, None]:
    """What the worker writes. Raises Internal when it fails, DeadlineExceeded when it stalls."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-m",
        "dockerd_api.engine.export_worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_CHUNK,
    )
    try:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(json.dumps(request).encode())
        process.stdin.close()
        while data := await _within(process.stdout.read(_CHUNK)):
            yield data
        complaint = await _within(process.stderr.read())
        if await _within(process.wait()):
            last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
            raise errdefs.Internal(f"cannot export: {last or 'the worker was killed'}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _within(work: Awaitable[_T]) -> _T:
    try:
        async with asyncio.timeout(_STALL):
            return await work
    except TimeoutError:
        raise errdefs.DeadlineExceeded(f"cannot export: nothing was read within {_STALL:.0f} s") from None

"""What runs in a container: the process list, the terminal's size, the size of what it wrote."""

from __future__ import annotations

import asyncio
import re
import shlex
from typing import Any

import errdefs

from dockerd_api.engine.engine import Engine
from dockerd_api.engine.model import Container, Phase

_PS_TIMEOUT = 10.0


async def resize(engine: Engine, ref: str, width: int, height: int) -> None:
    record = engine.containers.resolve(ref)
    if not record.state.alive:
        raise errdefs.Conflict(f"container {record.id} is not running")
    await engine.tasks.resize(record.id, width, height)


async def top(engine: Engine, ref: str, arguments: str) -> dict[str, Any]:
    """Titles and rows of the host's `ps` for the container's processes, as Docker's top."""
    words = shlex.split(arguments)
    # The only options that show the environment or a file of another process's choosing are refused, as in
    # Docker.
    if any(re.fullmatch(r"-?[a-zA-Z]*[oO].*", word) and "pid" not in arguments for word in words):
        raise errdefs.InvalidArgument("Couldn't find PID field in ps output")
    record = engine.containers.resolve(ref)
    if not record.state.alive:
        raise errdefs.Conflict(f"container {record.id} is not running")
    if record.state.phase is Phase.RESTARTING:
        raise errdefs.Conflict(f"Container {record.id} is restarting, wait until the container is running")
    pids = set(map(str, await engine.tasks.pids(record.id)))
    process = await asyncio.create_subprocess_exec(
        "ps", *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(_PS_TIMEOUT):
            output, complaint = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise errdefs.DeadlineExceeded("ps did not end in time") from None
    if process.returncode:
        raise errdefs.InvalidArgument(f"ps: {complaint.decode(errors='replace').strip()}")
    lines = output.decode(errors="replace").splitlines()
    titles = lines[0].split() if lines else []
    if "PID" not in titles:
        raise errdefs.InvalidArgument("Couldn't find PID field in ps output")
    column = titles.index("PID")
    rows = [line.split(None, len(titles) - 1) for line in lines[1:]]
    return {"Titles": titles, "Processes": [row for row in rows if len(row) > column and row[column] in pids]}


async def sizes(engine: Engine, record: Container) -> tuple[int, int]:
    """Bytes that the container wrote, and bytes of its whole root."""
    own, whole = await engine.images.snapshot_sizes(record.id)
    return int(own), int(whole)

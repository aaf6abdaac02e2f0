"""A shim that is killed: noticed by its process, its container reported and cleaned up."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import time
from pathlib import Path

import pytest

from tests.daemon.containerd.world import Follower, World, until

pytestmark = pytest.mark.root

_PIDFD_GETFD = 438  # pidfd_getfd(2), the same number on every architecture

NOTICED = 1.0
"""Seconds from the kill to the exit being told, ten times of what is wanted for noticing it: other tests run
on this machine. Medians are in docs/benchmarks.md."""


def hold_sockets(pid: int) -> list[int]:
    """Copies of a process's sockets, so that its end closes no connection."""
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(pid)
    held = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(entry).startswith("socket:"):
            fd = libc.syscall(_PIDFD_GETFD, process, int(entry.name), 0)
            assert fd >= 0, os.strerror(ctypes.get_errno())
            held.append(fd)
    os.close(process)
    return held


def is_over(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


async def test_a_killed_shim_is_noticed_by_its_process_alone(world: World) -> None:
    """The kernel tells by the pidfd; the connection, which the test holds, says nothing."""
    async with Follower(world, "topic~=|^/tasks/|") as follower:
        container_id = await world.run("sh", "-c", "sleep 100 & sleep 100")
        bundle = world.state / "moby" / container_id
        init = (await world.get(container_id)).pid
        (shim,) = world.shim_pids()
        (inner,) = Path(f"/proc/{init}/task/{init}/children").read_text().split()
        waiting = asyncio.create_task(world.wait(container_id))
        held = hold_sockets(shim)
        try:
            began = time.monotonic()
            os.kill(shim, signal.SIGKILL)
            assert await waiting == 137
            assert time.monotonic() - began < NOTICED
            await until(lambda: follower.of("/tasks/delete"), "the container is reported as lost")
        finally:
            for fd in held:
                os.close(fd)
    assert is_over(init)
    assert is_over(int(inner))
    await until(lambda: not bundle.exists(), "the bundle is gone")
    assert str(bundle) not in Path("/proc/self/mountinfo").read_text()
    await world.remove(container_id)

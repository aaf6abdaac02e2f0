"""The end of a runtime's process, and being told of its work's end before it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import errdefs
import pytest
from shim_svc.forks import fork_child
from shim_svc.reaper import Exit, Reaper
from shim_svc.runtime import Runtime

from tests.kernel.shim.harness import until


@pytest.fixture
async def reaper() -> AsyncIterator[Reaper]:
    loop = asyncio.get_running_loop()
    reaper = Reaper()
    loop.add_signal_handler(signal.SIGCHLD, reaper.reap)
    yield reaper
    loop.remove_signal_handler(signal.SIGCHLD)


@pytest.fixture
def runtime(reaper: Reaper, tmp_path: Path) -> Runtime:
    return Runtime(
        reaper, binary="", root=str(tmp_path), namespace="n", bundle=str(tmp_path), systemd_cgroup=False
    )


async def end_of(runtime: Runtime, child: Callable[[int], int], timeout: float = 10.0) -> Exit:
    """How a child ended that has the write end of the pipe in which it may say that it is done."""
    told, tell = os.pipe2(os.O_CLOEXEC)
    try:
        pid = fork_child(lambda: child(tell), keep=(tell,))
        os.close(tell)
        return await runtime._end_of(pid, "it", timeout, told)
    finally:
        os.close(told)


async def test_what_is_done_is_told_before_the_process_has_ended(runtime: Runtime, reaper: Reaper) -> None:
    wait, end = os.pipe2(os.O_CLOEXEC)

    def child(tell: int) -> int:
        os.close(end)
        os.write(tell, b"d")
        os.read(wait, 1)
        return 0

    told, tell = os.pipe2(os.O_CLOEXEC)
    pid = fork_child(lambda: child(tell), keep=(tell, wait, end))
    os.close(tell)
    exit_ = await runtime._end_of(pid, "it", 10.0, told)
    assert (exit_.pid, exit_.status) == (pid, 0)
    assert reaper.alive(pid)  # it has not ended, and is waited for when it does
    os.close(end)
    await until(lambda: not reaper.alive(pid))
    for fd in (told, wait):
        os.close(fd)


async def test_a_child_that_ends_without_a_word_gives_its_own_status(runtime: Runtime) -> None:
    assert (await end_of(runtime, lambda tell: 3)).status == 3


async def test_a_child_that_is_killed_on_its_way_has_done_nothing(runtime: Runtime) -> None:
    def child(tell: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert (await end_of(runtime, child)).status == 128 + signal.SIGKILL


async def test_a_child_that_says_nothing_and_does_not_end_is_killed(runtime: Runtime) -> None:
    def child(tell: int) -> int:
        signal.pause()
        return 0

    with pytest.raises(errdefs.DeadlineExceeded, match=r"did not end in 0\.2 s"):
        await end_of(runtime, child, timeout=0.2)

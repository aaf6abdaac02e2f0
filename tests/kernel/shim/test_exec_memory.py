"""A shim's memory does not grow with the number of execs that it has had."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel.shim.harness import Box

pytestmark = pytest.mark.root

WARM, MEASURED = 60, 150


def anonymous(pid: int) -> int:
    """Bytes of memory that are no file's. Which of them others share, and so how many are private, changes
    with every process that ends.
    """
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Anonymous:"))


async def execs(box: Box, count: int, name: str) -> None:
    for number in range(count):
        exec_id = f"{name}{number}"
        await box.exec(exec_id, ["true"])
        await box.start(exec_id)
        await box.wait(exec_id)
        await box.delete(exec_id)
        await box.facts()  # as containerd-svc asks for them


async def test_execs_leave_nothing_behind(box: Box) -> None:
    """What is kept for each, were it only its facts, is seen in so many; the allocator's own growth, which
    comes to an end, is less.
    """
    box.write(["sleep", "1000"], driver="none")
    await box.shim()
    await box.create()
    await box.start()
    await execs(box, WARM, "warm")
    before = anonymous(box.shim_pid)
    await execs(box, MEASURED, "exec")
    assert anonymous(box.shim_pid) - before < MEASURED * 2048

"""Usage of a container's cgroup, in the messages that containerd's clients read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import errdefs
import pytest
from pb.containerd.task import v2 as task
from pb.io.containerd.cgroups import v1, v2
from shim_svc.metrics import manager_by_pid, measure

from tests.kernel.shim.harness import Box

pytestmark = pytest.mark.root

LIMITS = {"pids": {"limit": 50}, "memory": {"limit": 32 << 20}}


async def stats(box: Box) -> v1.Metrics | v2.Metrics:
    reply = await box.call("Stats", task.StatsRequest(id=box.id), task.StatsResponse)
    if reply.stats.type_url == "io.containerd.cgroups.v1.Metrics":
        return v1.Metrics.parse(reply.stats.value)
    assert reply.stats.type_url == "io.containerd.cgroups.v2.Metrics"
    return v2.Metrics.parse(reply.stats.value)


def cpu_time(metrics: v1.Metrics | v2.Metrics) -> int:
    assert metrics.cpu is not None
    if isinstance(metrics, v2.Metrics):
        return metrics.cpu.usage_usec
    assert metrics.cpu.usage is not None
    return metrics.cpu.usage.total


@pytest.mark.parametrize(
    "runtime",
    ["", pytest.param("runc", marks=pytest.mark.skipif(not shutil.which("runc"), reason="no runc here"))],
)
async def test_a_container_is_measured_until_it_ends(box: Box, runtime: str) -> None:
    box.runtime = runtime
    box.write(["sh", "-c", "read x"], resources=LIMITS)
    await box.shim()
    with pytest.raises(errdefs.NotFound):
        await stats(box)
    await box.create(stdin=True)
    pid = await box.start()
    metrics = await stats(box)
    assert cpu_time(metrics) > 0
    assert metrics.pids == type(metrics.pids)(current=1, limit=50)  # type: ignore[misc]
    memory = metrics.memory
    groups = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    if any(line.split(":")[1] == "memory" for line in groups):
        assert isinstance(memory, v1.MemoryStat)
        assert memory.usage is not None
        assert memory.usage.limit == memory.hierarchical_memory_limit == 32 << 20
        assert 0 < memory.usage.usage <= memory.usage.max
        assert memory.pg_fault > 0
        assert isinstance(metrics, v1.Metrics)
        assert metrics.memory_oom_control == v1.MemoryOomControl()
        assert len(metrics.cpu.usage.per_cpu) >= (os.cpu_count() or 1)  # type: ignore[union-attr]
    else:
        assert isinstance(memory, v2.MemoryStat)
        assert memory.usage_limit == 32 << 20
        assert 0 < memory.usage < 32 << 20
        assert memory.pgfault > 0
        assert isinstance(metrics, v2.Metrics)
        assert metrics.memory_events is not None
        assert metrics.memory_events.oom_kill == 0
    by_pid = measure(manager_by_pid(pid))  # as for a runtime whose records are not ours
    again = type(metrics).parse(by_pid.value)
    assert (again.pids, again.hugetlb) == (metrics.pids, metrics.hugetlb)
    await box.kill()
    await box.wait()
    with pytest.raises(errdefs.FailedPrecondition):
        await stats(box)

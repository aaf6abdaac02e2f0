"""The metrics of a cgroup v2, from files as its kernel shows them."""

from __future__ import annotations

from pathlib import Path

from pb.io.containerd.cgroups import v2
from runc_bin.libcontainer.cgroups import Manager
from shim_svc.metrics import V2_TYPE, measure

FILES = {
    "cpu.stat": "usage_usec 900\nuser_usec 600\nsystem_usec 300\nnr_periods 5\nnr_throttled 2\n"
    "throttled_usec 70\nnr_bursts 1\nburst_usec 4\n",
    "cpu.pressure": "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\n"
    "full avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    "memory.stat": "anon 4096\nfile 8192\npgfault 12\nworkingset_refault_anon 3\nworkingset_refault_file 4\n",
    "memory.current": "20480\n",
    "memory.max": "max\n",
    "memory.peak": "40960\n",
    "memory.swap.current": "512\n",
    "memory.swap.max": "1024\n",
    "memory.events": "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 0\n",
    "pids.current": "3\n",
    "pids.max": "max\n",
    "io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n",
    "hugetlb.2MB.current": "0\n",
    "hugetlb.2MB.max": "2097152\n",
    "hugetlb.2MB.events": "max 0\n",
}


def test_every_part_of_a_v2_group(tmp_path: Path) -> None:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    found = measure(Manager.from_paths({"": str(tmp_path)}))
    assert found.type_url == V2_TYPE
    metrics = v2.Metrics.parse(found.value)
    assert metrics.pids == v2.PidsStat(current=3, limit=(1 << 64) - 1)
    pressure = v2.PsiStats(some=v2.PsiData(avg10=1.5, avg60=0.25, total=77), full=v2.PsiData())
    assert metrics.cpu == v2.CpuStat(900, 600, 300, 5, 2, 70, pressure, 1, 4)
    memory = metrics.memory
    assert memory is not None
    assert (memory.anon, memory.file, memory.pgfault, memory.workingset_refault) == (4096, 8192, 12, 7)
    assert (memory.usage, memory.usage_limit, memory.max_usage) == (20480, (1 << 64) - 1, 40960)
    assert (memory.swap_usage, memory.swap_limit, memory.swap_max_usage) == (512, 1024, 0)
    assert metrics.memory_events == v2.MemoryEvents(high=1, max=2, oom=3, oom_kill=4)
    assert metrics.io == v2.IoStat(usage=[v2.IoEntry(8, 0, 10, 20, 1, 2)])
    assert metrics.hugetlb == [v2.HugeTlbStat(current=0, max=2 << 20, pagesize="2MB")]

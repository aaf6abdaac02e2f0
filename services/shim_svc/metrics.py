"""Usage of a container's cgroup as containerd's clients read it.

They expect `io.containerd.cgroups.v1.Metrics` where the host has cgroup v1 (also beside a v2 hierarchy), and
`io.containerd.cgroups.v2.Metrics` where it has v2 alone, each in an Any. No network counters are given, as
containerd's own shim gives none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from pb.google.protobuf import Any as AnyMessage
from pb.io.containerd.cgroups import v1, v2
from runc_bin.libcontainer.cgroups import Manager, files, hierarchy
from runc_bin.libcontainer.container import manager_of
from runc_bin.libcontainer.state import load_state

from shim_svc.bundle import read_file

V1_TYPE = "io.containerd.cgroups.v1.Metrics"
V2_TYPE = "io.containerd.cgroups.v2.Metrics"

_NO_LIMIT = (1 << 64) - 1
# Fields of MemoryStat whose name in memory.stat is another one.
_V1_MEMORY = {
    **{
        prefix + field: prefix + name
        for prefix in ("", "total_")
        for field, name in (
            ("pg_pg_in", "pgpgin"),
            ("pg_pg_out", "pgpgout"),
            ("pg_fault", "pgfault"),
            ("pg_maj_fault", "pgmajfault"),
        )
    },
    "hierarchical_swap_limit": "hierarchical_memsw_limit",
}
_BLKIO = {
    "io_service_bytes_recursive": "ioServiceBytesRecursive",
    "io_serviced_recursive": "ioServicedRecursive",
    "io_queued_recursive": "ioQueueRecursive",
    "io_service_time_recursive": "ioServiceTimeRecursive",
    "io_wait_time_recursive": "ioWaitTimeRecursive",
    "io_merged_recursive": "ioMergedRecursive",
    "io_time_recursive": "ioTimeRecursive",
    "sectors_recursive": "sectorsRecursive",
}


def manager_by_state(root: str, container: str) -> Manager:
    """The cgroup that the built-in runtime has on record; NotFound."""
    return manager_of(load_state(root, container))


def manager_by_pid(pid: int) -> Manager:
    """The cgroup that a process is in, for the container of a runtime whose records we do not know.

    Errors: OSError when there is no such process, FailedPrecondition when it has no cgroup of its own.
    """
    inside: dict[str, str] = {}
    for line in read_file(f"/proc/{pid}/cgroup").decode().splitlines():
        _, controllers, path = line.split(":", 2)
        if path != "/":
            inside |= dict.fromkeys(controllers.split(","), path)
    paths = {
        name: point + inside[name] for name, (point, _) in hierarchy.v1_mounts().items() if name in inside
    }
    if "" in inside and (not paths or hierarchy.hybrid()):
        paths[""] = (hierarchy.HYBRID_MOUNT if paths else hierarchy.MOUNT) + inside[""]
    return Manager.from_paths(paths)


def measure(manager: Manager) -> AnyMessage:
    """The cgroup's usage now; parts whose controller is missing are left out.

    Errors: OSError, and errdefs' own as `Manager.stats` gives them.
    """
    if set(manager.paths) == {""}:
        return AnyMessage(type_url=V2_TYPE, value=bytes(_v2(manager.stats(), manager.directory)))
    return AnyMessage(type_url=V1_TYPE, value=bytes(_v1(manager.stats(), manager.paths.get("memory", ""))))


# Version 1: times in nanoseconds.


def _v1(stats: Mapping[str, Any], memory_folder: str) -> v1.Metrics:
    metrics = v1.Metrics(
        hugetlb=[v1.HugetlbStat(**part, pagesize=size) for size, part in stats.get("hugetlb", {}).items()]
    )
    if "pids" in stats:
        metrics.pids = v1.PidsStat(**stats["pids"])
    if "cpu" in stats:
        metrics.cpu = _v1_cpu(stats["cpu"])
    if "memory" in stats:
        metrics.memory = _v1_memory(stats["memory"])
        with contextlib.suppress(OSError):
            control = files.read_table(f"{memory_folder}/memory.oom_control")
            metrics.memory_oom_control = v1.MemoryOomControl(
                **_of(("oom_kill_disable", "under_oom", "oom_kill"), control)
            )
    if "blkio" in stats:
        devices = _device_names()
        metrics.blkio = v1.BlkIoStat(
            **{
                field: [
                    v1.BlkIoEntry(device=devices.get((entry["major"], entry["minor"]), ""), **entry)
                    for entry in stats["blkio"].get(name, ())
                ]
                for field, name in _BLKIO.items()
            }
        )
    return metrics


def _v1_cpu(cpu: Mapping[str, Any]) -> v1.CpuStat:
    usage, throttling = cpu.get("usage", {}), cpu.get("throttling", {})
    return v1.CpuStat(
        usage=v1.CpuUsage(per_cpu=usage.get("percpu", []), **_of(("total", "kernel", "user"), usage)),
        throttling=v1.Throttle(
            periods=throttling.get("periods", 0),
            throttled_periods=throttling.get("throttledPeriods", 0),
            throttled_time=throttling.get("throttledTime", 0),
        ),
    )


def _v1_memory(memory: Mapping[str, Any]) -> v1.MemoryStat:
    raw = memory["raw"]
    known = {field: raw.get(name, 0) for field, name in _V1_MEMORY.items()} | raw
    stat = v1.MemoryStat()
    for field in _numbers(v1.MemoryStat):
        setattr(stat, field, known.get(field, 0))
    stat.usage, stat.swap = v1.MemoryEntry(**memory["usage"]), v1.MemoryEntry(**memory["swap"])
    stat.kernel, stat.kernel_tcp = v1.MemoryEntry(**memory["kernel"]), v1.MemoryEntry(**memory["kernelTCP"])
    return stat


def _device_names() -> dict[tuple[int, int], str]:
    """Path in /dev of each block device, by its number, from /proc/diskstats."""
    found = {}
    with contextlib.suppress(OSError):
        for line in files.read("/proc/diskstats").splitlines():
            major, minor, name = line.split()[:3]
            found[int(major), int(minor)] = f"/dev/{name}"
    return found


# Version 2: times in microseconds.


def _v2(stats: Mapping[str, Any], folder: str) -> v2.Metrics:
    metrics = v2.Metrics()
    for size in stats.get("hugetlb", {}):
        with contextlib.suppress(OSError):
            limit = files.read_number(f"{folder}/hugetlb.{size}.max")
            current = stats["hugetlb"][size]["usage"]
            metrics.hugetlb.append(v2.HugeTlbStat(current=current, max=limit, pagesize=size))
    if "pids" in stats:
        current, limit = stats["pids"]["current"], stats["pids"]["limit"] or _NO_LIMIT
        metrics.pids = v2.PidsStat(current=current, limit=limit)
    if "cpu" in stats:
        table = files.read_table(f"{folder}/cpu.stat")
        metrics.cpu = v2.CpuStat(**_of(_numbers(v2.CpuStat), table), psi=_pressure(stats["cpu"]))
    if "memory" in stats:
        metrics.memory = _v2_memory(stats["memory"])
        with contextlib.suppress(OSError):
            events = files.read_table(f"{folder}/memory.events")
            metrics.memory_events = v2.MemoryEvents(**_of(_numbers(v2.MemoryEvents), events))
    if "blkio" in stats:
        metrics.io = v2.IoStat(usage=_io(stats["blkio"]), psi=_pressure(stats["blkio"]))
    return metrics


def _v2_memory(memory: Mapping[str, Any]) -> v2.MemoryStat:
    raw = dict(memory["raw"])
    # One counter until Linux 5.9, two of their own since.
    for name in ("workingset_refault", "workingset_activate"):
        raw.setdefault(name, raw.get(f"{name}_anon", 0) + raw.get(f"{name}_file", 0))
    stat = v2.MemoryStat(**_of(_numbers(v2.MemoryStat), raw), psi=_pressure(memory))
    stat.usage, stat.usage_limit, stat.max_usage = (memory["usage"][key] for key in ("usage", "limit", "max"))
    stat.swap_usage, stat.swap_limit, stat.swap_max_usage = (
        memory["swap_only"][key] for key in ("usage", "limit", "max")
    )
    return stat


def _io(blkio: Mapping[str, Any]) -> list[v2.IoEntry]:
    entries: dict[tuple[int, int], v2.IoEntry] = {}
    for name, unit in (("ioServiceBytesRecursive", "bytes"), ("ioServicedRecursive", "ios")):
        for item in blkio.get(name, ()):
            device = item["major"], item["minor"]
            entry = entries.setdefault(device, v2.IoEntry(major=device[0], minor=device[1]))
            setattr(entry, item["op"][0].lower() + unit, item["value"])
    return list(entries.values())


def _pressure(part: Mapping[str, Any]) -> v2.PsiStats | None:
    if "psi" not in part:
        return None
    found = {kind: v2.PsiData(**values) for kind, values in part["psi"].items()}
    return v2.PsiStats(some=found.get("some"), full=found.get("full"))


def _numbers(kind: type) -> list[str]:
    """The fields of a message that are plain numbers."""
    return [name for name, type_ in kind.__annotations__.items() if type_ in ("int", "'int'", '"int"')]


def _of(names: Iterable[str], values: Mapping[str, int]) -> dict[str, int]:
    """The values of these names, 0 for those that are not there."""
    return {name: values.get(name, 0) for name in names}

"""`events`: usage of a container's cgroup at an interval, and each running out of its memory, as JSON lines.

Field names and types are those that runc prints and that its callers (go-runc, containerd) parse: a zero is
left out where runc leaves it out.
"""

from __future__ import annotations

import json
import os
import re
import select
import time
from collections.abc import Mapping
from typing import Any

from errdefs import BuoyError, FailedPrecondition, InvalidArgument
from linux import fds

from runc_bin.cli import Context
from runc_bin.libcontainer import container, state
from runc_bin.libcontainer.cgroups import Manager, OomEvents
from runc_bin.libcontainer.state import State
from runc_bin.log import Log
from runc_bin.output import emit

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(h|ms|m|s|us|µs|ns)")

_BLKIO = (
    *("ioServiceBytesRecursive", "ioServicedRecursive", "ioQueueRecursive", "ioServiceTimeRecursive"),
    *("ioWaitTimeRecursive", "ioMergedRecursive", "ioTimeRecursive", "sectorsRecursive"),
)
_CPUSET = (
    *("cpu_exclusive", "mem_hardwall", "mem_exclusive", "memory_migrate", "memory_spread_page"),
    *("memory_spread_slab", "memory_pressure", "sched_load_balance", "sched_relax_domain_level"),
)


def parse_duration(text: str) -> float:
    """Seconds of a duration as Go writes it, `1m30s` or `500ms`; InvalidArgument for anything else."""
    body = text.lstrip("+-")
    parts = _PART.findall(body)
    if not parts or "".join(number + unit for number, unit in parts) != body or len(text) - len(body) > 1:
        raise InvalidArgument(f'invalid value "{text}" for flag -interval: time: invalid duration "{text}"')
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    return -seconds if text.startswith("-") else seconds


def describe(stats: Mapping[str, Any]) -> dict[str, Any]:
    """What `Manager.stats` gives as runc's `events` prints it."""
    cpu, memory, blkio = stats.get("cpu", {}), stats.get("memory", {}), stats.get("blkio", {})
    cpuset = stats.get("cpuset", {})
    return {
        "cpu": {
            "usage": _kept(cpu.get("usage", {}), "kernel", "user"),
            "throttling": _kept(cpu.get("throttling", {})),
            **_kept({"psi": cpu.get("psi")}),
        },
        "cpuset": _kept(cpuset, *_CPUSET),
        "memory": {
            **_kept({"cache": memory.get("cache")}),
            **{
                name: _kept(memory.get(name, {}), "limit", "failcnt")
                for name in ("usage", "swap", "kernel", "kernelTCP")
            },
            **_kept({"raw": memory.get("raw"), "psi": memory.get("psi")}),
        },
        "pids": _kept(stats.get("pids", {})),
        "blkio": _kept(
            {name: [_kept(entry) for entry in blkio.get(name, ())] for name in _BLKIO}
            | {"psi": blkio.get("psi")}
        ),
        "hugetlb": {size: _kept(part, "failcnt") for size, part in stats.get("hugetlb", {}).items()},
        "intel_rdt": {},
        "network_interfaces": None,
    }


def _kept(values: Mapping[str, Any], *always: str) -> dict[str, Any]:
    """Without what is zero or empty, but for the names that are `always` there."""
    return dict.fromkeys(always, 0) | {
        name: value for name, value in values.items() if value or name in always
    }


def _print(record: State, kind: str, **more: Any) -> None:
    emit(json.dumps({"type": kind, "id": record.id, **more}) + "\n")


def _print_stats(record: State, manager: Manager) -> None:
    _print(record, "stats", data=describe(manager.stats()))


def _follow(record: State, manager: Manager, oom: OomEvents, pidfd: int, interval: float, log: Log) -> None:
    """Print until the container ends."""
    poller = select.poll()
    poller.register(oom.fileno(), select.POLLIN)
    poller.register(pidfd, select.POLLIN)
    due = time.monotonic() + interval
    while True:
        events = dict(poller.poll(max(0.0, due - time.monotonic()) * 1000))
        # at the end the counter is read once more: the kernel may tell of its change a little later
        happened = oom.happened() if events else False
        if happened:
            _print(record, "oom")
        if happened is None or pidfd in events:
            return
        if time.monotonic() >= due:
            due = max(due + interval, time.monotonic())
            try:
                _print_stats(record, manager)
            except (BuoyError, OSError) as error:
                log.write("error", str(error))


def run(context: Context, log: Log) -> int:
    record = state.load_state(context.root, context.args[0])
    interval = parse_duration(context.text("interval"))
    if interval <= 0:
        raise InvalidArgument("duration interval must be greater than 0")
    if container.status(context.root, record) == "stopped":
        raise FailedPrecondition(f"container with id {record.id} is not running")
    manager = container.manager_of(record)
    if context.given("stats"):
        _print_stats(record, manager)
        return 0
    try:
        pidfd = fds.open_pidfd(record.init_process_pid)
    except ProcessLookupError:
        return 0
    try:
        with manager.oom_events() as oom:
            if state.init_is_alive(record):
                _follow(record, manager, oom, pidfd, interval, log)
    finally:
        os.close(pidfd)
    return 0

"""The `process` object of the runtime spec (config.json, process.json), checked.

Errors are `errdefs.InvalidArgument` naming the field. Source: opencontainers/runtime-spec, config.md
"Process".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from errdefs import InvalidArgument

from runc_bin.libcontainer.capabilities import Capabilities
from runc_bin.libcontainer.fields import ID_MAX, get, number, objects, strings, text
from runc_bin.record import Record

RLIMITS: dict[str, int] = {  # include/uapi/asm-generic/resource.h
    "RLIMIT_CPU": 0,
    "RLIMIT_FSIZE": 1,
    "RLIMIT_DATA": 2,
    "RLIMIT_STACK": 3,
    "RLIMIT_CORE": 4,
    "RLIMIT_RSS": 5,
    "RLIMIT_NPROC": 6,
    "RLIMIT_NOFILE": 7,
    "RLIMIT_MEMLOCK": 8,
    "RLIMIT_AS": 9,
    "RLIMIT_LOCKS": 10,
    "RLIMIT_SIGPENDING": 11,
    "RLIMIT_MSGQUEUE": 12,
    "RLIMIT_NICE": 13,
    "RLIMIT_RTPRIO": 14,
    "RLIMIT_RTTIME": 15,
}
_SCHEDULERS = {
    "SCHED_OTHER": 0,
    "SCHED_FIFO": 1,
    "SCHED_RR": 2,
    "SCHED_BATCH": 3,
    "SCHED_ISO": 4,
    "SCHED_IDLE": 5,
    "SCHED_DEADLINE": 6,
}
_SCHEDULER_FLAGS = {
    "SCHED_FLAG_RESET_ON_FORK": 0x01,
    "SCHED_FLAG_RECLAIM": 0x02,
    "SCHED_FLAG_DL_OVERRUN": 0x04,
    "SCHED_FLAG_KEEP_POLICY": 0x08,
    "SCHED_FLAG_KEEP_PARAMS": 0x10,
    "SCHED_FLAG_UTIL_CLAMP_MIN": 0x20,
    "SCHED_FLAG_UTIL_CLAMP_MAX": 0x40,
}
_IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_CPU_MAX = 8191  # the most that the kernel can be built for (NR_CPUS)

# What a further process has as the container's first one has it, where its own object says nothing: as runc.
_INHERITED = ("capabilities", "rlimits", "selinuxLabel", "scheduler", "ioPriority")

NO_PROCESS = "process property must not be empty"


class Rlimit(Record):
    """One resource limit: the name's number, soft and hard value (2**64 - 1 is no limit)."""

    name: str
    number: int
    soft: int
    hard: int


class Scheduler(Record):
    """Arguments of sched_setattr(2); times in nanoseconds."""

    policy: int
    flags: int
    nice: int
    priority: int
    runtime: int
    deadline: int
    period: int


class Process(Record):
    """What is executed, and as whom. `umask` and `oom_score_adj` are None where the spec has none; so are the
    CPUs that a further process is to run on before it joins the control group, and after.
    """

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    terminal: bool
    console_size: tuple[int, int] | None  # rows, columns
    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    umask: int | None
    capabilities: Capabilities
    rlimits: tuple[Rlimit, ...]
    no_new_privileges: bool
    apparmor_profile: str
    selinux_label: str
    oom_score_adj: int | None
    scheduler: Scheduler | None
    io_priority: int | None
    initial_cpus: frozenset[int] | None
    final_cpus: frozenset[int] | None


def inherited(document: Mapping[str, Any]) -> dict[str, Any]:
    """What of a container's `process` object holds for its further processes, where theirs say nothing."""
    kept = {key: document[key] for key in _INHERITED if _is_given(document.get(key))}
    umask = (document.get("user") or {}).get("umask")
    return kept if umask is None else {**kept, "user": {"umask": umask}}


def read_further_process(document: Mapping[str, Any], of_container: Mapping[str, Any]) -> Process:
    """Check the `process` object of a further process; `of_container` is what `inherited` gave."""
    if not isinstance(document, dict):
        raise InvalidArgument("process must be an object")
    merged = {**of_container, **{key: value for key, value in document.items() if _is_given(value)}}
    user = get(document, "user", dict, {}, "process.")
    return read_process({**merged, "user": {**of_container.get("user", {}), **user}})


def _is_given(value: object) -> bool:
    return value is not None and value != "" and value != []


def read_process(document: Mapping[str, Any]) -> Process:
    """Check a `process` object. One without `capabilities` has none."""
    w = "process."
    user = get(document, "user", dict, {}, w)
    args = strings(document, "args", w)
    cwd = text(document, "cwd", w)
    if not cwd:
        raise InvalidArgument("process.cwd: Cwd property must not be empty")
    if not cwd.startswith("/"):
        raise InvalidArgument("process.cwd: Cwd must be an absolute path")
    if not args:
        raise InvalidArgument("process.args must not be empty")
    size = get(document, "consoleSize", dict, {}, w)
    rows = number(size, "height", w + "consoleSize.", 0, 0xFFFF)
    columns = number(size, "width", w + "consoleSize.", 0, 0xFFFF)
    gids = get(user, "additionalGids", list, [], w + "user.")
    for gid in gids:
        if not isinstance(gid, int) or isinstance(gid, bool) or not 0 <= gid <= ID_MAX:
            raise InvalidArgument(f"process.user.additionalGids: invalid gid {gid!r}")
    affinity = get(document, "execCPUAffinity", dict, {}, w)
    score = document.get("oomScoreAdj")
    return Process(
        args=args,
        env=strings(document, "env", w),
        cwd=cwd,
        terminal=get(document, "terminal", bool, False, w),
        console_size=(rows, columns) if rows and columns else None,
        uid=number(user, "uid", w + "user.", 0, ID_MAX),
        gid=number(user, "gid", w + "user.", 0, ID_MAX),
        additional_gids=tuple(gids),
        umask=number(user, "umask", w + "user.", 0, 0o7777) if user.get("umask") is not None else None,
        capabilities=Capabilities.read(get(document, "capabilities", dict, {}, w)),
        rlimits=_read_rlimits(document),
        no_new_privileges=get(document, "noNewPrivileges", bool, False, w),
        apparmor_profile=text(document, "apparmorProfile", w),
        selinux_label=text(document, "selinuxLabel", w),
        oom_score_adj=number(document, "oomScoreAdj", w, -1000, 1000) if score is not None else None,
        scheduler=_read_scheduler(document),
        io_priority=_read_io_priority(document),
        initial_cpus=_read_cpus(affinity, "initial"),
        final_cpus=_read_cpus(affinity, "final"),
    )


def no_process() -> Process:
    """What stands for the process of a spec that has none: a container can be created from that, but not
    run (runtime.md, "Start"). It has no `args`.
    """
    return read_process({"cwd": "/", "args": [""]}).replace(args=())


def _read_rlimits(document: Mapping[str, Any]) -> tuple[Rlimit, ...]:
    limits: dict[str, Rlimit] = {}
    for item in objects(document, "rlimits", "process."):
        name = text(item, "type", "process.rlimits.")
        if name not in RLIMITS:
            raise InvalidArgument(f"process.rlimits.type: invalid rlimit type {name!r}")
        if name in limits:
            raise InvalidArgument(f"process.rlimits: rlimit {name} is given twice")
        soft = number(item, "soft", "process.rlimits.", 0, 2**64 - 1)
        hard = number(item, "hard", "process.rlimits.", 0, 2**64 - 1)
        limits[name] = Rlimit(name, RLIMITS[name], soft, hard)
    return tuple(limits.values())


def _read_scheduler(document: Mapping[str, Any]) -> Scheduler | None:
    section = get(document, "scheduler", dict, {}, "process.")
    if not section:
        return None
    w = "process.scheduler."
    policy = text(section, "policy", w)
    if policy not in _SCHEDULERS:
        raise InvalidArgument(f"process.scheduler.policy: invalid scheduler policy {policy!r}")
    flags = 0
    for name in strings(section, "flags", w):
        if name not in _SCHEDULER_FLAGS:
            raise InvalidArgument(f"process.scheduler.flags: invalid scheduler flag {name!r}")
        flags |= _SCHEDULER_FLAGS[name]
    top = 2**64 - 1
    if policy not in ("SCHED_FIFO", "SCHED_RR") and section.get("priority"):
        raise InvalidArgument(f"{w}priority can only be specified for SCHED_FIFO or SCHED_RR")
    times = {key: number(section, key, w, 0, top) for key in ("runtime", "deadline", "period")}
    if policy != "SCHED_DEADLINE" and any(times.values()):
        raise InvalidArgument(f"{w}runtime, deadline and period can only be specified for SCHED_DEADLINE")
    return Scheduler(
        policy=_SCHEDULERS[policy],
        flags=flags,
        nice=number(section, "nice", w, -20, 19),
        priority=number(section, "priority", w, 0, 99),
        **times,
    )


def _read_io_priority(document: Mapping[str, Any]) -> int | None:
    section = get(document, "ioPriority", dict, {}, "process.")
    if not section:
        return None
    kind = text(section, "class", "process.ioPriority.")
    if kind not in _IO_CLASSES:
        raise InvalidArgument(f"process.ioPriority.class: invalid class {kind!r}")
    return _IO_CLASSES[kind] << 13 | number(section, "priority", "process.ioPriority.", 0, 7)


def _read_cpus(section: Mapping[str, Any], key: str) -> frozenset[int] | None:
    """CPUs of a list as `0-3,7`; None for an empty one."""
    where = "process.execCPUAffinity."
    words = text(section, key, where)
    found: set[int] = set()
    for word in words.split(","):
        first, dash, last = (part.strip() for part in word.partition("-"))
        if not word.strip():
            continue
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InvalidArgument(f"{where}{key}: {words!r} is no list of CPUs")
        low, high = int(first), int(last if dash else first)
        if not low <= high <= _CPU_MAX:
            raise InvalidArgument(f"{where}{key}: {word.strip()!r} is no range of CPUs")
        found.update(range(low, high + 1))
    return frozenset(found) or None

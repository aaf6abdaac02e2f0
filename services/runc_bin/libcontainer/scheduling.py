"""Scheduler, I/O priority, execution domain and CPUs of the program."""

from __future__ import annotations

import os

from linux import syscalls

from runc_bin.contexts import suppress
from runc_bin.libcontainer.failures import step
from runc_bin.libcontainer.process_spec import Process

_IOPRIO_WHO_PROCESS = 1
_ALL_CPUS = range(8192)  # more than any kernel has; it takes those that the control group allows


def apply(process: Process, personality: int | None) -> None:
    """Set what the spec names; nothing else changes."""
    plan = process.scheduler
    if plan is not None:
        with step("error setting scheduler"):
            syscalls.sched_setattr(
                plan.policy, plan.flags, plan.nice, plan.priority, plan.runtime, plan.deadline, plan.period
            )
    if process.io_priority is not None:
        with step("failed to set io priority"):
            syscalls.ioprio_set(_IOPRIO_WHO_PROCESS, 0, process.io_priority)
    if personality is not None:
        with step("unable to set the personality"):
            syscalls.personality(personality)


def take_cpus(cpus: frozenset[int]) -> set[int]:
    """Run on these CPUs, as a child made now will from its birth on; those that it was on before."""
    before = os.sched_getaffinity(0)
    with step("error setting initial CPU affinity"):
        os.sched_setaffinity(0, cpus)
    return before


def settle_affinity(process: Process) -> None:
    """Set the CPUs that a further process runs on from its entry into the control group on: those named, or
    all that the group allows (config.md, `execCPUAffinity`).
    """
    if process.final_cpus is None:
        use_all_cpus()
        return
    with step("error setting final CPU affinity"):
        os.sched_setaffinity(0, process.final_cpus)


def use_all_cpus() -> None:
    """Run on all CPUs that the control group allows, whatever our caller is bound to: since Linux 6.2 a
    change of the group does not undo that.
    """
    if len(os.sched_getaffinity(0)) < (os.cpu_count() or 1):
        with suppress(OSError):  # then it stays bound
            os.sched_setaffinity(0, _ALL_CPUS)

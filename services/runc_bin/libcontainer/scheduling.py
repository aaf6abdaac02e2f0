"""Scheduler, I/O priority and execution domain of the program."""

from __future__ import annotations

from linux import syscalls

from runc_bin.libcontainer.failures import step
from runc_bin.libcontainer.process_spec import Process

_IOPRIO_WHO_PROCESS = 1


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

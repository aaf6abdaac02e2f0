"""The facts about one task, in containerd's topics and messages."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from pb.buoy.events.v1 import LogDropped
from pb.containerd.events import (
    TaskCreate,
    TaskDelete,
    TaskExecAdded,
    TaskExecStarted,
    TaskExit,
    TaskIo,
    TaskOom,
    TaskPaused,
    TaskResumed,
    TaskStart,
)
from pb.containerd.types import Mount

from shim_svc.facts import Facts
from shim_svc.process import Process
from shim_svc.reaper import Exit


def as_time(ns: int) -> datetime.datetime:
    """Nanoseconds since 1970 as the stubs want them."""
    return datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=ns // 1000)


class TaskFacts:
    """Publishes what happened to the container's task and its execs."""

    def __init__(self, facts: Facts, container_id: str) -> None:
        self._facts = facts
        self._id = container_id

    def created(self, init: Process, bundle: str, rootfs: Sequence[Mount]) -> None:
        """init: with its pid. rootfs: the mounts of the root file system."""
        stdin, stdout, stderr = init.fields
        io = TaskIo(stdin=stdin, stdout=stdout, stderr=stderr, terminal=init.stdio.terminal)
        event = TaskCreate(container_id=self._id, bundle=bundle, rootfs=list(rootfs), io=io, pid=init.pid)
        self._facts.publish("/tasks/create", event)

    def started(self, pid: int) -> None:
        self._facts.publish("/tasks/start", TaskStart(container_id=self._id, pid=pid))

    def exec_added(self, exec_id: str) -> None:
        self._facts.publish("/tasks/exec-added", TaskExecAdded(container_id=self._id, exec_id=exec_id))

    def exec_started(self, exec_id: str, pid: int) -> None:
        event = TaskExecStarted(container_id=self._id, exec_id=exec_id, pid=pid)
        self._facts.publish("/tasks/exec-started", event)

    def exited(self, process: Process, exit_: Exit) -> None:
        self._facts.publish(
            "/tasks/exit",
            TaskExit(
                container_id=self._id,
                id=process.exec_id or self._id,
                pid=exit_.pid,
                exit_status=exit_.status,
                exited_at=as_time(exit_.at),
            ),
        )

    def killed_for_memory(self) -> None:
        self._facts.publish("/tasks/oom", TaskOom(container_id=self._id))

    def log_dropped(self) -> None:
        self._facts.publish("/buoy/log-dropped", LogDropped(container_id=self._id), package="buoy.events.v1")

    def paused(self) -> None:
        self._facts.publish("/tasks/paused", TaskPaused(container_id=self._id))

    def resumed(self) -> None:
        self._facts.publish("/tasks/resumed", TaskResumed(container_id=self._id))

    def deleted(self, exit_: Exit) -> None:
        """exit_: of init; its time is 0 when it never ran."""
        self._facts.publish(
            "/tasks/delete",
            TaskDelete(
                container_id=self._id,
                pid=exit_.pid,
                exit_status=exit_.status,
                exited_at=as_time(exit_.at) if exit_.at else None,
            ),
        )

"""A task as this daemon knows it: what its shim said last. Reads are answered from here."""

from __future__ import annotations

import asyncio
import datetime

import betterproto2
from pb.containerd import events
from pb.containerd.v1.types import Process as ProcessMessage
from pb.containerd.v1.types import Status

from containerd_svc.bundle import Bundle, TaskRecord
from containerd_svc.shims import Shim
from containerd_svc.task_rows import TaskName


class Process:
    """One process of a task: the init (empty id) or an exec. A restart of the task makes a new object."""

    def __init__(
        self,
        exec_id: str = "",
        *,
        stdin: str = "",
        stdout: str = "",
        stderr: str = "",
        terminal: bool = False,
    ) -> None:
        self.exec_id = exec_id
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.terminal = terminal
        self.status = Status.CREATED
        self.pid = 0
        self.exit_status = 0
        self.exited_at: datetime.datetime | None = None
        self.ended = asyncio.Event()
        # Learnt from the shim, so that a call which made it may not have been answered.
        self.adopted = False

    def running(self, pid: int) -> None:
        """It was started as `pid`. An exit that is known already stands."""
        self.pid = pid or self.pid
        if self.status == Status.CREATED:
            self.status = Status.RUNNING

    def exited(self, exit_status: int, exited_at: datetime.datetime | None) -> None:
        """It has ended; whoever waits is told."""
        if not self.ended.is_set():
            self.status = Status.STOPPED
            self.exit_status = exit_status
            self.exited_at = exited_at
            self.ended.set()

    def message(self, container_id: str) -> ProcessMessage:
        """As Tasks.Get and List answer it."""
        return ProcessMessage(
            container_id=container_id,
            id=self.exec_id or container_id,
            pid=self.pid,
            status=self.status,
            stdin=self.stdin,
            stdout=self.stdout,
            stderr=self.stderr,
            terminal=self.terminal,
            exit_status=self.exit_status,
            exited_at=self.exited_at,
        )


class Task:
    """A container's live processes and the shim that holds them (None while a dead one is being replaced)."""

    def __init__(self, bundle: Bundle, record: TaskRecord) -> None:
        self.bundle = bundle
        self.record = record
        self.name = TaskName(bundle.namespace, bundle.id, record.key)
        self.shim: Shim | None = None
        self.init = self.new_init()
        self.execs: dict[str, Process] = {}
        self.created = False  # List shows it from then on
        self.unanswered: set[str] = set()  # calls whose caller may have got no answer: "create", "start"
        self.deleted = asyncio.Event()  # the shim's fact of the init's deletion was taken
        self.gone = asyncio.Event()  # nothing is left of it
        self.has_facts = True
        self.silent = False  # the shim did not answer a read in time
        self.follower: asyncio.Task[None] | None = None
        self.burial: asyncio.Task[None] | None = None  # clean-up behind a shim that has died
        self.restart: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None

    @property
    def place(self) -> tuple[str, str]:
        """Namespace and id."""
        return self.bundle.namespace, self.bundle.id

    def new_init(self) -> Process:
        """The init process of the next run, as the Create request describes it."""
        request = self.record.request
        return Process(
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            terminal=request.terminal,
        )

    def apply(self, topic: str, message: betterproto2.Message) -> None:
        """Take over one fact. Facts of an earlier run, known by its pid, change nothing."""
        if isinstance(message, events.TaskExit):
            process = self.init if message.id in (self.bundle.id, "") else self.execs.get(message.id)
            if process is not None and process.pid in (0, message.pid):
                process.pid = message.pid
                process.exited(message.exit_status, message.exited_at)
        elif isinstance(message, events.TaskStart):
            if message.pid == self.init.pid:
                self.init.running(message.pid)
        elif isinstance(message, events.TaskPaused):
            if self.init.status == Status.RUNNING:
                self.init.status = Status.PAUSED
        elif isinstance(message, events.TaskResumed):
            if self.init.status == Status.PAUSED:
                self.init.status = Status.RUNNING
        elif isinstance(message, events.TaskExecStarted):
            if message.exec_id in self.execs:
                self.execs[message.exec_id].running(message.pid)
        elif isinstance(message, events.TaskDelete) and message.id in ("", self.bundle.id):
            self.deleted.set()

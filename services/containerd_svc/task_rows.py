"""What must be known of a task after this daemon was killed, and cannot be asked of its shim.

One row for each task: how far its shim's facts were taken over (in the transaction that published them, so
that none is lost and none is seen twice), how it last was, and its restarts by policy. Rows are intents: the
exit record is what is durable.
"""

from __future__ import annotations

import dataclasses
import datetime
import logging
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import betterproto2
import errdefs
from linux.crashpoints import crashpoint
from pb.buoy.events.v1 import RestartDecision
from pb.buoy.facts.v1 import Fact, NextResponse
from pb.containerd.events import TaskDelete, TaskExit
from pb.containerd.v1.types import Status
from pb.google.protobuf import Any as AnyMessage
from storage.database import Database

from containerd_svc import containers, restart_policy
from containerd_svc.events import Events, Recorder, unpacked

log = logging.getLogger(__name__)

_KILLED = 137  # exit status of a process that SIGKILL ended
_DELETED = -1  # status of a task whose deletion is published while its bundle is still there

MIGRATION = """
CREATE TABLE tasks (
  namespace TEXT NOT NULL, id TEXT NOT NULL, key TEXT NOT NULL,
  epoch TEXT NOT NULL DEFAULT '', seq INTEGER NOT NULL DEFAULT 0,
  status INTEGER NOT NULL DEFAULT 0, pid INTEGER NOT NULL DEFAULT 0, started_at INTEGER NOT NULL DEFAULT 0,
  exit_pid INTEGER NOT NULL DEFAULT 0, exit_status INTEGER NOT NULL DEFAULT 0,
  exited_at INTEGER NOT NULL DEFAULT 0, restarts INTEGER NOT NULL DEFAULT 0,
  backoff_ms INTEGER NOT NULL DEFAULT 0, due_at INTEGER NOT NULL DEFAULT 0,
  PRIMARY KEY (namespace, id)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class TaskName:
    """A task's place: `key` differs for each task that a container has."""

    namespace: str
    id: str
    key: str


@dataclass
class Row:
    """Times in microseconds since 1970, 0 for never. `due_at` is when a restart by policy is due."""

    namespace: str
    id: str
    key: str
    epoch: str = ""
    seq: int = 0
    status: int = 0
    pid: int = 0
    started_at: int = 0
    exit_pid: int = 0
    exit_status: int = 0
    exited_at: int = 0
    restarts: int = 0
    backoff_ms: int = 0
    due_at: int = 0


@dataclass(frozen=True)
class Taken:
    """Facts that are new, as topic and message, the cursor behind them, and when a restart is due (0:
    none)."""

    facts: tuple[tuple[str, betterproto2.Message], ...]
    epoch: str
    seq: int
    due_at: int


_FIELDS = [column.name for column in dataclasses.fields(Row)]
_SELECT = f"SELECT {', '.join(_FIELDS)} FROM tasks"


class TaskRows:
    """The rows of all tasks."""

    def __init__(self, database: Database, events: Events) -> None:
        self._database = database
        self._events = events
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    async def all(self) -> dict[tuple[str, str], Row]:
        """Every row, by namespace and id."""
        rows = await self._database.read(lambda connection: connection.execute(_SELECT).fetchall())
        return {(row[0], row[1]): Row(*row) for row in rows}

    async def get(self, name: TaskName) -> Row:
        """One row; a fresh one when the task has none yet."""
        return await self._database.read(lambda connection: _load(connection, name))

    async def take(self, name: TaskName, answer: NextResponse, *, sandbox: Callable[[], bool]) -> Taken:
        """Publish the facts that are new, and decide on a restart after an exit; one transaction.

        `sandbox` says whether the container's network namespace exists.
        """

        def change(connection: sqlite3.Connection, record: Recorder) -> Taken:
            row = _load(connection, name)
            if row.epoch != answer.epoch:
                row.epoch, row.seq = answer.epoch, 0
            new = [fact for fact in answer.facts if fact.seq > row.seq]
            if new and new[0].seq != row.seq + 1:
                log.error("%s: facts %d to %d were lost by its shim", name.id, row.seq + 1, new[0].seq - 1)
            taken: list[tuple[str, betterproto2.Message]] = []
            for fact in new:
                row.seq = fact.seq
                message = fact.event and unpacked(fact.event.type_url, fact.event.value)
                if fact.event is None or message is None:
                    log.error("%s: unknown fact %s", name.id, fact.topic)
                    continue
                record(name.namespace, fact.topic, fact.event)
                taken.append((fact.topic, message))
                self._apply(connection, record, row, fact, message, sandbox)
            _save(connection, row)
            return Taken(tuple(taken), row.epoch, row.seq, row.due_at)

        taken = await self._events.transact(change, durable=False)
        crashpoint("containerd.facts.taken")
        return taken

    async def forward(
        self, name: TaskName, topic: str, event: AnyMessage, *, sandbox: Callable[[], bool]
    ) -> Taken:
        """Publish what a shim without facts told of its task, and decide on a restart after an exit; one
        transaction. An exit of init that was published already is not published again, and not among what is
        taken.
        """

        def change(connection: sqlite3.Connection, record: Recorder) -> Taken:
            row = _load(connection, name)
            message = unpacked(event.type_url, event.value)
            if _is_init_exit(message, row) and message.pid == row.exit_pid:
                return Taken((), row.epoch, row.seq, row.due_at)
            written = record(name.namespace, topic, event)
            if message is None:
                return Taken((), row.epoch, row.seq, row.due_at)
            fact = Fact(topic=topic, timestamp=written.moment, event=event)
            self._apply(connection, record, row, fact, message, sandbox)
            _save(connection, row)
            return Taken(((topic, message),), row.epoch, row.seq, row.due_at)

        return await self._events.transact(change, durable=False)

    async def bury(
        self,
        name: TaskName,
        pid: int,
        exit_status: int,
        exited_at: datetime.datetime,
        *,
        execs: Sequence[tuple[str, int]],
        sandbox: Callable[[], bool],
    ) -> Taken:
        """Publish the exit of a container whose shim is dead, unless it was published, and decide on a
        restart.

        Without one, the task's deletion is published too, as containerd does. `execs`: id and pid of those
        that ran in it, which ended with it.
        """
        exited = TaskExit(
            container_id=name.id, id=name.id, pid=pid, exit_status=exit_status, exited_at=exited_at
        )

        def change(connection: sqlite3.Connection, record: Recorder) -> Taken:
            row = _load(connection, name)
            taken: list[tuple[str, betterproto2.Message]] = []
            for exec_id, exec_pid in execs:
                ended = dataclasses.replace(exited, id=exec_id, pid=exec_pid, exit_status=_KILLED)
                record(name.namespace, "/tasks/exit", ended)
                taken.append(("/tasks/exit", ended))
            if pid and row.exit_pid != pid:
                record(name.namespace, "/tasks/exit", exited)
                taken.append(("/tasks/exit", exited))
                self._exited(connection, record, row, exited, sandbox)
            if not row.due_at and row.status != _DELETED and (pid or row.status):
                row.status = _DELETED
                record(
                    name.namespace,
                    "/tasks/delete",
                    TaskDelete(
                        container_id=name.id,
                        pid=pid,
                        exit_status=row.exit_status if pid else exit_status,
                        exited_at=exited_at,
                    ),
                )
            _save(connection, row)
            return Taken(tuple(taken), row.epoch, row.seq, row.due_at)

        return await self._events.transact(change, durable=False)

    async def cancel_restart(self, name: TaskName) -> bool:
        """Take back a restart that is due, and say so. Whether one was."""
        return await self._events.transact(
            lambda connection, record: cancel_in(connection, record, name.namespace, name.id), durable=False
        )

    async def restarted(self, name: TaskName) -> None:
        """The restart that was due has been made."""

        def change(connection: sqlite3.Connection) -> None:
            row = _load(connection, name)
            row.due_at = 0
            _save(connection, row)

        await self._database.write(change, durable=False)

    async def forget(self, name: TaskName) -> None:
        """Remove the row of a task that is gone."""
        await self._database.write(
            lambda connection: connection.execute(
                "DELETE FROM tasks WHERE namespace=? AND id=? AND key=?", (name.namespace, name.id, name.key)
            ),
            durable=False,
        )

    def _apply(
        self,
        connection: sqlite3.Connection,
        record: Recorder,
        row: Row,
        fact: Fact,
        message: betterproto2.Message,
        sandbox: Callable[[], bool],
    ) -> None:
        if fact.topic == "/tasks/create":
            row.status, row.pid = Status.CREATED, getattr(message, "pid", 0)
        elif fact.topic == "/tasks/start":
            row.status, row.pid, row.due_at = Status.RUNNING, getattr(message, "pid", 0), 0
            row.started_at = _micros(fact.timestamp)
        elif fact.topic == "/tasks/paused":
            row.status = Status.PAUSED
        elif fact.topic == "/tasks/resumed":
            row.status = Status.RUNNING
        elif _is_init_exit(message, row):
            self._exited(connection, record, row, message, sandbox)

    def _exited(
        self,
        connection: sqlite3.Connection,
        record: Recorder,
        row: Row,
        exited: TaskExit,
        sandbox: Callable[[], bool],
    ) -> None:
        row.status = Status.STOPPED
        row.exit_pid, row.exit_status = exited.pid, exited.exit_status
        row.exited_at = _micros(exited.exited_at)
        try:
            labels = containers.load(connection, row.namespace, row.id).labels
        except errdefs.NotFound:
            return
        ran = (row.exited_at - row.started_at) / 1e6 if row.started_at else 0.0
        decision = restart_policy.decide(
            labels,
            exit_status=row.exit_status,
            ran=ran,
            restarts=row.restarts,
            backoff_ms=row.backoff_ms,
            boot_id=self._boot_id,
            sandbox=sandbox,
        )
        if decision is None:
            return
        if decision.restart:
            row.restarts += 1
            row.backoff_ms = decision.backoff_ms
            row.due_at = time.time_ns() // 1000 + decision.backoff_ms * 1000
        _publish(record, row)


def cancel_in(connection: sqlite3.Connection, record: Recorder, namespace: str, container_id: str) -> bool:
    """Within a write: take back a due restart of a container and record that. Whether one was due."""
    found = connection.execute(
        f"{_SELECT} WHERE namespace=? AND id=? AND due_at>0", (namespace, container_id)
    ).fetchone()
    if found is None:
        return False
    row = Row(*found)
    row.due_at = 0
    row.restarts -= 1  # the one that was due did not happen
    _save(connection, row)
    _publish(record, row)
    return True


def _is_init_exit(message: betterproto2.Message | None, row: Row) -> TypeGuard[TaskExit]:
    return isinstance(message, TaskExit) and message.id in (row.id, "")


def _publish(record: Recorder, row: Row) -> None:
    record(
        row.namespace,
        "/buoy/restart",
        RestartDecision(
            container_id=row.id,
            restart=row.due_at > 0,
            due=moment(row.due_at) if row.due_at else None,
            count=row.restarts,
        ),
    )


def _load(connection: sqlite3.Connection, name: TaskName) -> Row:
    found = connection.execute(f"{_SELECT} WHERE namespace=? AND id=?", (name.namespace, name.id)).fetchone()
    # A row of an earlier task of this container has nothing to say about this one.
    if found is None or found[2] != name.key:
        return Row(name.namespace, name.id, name.key)
    return Row(*found)


def _save(connection: sqlite3.Connection, row: Row) -> None:
    values: Sequence[object] = [getattr(row, name) for name in _FIELDS]
    marks = ",".join("?" * len(_FIELDS))
    connection.execute(f"REPLACE INTO tasks ({', '.join(_FIELDS)}) VALUES ({marks})", values)


def moment(micros: int) -> datetime.datetime:
    """Microseconds since 1970 as a time."""
    return datetime.datetime.fromtimestamp(micros // 10**6, tz=datetime.UTC) + datetime.timedelta(
        microseconds=micros % 10**6
    )


def _micros(time_: datetime.datetime | None) -> int:
    if time_ is None:
        return 0
    delta = time_ - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    return (delta.days * 86_400 + delta.seconds) * 10**6 + delta.microseconds

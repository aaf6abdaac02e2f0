"""Starting is recovering: what the bundles and the shims say is what there is; memory and rows only add to
it.

Every bundle is looked at side by side with the others and has a deadline, so that a stuck shim delays nobody.
"""

from __future__ import annotations

import asyncio
import logging
import time

import errdefs
from pb.containerd.task.v2 import StateRequest, StateResponse
from pb.containerd.v1.types import Status

from containerd_svc.bundle import Bundle, TaskRecord, scan
from containerd_svc.shims import Shim
from containerd_svc.supervisor import Supervisor
from containerd_svc.task import Task
from containerd_svc.task_rows import Row, TaskName, moment
from containerd_svc.tasks import adopted

log = logging.getLogger(__name__)

_CONNECT = 2.0  # seconds
_ANSWER = 1.0  # seconds for a shim to say how its task is, before it counts as stuck


class Recovery:
    """One pass over all bundles."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def run(self) -> int:
        """Take up every task. Returns how many there are. What takes long (burials, restarts) goes on
        behind."""
        began = time.monotonic()
        rows = await self._supervisor.rows.all()
        bundles = list(scan(self._supervisor.state))
        await asyncio.gather(
            *(self._recover(bundle, rows.pop((bundle.namespace, bundle.id), None)) for bundle in bundles)
        )
        for row in rows.values():  # their bundles are gone: a deletion was under way, or the host has booted
            name = TaskName(row.namespace, row.id, row.key)
            await self._supervisor.rows.cancel_restart(name)
            await self._supervisor.rows.forget(name)
        found = len(self._supervisor.tasks)
        log.info(
            "%d of %d bundles hold a task, after %.0f ms",
            found,
            len(bundles),
            (time.monotonic() - began) * 1e3,
        )
        return found

    async def _recover(self, bundle: Bundle, row: Row | None) -> None:
        try:
            record = bundle.record()
            if record is None:
                self._supervisor.discard(bundle)  # killed while it was being written: nothing else was begun
                return
            if row is None or row.key != record.key:
                row = Row(bundle.namespace, bundle.id, record.key)
            await self._with_record(bundle, record, row)
        except Exception:
            log.exception("%s could not be recovered: left as it is", bundle.path)

    async def _with_record(self, bundle: Bundle, record: TaskRecord, row: Row) -> None:
        task = _remembered(bundle, record, row)
        try:
            if bundle.bootstrap() is None and not bundle.pid("shim.pid"):
                # Killed around the call that starts the shim. Starting is idempotent: this finds it, if it
                # was started.
                shim = await self._supervisor.shims.start(bundle)
            else:
                shim = await self._supervisor.shims.connect(bundle, timeout=_CONNECT)
        except errdefs.BuoyError as error:
            log.info("%s has no shim: %s", bundle.id, error.message)
            await self._without_shim(task, row)
            return
        task.shim = shim
        try:
            state = await shim.call("State", StateRequest(id=bundle.id), StateResponse, timeout=_ANSWER)
        except errdefs.NotFound:
            if not row.due_at:
                # Create was not done, or Delete was: undo the one, finish the other.
                await self._supervisor.dismiss(shim)
                self._supervisor.discard(bundle)
                await self._supervisor.rows.forget(task.name)
                return
            state = None
        except errdefs.BuoyError as error:
            log.warning("%s: its shim does not answer (%s): as it was last known", bundle.id, error.message)
            state = None
        if state is not None:
            # Of a foreign shim's task that has ended meanwhile, the shim is waited for to tell, but not long.
            if not shim.foreign or state.status != Status.STOPPED or row.exit_pid == state.pid:
                task.init = adopted(state, "")
            _note_unanswered(task)
        self._supervisor.tasks[task.place] = task
        epoch, seq = await self._facts(task, shim, row)
        self._supervisor.follow(task, epoch, seq)
        due_at = (await self._supervisor.rows.get(task.name)).due_at
        if due_at and task.restart is None and task.timer is None:
            self._supervisor.arm(task, due_at)

    async def _facts(self, task: Task, shim: Shim, row: Row) -> tuple[str, int]:
        """Publish what the shim has to tell since this daemon stopped; returns the cursor."""
        epoch, seq = row.epoch, row.seq
        if shim.foreign:
            return epoch, seq
        try:
            while True:
                answer = await shim.facts(epoch, seq, 0, timeout=_ANSWER)
                if not answer.facts:
                    return answer.epoch or epoch, seq
                taken = await self._supervisor.rows.take(
                    task.name, answer, sandbox=task.bundle.sandbox_exists
                )
                epoch, seq = taken.epoch, taken.seq
                self._supervisor.apply(task, taken)
        except errdefs.BuoyError:
            return epoch, seq  # the follower asks again, and knows what to do

    async def _without_shim(self, task: Task, row: Row) -> None:
        """Nothing lives: a death to report, or a creation to undo."""
        if not (task.init.pid or row.status):
            await self._supervisor.rows.forget(task.name)
        self._supervisor.tasks[task.place] = task
        self._supervisor.spawn(self._supervisor.bury(task, None), f"death of the shim of {task.bundle.id}")


def _remembered(bundle: Bundle, record: TaskRecord, row: Row) -> Task:
    """The task as the files and the row have it, for as long as its shim says nothing."""
    task = Task(bundle, record)
    task.created = True
    task.init.pid = bundle.pid("init.pid") or row.pid
    task.init.status = Status(row.status) if row.status > 0 else Status.CREATED
    if row.exited_at and row.exit_pid == task.init.pid:
        task.init.exited(row.exit_status, moment(row.exited_at))
    return task


def _note_unanswered(task: Task) -> None:
    """Calls that began and whose callers may have got no answer: a repeated call gets it."""
    created = task.bundle.marked("create")
    if created is not None and not created[1]:
        task.unanswered.add("create")
    started = task.bundle.marked("start")
    if started is not None and not started[1]:
        task.unanswered.add("start")

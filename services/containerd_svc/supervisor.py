"""The table of tasks, and all that happens to a task without a client's call: facts, death of its shim,
restarts."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import betterproto2
import errdefs
from linux.crashpoints import crashpoint
from pb.containerd.events import TaskExit
from pb.containerd.task.v2 import (
    CreateTaskRequest,
    CreateTaskResponse,
    DeleteRequest,
    DeleteResponse,
    KillRequest,
    ShutdownRequest,
    StartRequest,
    StartResponse,
    WaitRequest,
    WaitResponse,
)
from pb.containerd.v1.types import Status
from pb.google.protobuf import Any as AnyMessage
from pb.google.protobuf import Empty

from containerd_svc import restart_policy
from containerd_svc.bundle import Bundle, empty_trash
from containerd_svc.containers import Containers
from containerd_svc.events import packed_any
from containerd_svc.shims import Shim, Shims
from containerd_svc.task import Process, Task
from containerd_svc.task_rows import Taken, TaskRows

log = logging.getLogger(__name__)

T = TypeVar("T")

CREATE = 60.0  # seconds for each call to a shim
START = 60.0
DELETE = 30.0
SHORT = 10.0
_POLL_MS = 60_000  # how long the shim may hold a poll for facts
_POLL = 75.0
_FAREWELL = 3.0  # seconds for a shim to end after Shutdown, then it is killed
_BURY_TRIES = 3
_LATE = 2.0  # seconds from the end of a foreign shim's process to its event
_TOLD = 1_000  # ends that are remembered as told
_KILLED = 137


class Supervisor:
    """Holds the tasks of all namespaces. Each one is looked after by tasks of the event loop of its own."""

    def __init__(self, *, state: Path, shims: Shims, rows: TaskRows, containers: Containers) -> None:
        self.state = state
        self.shims = shims
        self.rows = rows
        self._containers = containers
        self.tasks: dict[tuple[str, str], Task] = {}
        self._leaving: dict[tuple[str, str], asyncio.Event] = {}
        self._background: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._sweeping = False
        self._told: dict[tuple[str, str, str, int], None] = {}  # ends that were told for a shim

    # Background work.

    def spawn(self, work: Coroutine[Any, Any, T], what: str) -> asyncio.Task[T]:
        """Run `work` on its own; what it raises is logged unless somebody awaits the task first."""
        task = asyncio.create_task(work, name=what)
        self._background.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, errdefs.BuoyError):
                log.debug("%s: %s", task.get_name(), error)
            else:
                log.error("%s failed", task.get_name(), exc_info=error)

    async def close(self) -> None:
        """Stop looking after the tasks, which live on."""
        self._closing = True
        for task in self.tasks.values():
            if task.timer is not None:
                task.timer.cancel()
        for work in list(self._background):
            work.cancel()
        if self._background:
            await asyncio.wait(self._background, timeout=0.3)
        for task in self.tasks.values():
            if task.shim is not None:
                await task.shim.close()

    def discard(self, bundle: Bundle) -> None:
        """Remove a bundle folder; its files go in a thread."""
        self.shims.forget(bundle)
        bundle.remove()
        if not self._sweeping:
            self._sweeping = True
            self.spawn(self._sweep(), "emptying of the trash")

    async def _sweep(self) -> None:
        self._sweeping = False  # what is thrown away from now on wants another sweep
        await asyncio.get_running_loop().run_in_executor(None, empty_trash, self.state)

    # Making and unmaking.

    async def launch(
        self, task: Task, spec: bytes, fetch: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        """Bundle, shim, Create; all undone in reverse when one fails. `fetch` puts more into the bundle."""
        await self._left(task.place)
        async with contextlib.AsyncExitStack() as undo:
            task.bundle.create(spec, task.record)
            undo.callback(self.discard, task.bundle)
            task.bundle.mark("create", task.record.call_key, done=False)
            if fetch is not None:
                await fetch()
            try:
                shim = await self.shims.start(task.bundle)
            except BaseException:
                await self._dismiss_late(task.bundle)
                raise
            undo.push_async_callback(self.dismiss, shim)
            crashpoint("containerd.create.shim-started")
            try:
                reply = await shim.call("Create", task.record.request, CreateTaskResponse, timeout=CREATE)
            except errdefs.BuoyError as error:
                raise type(error)(f"failed to create shim task: {error.message}") from error
            crashpoint("containerd.create.created")
            undo.pop_all()
        task.shim = shim
        task.init = task.new_init()
        task.init.pid = reply.pid
        task.created = True
        task.bundle.mark("create", task.record.call_key, done=True)
        self.follow(task, "", 0)

    async def _dismiss_late(self, bundle: Bundle) -> None:
        """End a shim whose start failed here, but which may be there all the same, or may have left its
        socket."""
        try:
            await self.dismiss(await self.shims.connect(bundle))
        except errdefs.BuoyError:
            await self._clean_up(bundle)

    async def dismiss(self, shim: Shim) -> None:
        """End a shim without a task: ask, then kill and clean up behind it."""
        with contextlib.suppress(errdefs.BuoyError):
            await shim.call("Shutdown", ShutdownRequest(id=shim.bundle.id, now=True), Empty, timeout=1.0)
        if self._is_shared(shim):
            await shim.close()
            return
        try:
            async with asyncio.timeout(_FAREWELL):
                await shim.dead.wait()
        except TimeoutError:
            shim.kill()
        finally:
            await shim.close()
        # A shim that ended as it should has removed its socket last.
        if shim.is_listed():
            await self._clean_up(shim.bundle)

    async def retire(self, task: Task) -> None:
        """Remove a task whose init is deleted. The shim's end is awaited by the next task of the same
        place."""
        shim, task.shim = task.shim, None
        if task.follower is not None:
            task.follower.cancel()
        self._leaving[task.place] = left = asyncio.Event()
        self._drop(task)
        if shim is not None:
            with contextlib.suppress(errdefs.BuoyError):
                await shim.call("Shutdown", ShutdownRequest(id=task.bundle.id), Empty, timeout=1.0)
        crashpoint("containerd.delete.shut-down")
        self.discard(task.bundle)
        self.spawn(self._leave(task, shim, left), f"end of {task.bundle.id}")

    async def _leave(self, task: Task, shim: Shim | None, left: asyncio.Event) -> None:
        try:
            await self.rows.cancel_restart(task.name)  # of an exit that was taken over during the deletion
            await self.rows.forget(task.name)
            if shim is not None:
                if not self._is_shared(shim):
                    try:
                        async with asyncio.timeout(_FAREWELL):
                            await shim.dead.wait()
                    except TimeoutError:
                        log.warning("the shim of %s did not end: killed", task.bundle.id)
                        shim.kill()
                await shim.close()
            if task.place not in self.tasks:
                self.discard(task.bundle)  # what the shim wrote on its way out
        finally:
            left.set()
            if self._leaving.get(task.place) is left:
                del self._leaving[task.place]

    async def _left(self, place: tuple[str, str]) -> None:
        left = self._leaving.get(place)
        if left is not None:
            async with asyncio.timeout(_FAREWELL + 2.0):
                await left.wait()

    def _is_shared(self, shim: Shim) -> bool:
        """Whether another task is, or is being made, in the same foreign shim."""
        return shim.foreign and any(
            task.shim.pid == shim.pid
            if task.shim is not None
            else (task.bundle.bootstrap() or ("",))[0] == shim.path
            for place, task in self.tasks.items()
            if task.record.shim and place != (shim.bundle.namespace, shim.bundle.id)
        )

    def _drop(self, task: Task) -> None:
        if task.timer is not None:
            task.timer.cancel()
        if self.tasks.get(task.place) is task:
            del self.tasks[task.place]
        task.gone.set()

    # Facts.

    def follow(self, task: Task, epoch: str, seq: int) -> None:
        """Take over the shim's facts from behind this cursor on, until the task is gone."""
        task.follower = self.spawn(self._follow(task, epoch, seq), f"facts of {task.bundle.id}")

    async def _follow(self, task: Task, epoch: str, seq: int) -> None:
        shim = task.shim
        assert shim is not None
        if shim.foreign:
            task.has_facts = False
            self.watch(task, task.init)
            await shim.dead.wait()
        while True:
            try:
                answer = await shim.facts(epoch, seq, _POLL_MS, timeout=_POLL)
            except errdefs.DeadlineExceeded:
                continue  # a stopped shim: it will tell when it goes on
            except errdefs.NotImplementedHere:
                task.has_facts = False
                await shim.dead.wait()
                answer = None
            except errdefs.Unavailable:
                await shim.reconnected()
                answer = None
            if shim.dead.is_set():
                self.spawn(self.bury(task, shim), f"death of the shim of {task.bundle.id}")
                return
            if answer is None:
                continue
            epoch = answer.epoch
            if answer.facts:
                taken = await self.rows.take(task.name, answer, sandbox=task.bundle.sandbox_exists)
                seq = taken.seq
                self.apply(task, taken)

    def apply(self, task: Task, taken: Taken) -> None:
        """Take facts that are published over into memory, and prepare the restart that they led to."""
        for topic, message in taken.facts:
            task.apply(topic, message)
        exits = [message for _, message in taken.facts if isinstance(message, TaskExit)]
        if taken.due_at and any(exit_.id in (task.bundle.id, "") for exit_ in exits):
            self.arm(task, taken.due_at)

    # What shims tell that have no facts.

    def was_told(self, namespace: str, message: betterproto2.Message) -> bool:
        """Whether this is an end that was told already, since the shim's word of it was late."""
        if not isinstance(message, TaskExit):
            return False
        return (namespace, message.container_id, message.id, message.pid) in self._told

    async def tell(self, task: Task, topic: str, event: AnyMessage) -> None:
        """Publish an event of a task, and take it over."""
        self.apply(task, await self.rows.forward(task.name, topic, event, sandbox=task.bundle.sandbox_exists))

    def watch(self, task: Task, process: Process) -> None:
        """See to it that the end of a process in a foreign shim is told: its event is lost when this daemon
        is away for longer than the shim tries."""
        what = f"end of {process.exec_id or 'init'} of {task.bundle.id}"
        self.spawn(self._watch(task, task.shim, process), what)

    async def _watch(self, task: Task, shim: Shim | None, process: Process) -> None:
        while shim is not None and task.shim is shim and not shim.dead.is_set():
            request = WaitRequest(id=task.bundle.id, exec_id=process.exec_id)
            try:
                reply = await shim.call("Wait", request, WaitResponse, timeout=0)
            except errdefs.Unavailable:
                await shim.reconnected()
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LATE):
                    await process.ended.wait()
            if not process.ended.is_set() and task.shim is shim:
                await self._tell_end(task, process, reply)
            return

    async def _tell_end(self, task: Task, process: Process, reply: WaitResponse) -> None:
        exited = TaskExit(
            container_id=task.bundle.id,
            id=process.exec_id or task.bundle.id,
            pid=process.pid,
            exit_status=reply.exit_status,
            exited_at=reply.exited_at,
        )
        self._told[(task.bundle.namespace, exited.container_id, exited.id, exited.pid)] = None
        if len(self._told) > _TOLD:
            del self._told[next(iter(self._told))]
        await self.tell(task, "/tasks/exit", packed_any(exited))
        process.exited(reply.exit_status, reply.exited_at)

    # Death of a shim.

    async def bury(self, task: Task, shim: Shim | None) -> None:
        """The shim has died (None: before this daemon began): end what it left running, publish the exit,
        then restart or remove the task. Returns when that is done, whoever began it."""
        if task.burial is None:
            if self.tasks.get(task.place) is not task or task.shim is not shim or self._closing:
                return
            task.burial = self.spawn(self._bury(task), f"burial of {task.bundle.id}")
        await asyncio.shield(task.burial)

    async def _bury(self, task: Task) -> None:
        try:
            await self._clean_up_behind(task)
        finally:
            task.burial = None

    async def _clean_up_behind(self, task: Task) -> None:
        if task.shim is not None:
            await task.shim.close()
            task.shim = None
        bundle = task.bundle
        pid = task.init.pid or bundle.pid("init.pid")
        log.warning("the shim of %s in %s has died", bundle.id, bundle.namespace)
        record = bundle.exit_record()
        reply = await self._clean_up(bundle)
        if reply is None:
            return
        exit_status = _KILLED
        exited_at = datetime.datetime.now(datetime.UTC)
        if task.record.shim:
            pid = pid or reply.pid
            exit_status, exited_at = reply.exit_status, reply.exited_at or exited_at
        if record is not None:
            exit_status = int(record["exit_status"])
            exited_at = datetime.datetime.fromisoformat(str(record["exited_at"])[:26].rstrip("Z") + "+00:00")
        execs = [
            (process.exec_id, process.pid)
            for process in task.execs.values()
            if process.status == Status.RUNNING
        ]
        taken = await self.rows.bury(
            task.name, pid, exit_status, exited_at, execs=execs, sandbox=bundle.sandbox_exists
        )
        crashpoint("containerd.bury.published")
        self.apply(task, taken)
        task.execs.clear()
        if not task.init.ended.is_set():
            task.init.exited(exit_status, exited_at)
        if taken.due_at:
            self.arm(task, taken.due_at)
            return
        self.discard(bundle)
        self._drop(task)
        await self.rows.forget(task.name)

    async def _clean_up(self, bundle: Bundle) -> DeleteResponse | None:
        for attempt in range(_BURY_TRIES):
            try:
                return await self.shims.delete(bundle)
            except errdefs.BuoyError as error:
                log.warning("%s (try %d)", error.message, attempt + 1)
                await asyncio.sleep(attempt)
        # The bundle stays as the intent: the next start of this daemon tries again.
        log.error("what the dead shim of %s left running could not be ended", bundle.id)
        return None

    # Restarts by policy.

    def arm(self, task: Task, due_at: int) -> None:
        """Restart the task at `due_at` (microseconds since 1970), or at once when that is past."""
        if task.timer is not None:
            task.timer.cancel()
        delay = max(0.0, due_at / 1e6 - time.time())
        task.timer = asyncio.get_running_loop().call_later(delay, self._due, task)

    def _due(self, task: Task) -> None:
        task.timer = None
        if self.tasks.get(task.place) is task and not self._closing:
            task.restart = self.spawn(self._restart(task), f"restart of {task.bundle.id}")

    async def _restart(self, task: Task) -> None:
        try:
            if not await self._still_due(task):
                return
            if task.shim is None:
                await self._relaunch(task)
            elif task.shim.foreign:
                await self._replace(task, task.shim)
            elif task.init.status != Status.CREATED and not await self._recreate(task, task.shim):
                return
            shim = task.shim
            assert shim is not None
            crashpoint("containerd.restart.created")
            if not await self._still_due(task):
                return
            started = await shim.call("Start", StartRequest(id=task.bundle.id), StartResponse, timeout=START)
            task.init.running(started.pid)
            crashpoint("containerd.restart.started")
            await self.rows.restarted(task.name)
            # A stop that came while Start was under way found a restart to cancel, not a process to end.
            container = await self._containers.get(*task.place)
            if restart_policy.explicitly_stopped(container.labels):
                await shim.call(
                    "Kill", KillRequest(id=task.bundle.id, signal=9, all=True), Empty, timeout=SHORT
                )
        except errdefs.BuoyError as error:
            log.warning("%s is not started again: %s", task.bundle.id, error.message)
            await self.rows.cancel_restart(task.name)
        finally:
            task.restart = None

    async def _still_due(self, task: Task) -> bool:
        return (await self.rows.get(task.name)).due_at > 0

    async def _recreate(self, task: Task, shim: Shim) -> bool:
        """Delete and Create in the living shim; False when the restart was cancelled in between."""
        with contextlib.suppress(errdefs.NotFound):
            await shim.call("Delete", DeleteRequest(id=task.bundle.id), DeleteResponse, timeout=DELETE)
        crashpoint("containerd.restart.deleted")
        if not await self._still_due(task):
            return False
        request: CreateTaskRequest = replace(task.record.request, checkpoint="")  # it begins anew
        reply = await shim.call("Create", request, CreateTaskResponse, timeout=CREATE)
        task.deleted.clear()
        task.execs.clear()
        task.init = task.new_init()
        task.init.pid = reply.pid
        return True

    async def _replace(self, task: Task, shim: Shim) -> None:
        """Delete the task in a foreign shim, and make it in a new one: none promises to take another."""
        if task.init.status != Status.CREATED:
            with contextlib.suppress(errdefs.NotFound):
                await shim.call("Delete", DeleteRequest(id=task.bundle.id), DeleteResponse, timeout=DELETE)
        task.shim = None
        if task.follower is not None:
            task.follower.cancel()
        await self.dismiss(shim)
        await self._relaunch(task)

    async def _relaunch(self, task: Task) -> None:
        """A new shim and bundle for a task whose shim has died."""
        spec = (task.bundle.path / "config.json").read_bytes()
        self.discard(task.bundle)
        task.deleted.clear()
        task.execs.clear()
        task.record = replace(task.record, request=replace(task.record.request, checkpoint=""))
        await self.launch(task, spec)

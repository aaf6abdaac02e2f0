"""Tasks as clients drive them: every verb of containerd's Tasks service, over the shims.

Reads are answered from memory. A verb that must not stop half-way runs on when its caller goes away; its
result then waits for the caller's repeated call. No lock is held over a call to a shim, and each such call
has a deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

import errdefs
from betterproto2 import Message
from pb.containerd.services.tasks.v1 import CreateTaskRequest, ExecProcessRequest
from pb.containerd.task import v2
from pb.containerd.types import Descriptor
from pb.containerd.v1.types import ProcessInfo, Status
from pb.google.protobuf import Any as AnyMessage
from pb.google.protobuf import Empty

from containerd_svc import identifiers, runtimes
from containerd_svc.bundle import Bundle, TaskRecord
from containerd_svc.checkpoints import Checkpoints, image_path, restore_path
from containerd_svc.containers import Container, Containers
from containerd_svc.runtimes import Runtime
from containerd_svc.shims import Shim
from containerd_svc.supervisor import CREATE, DELETE, SHORT, START, Supervisor
from containerd_svc.task import Process, Task

T = TypeVar("T")
M = TypeVar("M", bound=Message)

_GLANCE = 0.1  # seconds that a read waits for what the shim knows better
_DYING = 0.2  # seconds from the loss of a shim's connection to the news of its death
_TOLD = 1.0  # seconds for the event of an end
_STATE = 2.0  # seconds to learn of a process from its shim
_STATS = 2.0
CHECKPOINT = 630.0  # more than the shim gives CRIU


class Tasks:
    """The verbs. `namespace` and `container_id` name a task, `exec_id` one of its processes, empty the init.
    shims: those that the configuration gives to names of runtimes.
    """

    def __init__(
        self,
        supervisor: Supervisor,
        containers: Containers,
        checkpoints: Checkpoints,
        *,
        runtime_root: str,
        shims: Mapping[str, str],
    ) -> None:
        self._supervisor = supervisor
        self._containers = containers
        self._checkpoints = checkpoints
        self._runtime_root = runtime_root
        self._shims = shims

    # Life cycle.

    async def create(self, namespace: str, request: CreateTaskRequest, call_key: str = "") -> int:
        """Make the task of a container; returns its init's pid.

        A call that repeats one whose answer was lost (the same `call_key`, or the same request without keys)
        gets that answer. Raises NotFound for an unknown container, AlreadyExists, NotImplementedHere, and
        what the shim raises.
        """
        container = await self._containers.get(namespace, request.container_id)
        source = request.checkpoint if request.checkpoint and request.checkpoint.digest else None
        if source is not None:
            await self._checkpoints.check(namespace, source)
        runtime = runtimes.resolve(container.runtime, request.runtime_path, shims=self._shims)
        if request.task_api_address:
            raise errdefs.NotImplementedHere("tasks inside a sandbox's shim are not implemented")
        bundle = Bundle(self._supervisor.state, namespace, container.id)
        wanted = self._shim_request(container, bundle, request, runtime)
        record = TaskRecord(wanted, request.runtime_path or container.runtime, call_key, runtime.shim)
        spec = container.spec.value if container.spec is not None else b""
        there = self._supervisor.tasks.get((namespace, container.id))
        if there is not None:
            if _repeats(there, record):
                there.unanswered.discard("create")
                return there.init.pid
            raise errdefs.AlreadyExists(f"task {container.id}: already exists")
        task = Task(bundle, record)
        self._supervisor.tasks[task.place] = task
        return await self._to_the_end(self._create(task, spec, source), task, "create")

    async def _create(self, task: Task, spec: bytes, source: Descriptor | None) -> int:
        async def fetch() -> None:
            if source is not None:
                folder = Path(task.record.request.checkpoint)
                await self._checkpoints.fetch(task.bundle.namespace, source, folder)

        try:
            await self._supervisor.launch(task, spec, fetch)
        except BaseException:
            if self._supervisor.tasks.get(task.place) is task:
                del self._supervisor.tasks[task.place]
            task.gone.set()
            raise
        return task.init.pid

    async def start(self, namespace: str, container_id: str, exec_id: str, call_key: str = "") -> int:
        """Start the init or an exec; returns its pid. Raises NotFound, FailedPrecondition when it was
        started."""
        task = await self._task(namespace, container_id)
        process = await self._process(task, exec_id)
        if exec_id:
            if process.adopted and process.status != Status.CREATED:
                process.adopted = False
                return process.pid
        elif process.status != Status.CREATED:
            marked = task.bundle.marked("start")
            repeated = bool(call_key) and marked is not None and marked[0] == call_key
            if "start" in task.unanswered or repeated:
                task.unanswered.discard("start")
                return process.pid
        return await self._to_the_end(self._start(task, process, call_key), task, "start")

    async def _start(self, task: Task, process: Process, call_key: str) -> int:
        shim = _shim(task)
        if not process.exec_id:
            task.bundle.mark("start", call_key, done=False)
        restored = "" if process.exec_id else task.record.request.checkpoint
        request = v2.StartRequest(id=task.bundle.id, exec_id=process.exec_id)
        reply = await shim.call("Start", request, v2.StartResponse, timeout=CHECKPOINT if restored else START)
        process.running(reply.pid)
        if process.exec_id and shim.foreign:
            self._supervisor.watch(task, process)
        if restored == _images_of(task.bundle):
            await self._checkpoints.drop(Path(restored))  # they lie in memory
        if not process.exec_id:
            task.bundle.mark("start", call_key, done=True)
        return process.pid

    async def delete(self, namespace: str, container_id: str) -> Process:
        """Remove an ended task and its shim; returns how the init ended. Raises NotFound,
        FailedPrecondition."""
        task = await self._task(namespace, container_id)
        return await self._to_the_end(self._delete(task), task, "delete")

    async def _delete(self, task: Task) -> Process:
        if task.shim is None and await self._buried(task, None) and task.gone.is_set():
            return task.init
        if task.timer is not None or task.restart is not None:
            await self._supervisor.rows.cancel_restart(task.name)
        if task.restart is not None:
            await asyncio.wait([task.restart], timeout=CREATE + START)
        ended = task.init
        shim = task.shim
        if shim is not None:
            request = v2.DeleteRequest(id=task.bundle.id)
            try:
                reply = await shim.call("Delete", request, v2.DeleteResponse, timeout=DELETE)
                if shim.foreign:
                    await _settled(ended.ended, _TOLD)  # the end is published while the task is known
                ended.pid = reply.pid or ended.pid
                ended.exited(reply.exit_status, reply.exited_at)
            except errdefs.NotFound:
                if not ended.ended.is_set():
                    raise
            except errdefs.Unavailable:
                if not await self._buried(task, shim):
                    raise
                if task.gone.is_set():
                    return ended
                await self._supervisor.rows.cancel_restart(task.name)  # which the burial has prepared
                await self._supervisor.retire(task)
                return ended
            if task.has_facts and not task.deleted.is_set():
                await _settled(task.deleted, 1.0)
        await self._supervisor.retire(task)
        return ended

    async def delete_process(self, namespace: str, container_id: str, exec_id: str) -> Process:
        """Forget an exec that has ended; returns how. Raises NotFound, FailedPrecondition while it runs."""
        task = await self._task(namespace, container_id)
        process = await self._process(task, exec_id)
        request = v2.DeleteRequest(id=container_id, exec_id=exec_id)
        reply = await _shim(task).call("Delete", request, v2.DeleteResponse, timeout=DELETE)
        process.pid = reply.pid or process.pid
        process.exited(reply.exit_status, reply.exited_at)
        task.execs.pop(exec_id, None)
        return process

    async def exec(self, namespace: str, request: ExecProcessRequest) -> None:
        """Prepare another process in a running task. Raises InvalidArgument, NotFound, AlreadyExists."""
        if not request.exec_id:
            raise errdefs.InvalidArgument("exec id cannot be empty: invalid argument")
        identifiers.validate(request.exec_id, f"invalid exec id {request.exec_id}")
        task = await self._task(namespace, request.container_id)
        process = Process(
            request.exec_id,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            terminal=request.terminal,
        )
        known = request.exec_id in task.execs
        wanted = v2.ExecProcessRequest(
            id=request.container_id,
            exec_id=request.exec_id,
            terminal=request.terminal,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            spec=request.spec,
        )
        try:
            await _shim(task).call("Exec", wanted, Empty, timeout=SHORT)
        except errdefs.AlreadyExists:
            # Made by a call of the daemon that was killed before it could answer: memory would have it
            # otherwise.
            if known:
                raise
        task.execs[request.exec_id] = process

    # Signals, terminal, freezer.

    async def kill(self, namespace: str, container_id: str, exec_id: str, signal: int, every: bool) -> None:
        """Send a signal to a process, or with `every` to all of the task. Raises NotFound."""
        task = await self._task(namespace, container_id)
        await self._process(task, exec_id)
        request = v2.KillRequest(id=container_id, exec_id=exec_id, signal=signal, all=every)
        shim = task.shim
        try:
            await _shim(task).call("Kill", request, Empty, timeout=SHORT)
        except errdefs.Unavailable:
            if not await self._buried(task, shim):
                raise
            raise errdefs.NotFound("process already finished") from None

    async def resize(self, namespace: str, container_id: str, exec_id: str, width: int, height: int) -> None:
        """Set the size of a process's terminal, in characters."""
        task = await self._task(namespace, container_id)
        await self._process(task, exec_id)
        request = v2.ResizePtyRequest(id=container_id, exec_id=exec_id, width=width, height=height)
        await _shim(task).call("ResizePty", request, Empty, timeout=SHORT)

    async def close_stdin(self, namespace: str, container_id: str, exec_id: str) -> None:
        """Close the standard input of a process."""
        task = await self._task(namespace, container_id)
        await self._process(task, exec_id)
        request = v2.CloseIoRequest(id=container_id, exec_id=exec_id, stdin=True)
        await _shim(task).call("CloseIO", request, Empty, timeout=SHORT)

    async def checkpoint(
        self, namespace: str, container_id: str, options: AnyMessage | None, lease: str = ""
    ) -> list[Descriptor]:
        """Write the task's processes to the folder that the options name, or else to blobs, whose descriptors
        are returned. Raises NotFound, FailedPrecondition, InvalidArgument for options of another kind, and
        what the shim raises.
        """
        container = await self._containers.get(namespace, container_id)
        task = await self._task(namespace, container_id)
        wanted = image_path(options)
        folder = None if wanted else self._checkpoints.folder()
        try:
            request = v2.CheckpointTaskRequest(id=container_id, path=wanted or str(folder), options=options)
            await _shim(task).call("Checkpoint", request, Empty, timeout=CHECKPOINT)
            if folder is None:
                return []
            return await self._checkpoints.store(namespace, folder, container.spec, lease)
        finally:
            if folder is not None:
                await self._checkpoints.drop(folder)

    async def pause(self, namespace: str, container_id: str) -> None:
        """Freeze the task."""
        task = await self._task(namespace, container_id)
        await _shim(task).call("Pause", v2.PauseRequest(id=container_id), Empty, timeout=SHORT)
        if task.init.status == Status.RUNNING:
            task.init.status = Status.PAUSED

    async def resume(self, namespace: str, container_id: str) -> None:
        """Thaw the task."""
        task = await self._task(namespace, container_id)
        await _shim(task).call("Resume", v2.ResumeRequest(id=container_id), Empty, timeout=SHORT)
        if task.init.status == Status.PAUSED:
            task.init.status = Status.RUNNING

    async def update(
        self, namespace: str, container_id: str, resources: AnyMessage | None, annotations: Mapping[str, str]
    ) -> None:
        """Change the task's limits."""
        task = await self._task(namespace, container_id)
        request = v2.UpdateTaskRequest(id=container_id, resources=resources, annotations=dict(annotations))
        await _shim(task).call("Update", request, Empty, timeout=SHORT)

    # Reads.

    async def get(self, namespace: str, container_id: str, exec_id: str) -> Process:
        """One process as it is now: an end whose fact is still on its way is told. Raises NotFound.

        A shim that does not answer at once is not asked again until it does.
        """
        task = await self._task(namespace, container_id)
        known = await self._process(task, exec_id)
        if known.status is not Status.RUNNING or task.shim is None or task.silent:
            return known
        request = v2.StateRequest(id=task.bundle.id, exec_id=exec_id)
        try:
            state = await task.shim.call("State", request, v2.StateResponse, timeout=_GLANCE)
        except errdefs.DeadlineExceeded:
            task.silent = True
            self._supervisor.spawn(self._listen(task, task.shim), f"silence of {task.bundle.id}")
            return known
        except errdefs.BuoyError:
            return known
        return adopted(state, exec_id) if state.status == Status.STOPPED else known

    async def _listen(self, task: Task, shim: Shim) -> None:
        """Note when a silent shim answers again."""
        while task.shim is shim:
            try:
                request = v2.StateRequest(id=task.bundle.id)
                await shim.call("State", request, v2.StateResponse, timeout=CREATE)
            except errdefs.DeadlineExceeded:
                continue
            except errdefs.BuoyError:
                pass
            break
        task.silent = False

    def all(self, namespace: str) -> list[Task]:
        """The tasks of a namespace."""
        return [
            task
            for task in self._supervisor.tasks.values()
            if task.bundle.namespace == namespace and task.created
        ]

    async def pids(self, namespace: str, container_id: str) -> list[ProcessInfo]:
        """All processes inside the task."""
        task = await self._task(namespace, container_id)
        request = v2.PidsRequest(id=container_id)
        return (await _shim(task).call("Pids", request, v2.PidsResponse, timeout=SHORT)).processes

    async def wait(self, namespace: str, container_id: str, exec_id: str) -> Process:
        """Return when a process has ended, at once when it has. Raises NotFound."""
        process = await self._process(await self._task(namespace, container_id), exec_id)
        await process.ended.wait()
        return process

    async def stats(self, task: Task) -> AnyMessage | None:
        """The shim's measurements of a task; None when it gives none now."""
        if task.shim is None:
            return None
        try:
            request = v2.StatsRequest(id=task.bundle.id)
            return (await task.shim.call("Stats", request, v2.StatsResponse, timeout=_STATS)).stats
        except errdefs.BuoyError:
            return None

    # Inside.

    async def _task(self, namespace: str, container_id: str) -> Task:
        task = self._supervisor.tasks.get((namespace, container_id))
        if task is None or not task.created:
            await self._containers.get(
                namespace, container_id
            )  # which says when even the container is missing
            raise errdefs.NotFound(f"task {container_id} not found")
        return task

    async def _buried(self, task: Task, shim: Shim | None) -> bool:
        """Whether the shim, which did not answer, has died; its container has ended when this returns.
        DeadlineExceeded when that takes too long.
        """
        if shim is None:
            if task.burial is None:
                return False
        else:
            await _settled(shim.dead, _DYING)
            if not shim.dead.is_set():
                return False
        try:
            async with asyncio.timeout(DELETE):
                await self._supervisor.bury(task, shim)
        except TimeoutError:
            raise errdefs.DeadlineExceeded(f"task {task.bundle.id} is still being cleaned up") from None
        return True

    async def _process(self, task: Task, exec_id: str) -> Process:
        if not exec_id:
            return task.init
        known = task.execs.get(exec_id)
        if known is not None:
            return known
        if task.shim is None:
            raise errdefs.NotFound(f'process "{exec_id}" of task {task.bundle.id}: not found')
        request = v2.StateRequest(id=task.bundle.id, exec_id=exec_id)
        state = await task.shim.call("State", request, v2.StateResponse, timeout=_STATE)
        process = task.execs.setdefault(exec_id, adopted(state, exec_id))
        if task.shim.foreign and process.status != Status.STOPPED:
            self._supervisor.watch(task, process)
        return process

    async def _to_the_end(self, work: Coroutine[Any, Any, T], task: Task, verb: str) -> T:
        """Run `work` on even when the caller goes away; note then that nobody got its result."""
        running = self._supervisor.spawn(work, f"{verb} of {task.bundle.id}")
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            task.unanswered.add(verb)
            raise

    def _shim_request(
        self, container: Container, bundle: Bundle, request: CreateTaskRequest, runtime: Runtime
    ) -> v2.CreateTaskRequest:
        options = request.options
        if options is None or not options.value:
            options = container.runtime_options
        return v2.CreateTaskRequest(
            id=container.id,
            bundle=str(bundle.path),
            rootfs=request.rootfs,
            terminal=request.terminal,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
            checkpoint=restore_path(request.options)
            or (_images_of(bundle) if request.checkpoint and request.checkpoint.digest else ""),
            options=runtimes.options_for(options, runtime, root=self._runtime_root),
        )


def _images_of(bundle: Bundle) -> str:
    """Where the images lie that a task is restored from, until it runs."""
    return str(bundle.path / "checkpoint")


def adopted(state: v2.StateResponse, exec_id: str) -> Process:
    """A process that the shim has and memory has not."""
    process = Process(
        exec_id,
        stdin=state.stdin,
        stdout=state.stdout,
        stderr=state.stderr,
        terminal=state.terminal,
    )
    process.adopted = True
    process.pid = state.pid
    process.status = state.status
    if state.status == Status.STOPPED:
        process.exited(state.exit_status, state.exited_at)
    return process


def _repeats(there: Task, wanted: TaskRecord) -> bool:
    """Whether a Create asks again for the task that an unanswered Create made."""
    if not there.created or bytes(there.record.request) != bytes(wanted.request):
        return False
    if wanted.call_key:
        return there.record.call_key == wanted.call_key
    return "create" in there.unanswered


def _shim(task: Task) -> Shim:
    if task.shim is None:
        raise errdefs.Unavailable(f"task {task.bundle.id} has no shim now")
    return task.shim


async def _settled(event: asyncio.Event, timeout: float) -> None:
    try:
        async with asyncio.timeout(timeout):
            await event.wait()
    except TimeoutError:
        pass

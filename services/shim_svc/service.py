"""The shim's Task API (containerd.task.v2 and v3, whose messages are the same): decode, do, encode."""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any as Anything
from typing import TypeVar

import errdefs
import grpclib
import grpclib.const
from pb.containerd.runc.v1 import ProcessDetails
from pb.containerd.task.v2 import (
    CheckpointTaskRequest,
    CloseIoRequest,
    ConnectRequest,
    ConnectResponse,
    CreateTaskRequest,
    CreateTaskResponse,
    DeleteRequest,
    DeleteResponse,
    ExecProcessRequest,
    KillRequest,
    PauseRequest,
    PidsRequest,
    PidsResponse,
    ResizePtyRequest,
    ResumeRequest,
    ShutdownRequest,
    StartRequest,
    StartResponse,
    StateRequest,
    StateResponse,
    StatsRequest,
    StatsResponse,
    TaskBase,
    UpdateTaskRequest,
    WaitRequest,
    WaitResponse,
)
from pb.containerd.v1.types import ProcessInfo
from pb.containerd.v1.types import Status as WireStatus
from pb.google.protobuf import Any, Empty

from shim_svc import checkpoint
from shim_svc.container import Container
from shim_svc.facts import Facts
from shim_svc.process import Process, Status
from shim_svc.reaper import Reaper
from shim_svc.task_facts import as_time

V2 = "containerd.task.v2.Task"
V3 = "containerd.task.v3.Task"

_WIRE = {
    Status.CREATED: WireStatus.CREATED,
    Status.STARTING: WireStatus.CREATED,
    Status.RUNNING: WireStatus.RUNNING,
    Status.PAUSED: WireStatus.PAUSED,
    Status.STOPPED: WireStatus.STOPPED,
}

R = TypeVar("R")
T = TypeVar("T")


def _edge(method: Callable[..., Awaitable[R]]) -> Callable[..., Coroutine[Anything, Anything, R]]:
    """What the runtime or the kernel refused is UNKNOWN on the wire: clients print it without a kind."""

    @functools.wraps(method)
    async def guarded(self: TaskService, message: Anything) -> R:
        try:
            return await method(self, message)
        except errdefs.Internal as error:
            raise grpclib.GRPCError(grpclib.const.Status.UNKNOWN, error.message) from None

    return guarded


class TaskService(TaskBase):
    """Serves one container. prepare: called with the attach socket's path before a process uses it."""

    def __init__(
        self,
        *,
        container_id: str,
        namespace: str,
        reaper: Reaper,
        facts: Facts,
        sockets: str,
        runtime_root: str,
        prepare: Callable[[str], None],
        shutdown: Callable[[], None],
    ) -> None:
        self._id = container_id
        self._namespace = namespace
        self._reaper = reaper
        self._facts = facts
        self._sockets = sockets
        self._runtime_root = runtime_root
        self._prepare = prepare
        self._shutdown = shutdown
        self._under_way: set[asyncio.Task[Anything]] = set()
        self.container: Container | None = None
        """The task there is, also while it is being created."""

    async def _whole(self, work: Coroutine[Anything, Anything, T]) -> T:
        """Do the work to its end, also when the caller goes away: half a create helps nobody."""
        task = asyncio.get_running_loop().create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    def _finished(self, task: asyncio.Task[Anything]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # seen, even when the caller is gone

    async def _get(self, container_id: str) -> Container:
        container = self.container
        if container is None or container.id != container_id:
            raise errdefs.NotFound("container not created")
        if not container.created.is_set():
            await container.created.wait()
            if container.init.status is Status.DELETED:
                raise errdefs.NotFound("container not created")
        return container

    async def _process(self, container_id: str, exec_id: str) -> tuple[Container, Process]:
        container = await self._get(container_id)
        return container, container.find(exec_id)

    @_edge
    async def create(self, message: CreateTaskRequest) -> CreateTaskResponse:
        """Create the task. AlreadyExists when there is one, so that a retry does no harm."""
        if message.id != self._id:
            raise errdefs.InvalidArgument(f"this shim serves container {self._id!r}, not {message.id!r}")
        if self.container is not None:
            raise errdefs.AlreadyExists(f"task {message.id}: already exists")
        if not message.bundle.startswith("/") or not _is_here(message.bundle):
            raise errdefs.InvalidArgument(
                f"this shim serves the bundle {os.getcwd()}, not {message.bundle!r}"
            )
        container = Container(
            message,
            namespace=self._namespace,
            reaper=self._reaper,
            facts=self._facts,
            sockets=self._sockets,
            runtime_root=self._runtime_root,
        )
        if container.init.stdio.attach_socket:
            self._prepare(container.init.stdio.attach_socket)
        container.open_streams()
        self.container = container
        return await self._whole(self._create(container))

    async def _create(self, container: Container) -> CreateTaskResponse:
        try:
            return CreateTaskResponse(pid=await container.create())
        except BaseException:
            self.container = None
            raise

    @_edge
    async def start(self, message: StartRequest) -> StartResponse:
        """Start init or an exec."""
        container, process = await self._process(message.id, message.exec_id)
        work = container.execs.start(process) if message.exec_id else container.start()
        return StartResponse(pid=await self._whole(work))

    @_edge
    async def exec(self, message: ExecProcessRequest) -> Empty:
        """Describe one more process."""
        container = await self._get(message.id)
        process = container.execs.add(message)
        if process.stdio.attach_socket:
            self._prepare(process.stdio.attach_socket)
        return Empty()

    @_edge
    async def delete(self, message: DeleteRequest) -> DeleteResponse:
        """Delete an exec or the task; the shim stays, for the task may be created again."""
        container, process = await self._process(message.id, message.exec_id)
        if message.exec_id:
            await self._whole(container.execs.delete(process))
        else:
            await self._whole(self._delete(container))
        exit_ = process.exit
        return DeleteResponse(
            pid=process.pid,
            exit_status=exit_.status if exit_ is not None else 0,
            exited_at=as_time(exit_.at) if exit_ is not None else None,
        )

    async def _delete(self, container: Container) -> None:
        await container.delete()
        if self.container is container:
            self.container = None

    @_edge
    async def state(self, message: StateRequest) -> StateResponse:
        """Where a process is in its life."""
        container, process = await self._process(message.id, message.exec_id)
        status = process.status
        if process.exec_id and container.init.status is Status.PAUSED:
            status = Status.PAUSED
        exit_ = process.exit if process.status is Status.STOPPED else None
        return StateResponse(
            id=process.exec_id or container.id,
            exec_id=process.exec_id,
            bundle=container.bundle,
            pid=process.pid,
            status=_WIRE.get(status, WireStatus.UNKNOWN),
            stdin=process.fields[0],
            stdout=process.fields[1],
            stderr=process.fields[2],
            terminal=process.stdio.terminal,
            exit_status=exit_.status if exit_ is not None else 0,
            exited_at=as_time(exit_.at) if exit_ is not None else None,
        )

    @_edge
    async def wait(self, message: WaitRequest) -> WaitResponse:
        """Wait for a process's end; its record is on disk by then."""
        _, process = await self._process(message.id, message.exec_id)
        await process.exited.wait()
        exit_ = process.exit
        return WaitResponse(
            exit_status=exit_.status if exit_ is not None else 0,
            exited_at=as_time(exit_.at) if exit_ is not None else None,
        )

    @_edge
    async def kill(self, message: KillRequest) -> Empty:
        """Send a signal."""
        container, process = await self._process(message.id, message.exec_id)
        await self._whole(container.kill(process, message.signal, every=message.all))
        return Empty()

    @_edge
    async def pause(self, message: PauseRequest) -> Empty:
        """Freeze the container."""
        container = await self._get(message.id)
        await self._whole(container.pause())
        return Empty()

    @_edge
    async def resume(self, message: ResumeRequest) -> Empty:
        """Thaw the container."""
        container = await self._get(message.id)
        await self._whole(container.resume())
        return Empty()

    @_edge
    async def pids(self, message: PidsRequest) -> PidsResponse:
        """All processes of the container; those that are execs say which."""
        container = await self._get(message.id)
        execs = container.execs.by_pid()
        found = []
        for pid in await container.pids():
            info = None
            if pid in execs:
                details = ProcessDetails(exec_id=execs[pid])
                info = Any(type_url="containerd.runc.v1.ProcessDetails", value=bytes(details))
            found.append(ProcessInfo(pid=pid, info=info))
        return PidsResponse(processes=found)

    @_edge
    async def resize_pty(self, message: ResizePtyRequest) -> Empty:
        """Set a terminal's size."""
        container, process = await self._process(message.id, message.exec_id)
        if not (0 <= message.width <= 0xFFFF and 0 <= message.height <= 0xFFFF):
            raise errdefs.InvalidArgument(f"terminal size {message.width}x{message.height}")
        container.resize(process, message.width, message.height)
        return Empty()

    @_edge
    async def close_io(self, message: CloseIoRequest) -> Empty:
        """End a process's stdin."""
        container, process = await self._process(message.id, message.exec_id)
        if message.stdin:
            container.close_stdin(process)
        return Empty()

    @_edge
    async def stats(self, message: StatsRequest) -> StatsResponse:
        """Usage of the container's cgroup."""
        container = await self._get(message.id)
        return StatsResponse(stats=Any.parse(await container.stats()))

    @_edge
    async def update(self, message: UpdateTaskRequest) -> Empty:
        """Change the container's limits."""
        container = await self._get(message.id)
        if message.resources is None:
            raise errdefs.InvalidArgument("update without resources")
        await self._whole(container.update(message.resources.value))
        return Empty()

    @_edge
    async def checkpoint(self, message: CheckpointTaskRequest) -> Empty:
        """Write images of the processes to a folder."""
        container = await self._get(message.id)
        await self._whole(container.checkpoint(message.path, checkpoint.options_of(message)))
        return Empty()

    @_edge
    async def connect(self, message: ConnectRequest) -> ConnectResponse:
        """Who the shim is; also answered when there is no task."""
        container = self.container
        pid = container.init.pid if container is not None and container.id == message.id else 0
        return ConnectResponse(shim_pid=os.getpid(), task_pid=pid)

    @_edge
    async def shutdown(self, message: ShutdownRequest) -> Empty:
        """End the shim, unless it has a task."""
        if self.container is None:
            self._shutdown()
        return Empty()


def _is_here(path: str) -> bool:
    """Whether the path names the working directory."""
    try:
        there, here = os.stat(path), os.stat(".")
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


class BothVersions:
    """The service under both of its names, for a server that knows no aliases."""

    def __init__(self, service: TaskService) -> None:
        self._service = service

    def __mapping__(self) -> dict[str, grpclib.const.Handler]:
        mapping = self._service.__mapping__()
        return mapping | {path.replace(f"/{V2}/", f"/{V3}/"): handler for path, handler in mapping.items()}

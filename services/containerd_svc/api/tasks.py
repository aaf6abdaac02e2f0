"""containerd.services.tasks.v1.Tasks."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Sequence

import errdefs
from pb.containerd.services.tasks import v1 as pb
from pb.containerd.types import Metric
from pb.google.protobuf import Empty
from rpc.grpc import current_call

from containerd_svc import filters
from containerd_svc.api.call import lease, namespace
from containerd_svc.task import Process, Task
from containerd_svc.tasks import Tasks

# The caller's name for a call that it may have to repeat.
_CALL_KEY = "buoy-call-key"


class TasksService(pb.TasksBase):
    """The tasks on the wire."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks

    async def create(self, message: pb.CreateTaskRequest) -> pb.CreateTaskResponse:
        pid = await self._tasks.create(namespace(), message, _call_key())
        return pb.CreateTaskResponse(container_id=message.container_id, pid=pid)

    async def start(self, message: pb.StartRequest) -> pb.StartResponse:
        pid = await self._tasks.start(namespace(), message.container_id, message.exec_id, _call_key())
        return pb.StartResponse(pid=pid)

    async def delete(self, message: pb.DeleteTaskRequest) -> pb.DeleteResponse:
        return _deleted(await self._tasks.delete(namespace(), message.container_id))

    async def delete_process(self, message: pb.DeleteProcessRequest) -> pb.DeleteResponse:
        return _deleted(await self._tasks.delete_process(namespace(), message.container_id, message.exec_id))

    async def get(self, message: pb.GetRequest) -> pb.GetResponse:
        process = await self._tasks.get(namespace(), message.container_id, message.exec_id)
        return pb.GetResponse(process=process.message(message.container_id))

    async def list(self, message: pb.ListTasksRequest) -> pb.ListTasksResponse:
        found = self._tasks.all(namespace())
        return pb.ListTasksResponse(tasks=[task.init.message(task.bundle.id) for task in found])

    async def kill(self, message: pb.KillRequest) -> Empty:
        await self._tasks.kill(
            namespace(), message.container_id, message.exec_id, message.signal, message.all
        )
        return Empty()

    async def exec(self, message: pb.ExecProcessRequest) -> Empty:
        await self._tasks.exec(namespace(), message)
        return Empty()

    async def resize_pty(self, message: pb.ResizePtyRequest) -> Empty:
        await self._tasks.resize(
            namespace(), message.container_id, message.exec_id, message.width, message.height
        )
        return Empty()

    async def close_io(self, message: pb.CloseIoRequest) -> Empty:
        if message.stdin:
            await self._tasks.close_stdin(namespace(), message.container_id, message.exec_id)
        return Empty()

    async def pause(self, message: pb.PauseTaskRequest) -> Empty:
        await self._tasks.pause(namespace(), message.container_id)
        return Empty()

    async def resume(self, message: pb.ResumeTaskRequest) -> Empty:
        await self._tasks.resume(namespace(), message.container_id)
        return Empty()

    async def list_pids(self, message: pb.ListPidsRequest) -> pb.ListPidsResponse:
        return pb.ListPidsResponse(processes=await self._tasks.pids(namespace(), message.container_id))

    async def checkpoint(self, message: pb.CheckpointTaskRequest) -> pb.CheckpointTaskResponse:
        if message.parent_checkpoint:
            raise errdefs.NotImplementedHere("checkpoints on top of another are not implemented")
        found = await self._tasks.checkpoint(namespace(), message.container_id, message.options, lease())
        return pb.CheckpointTaskResponse(descriptors=found)

    async def update(self, message: pb.UpdateTaskRequest) -> Empty:
        await self._tasks.update(namespace(), message.container_id, message.resources, message.annotations)
        return Empty()

    async def metrics(self, message: pb.MetricsRequest) -> pb.MetricsResponse:
        match = filters.parse(message.filters)
        wanted = [task for task in self._tasks.all(namespace()) if match(_lookup(task))]
        measured = await asyncio.gather(*(self._tasks.stats(task) for task in wanted))
        now = datetime.datetime.now(datetime.UTC)
        return pb.MetricsResponse(
            metrics=[
                Metric(timestamp=now, id=task.bundle.id, data=data)
                for task, data in zip(wanted, measured, strict=True)
                if data is not None
            ]
        )

    async def wait(self, message: pb.WaitRequest) -> pb.WaitResponse:
        process = await self._tasks.wait(namespace(), message.container_id, message.exec_id)
        return pb.WaitResponse(exit_status=process.exit_status, exited_at=process.exited_at)


def _call_key() -> str:
    value = current_call().metadata.get(_CALL_KEY, "")
    return value if isinstance(value, str) else ""


def _deleted(process: Process) -> pb.DeleteResponse:
    return pb.DeleteResponse(
        id=process.exec_id,
        pid=process.pid,
        exit_status=process.exit_status,
        exited_at=process.exited_at,
    )


def _lookup(task: Task) -> filters.Lookup:
    def lookup(path: Sequence[str]) -> str | None:
        if path[0] == "id":
            return task.bundle.id
        if path[0] == "namespace":
            return task.bundle.namespace
        if path[0] == "runtime":
            return task.record.runtime
        return None

    return lookup

"""containerd's containers and tasks as the engine uses them: one method a call, in its own words.

A call under way when containerd ends is asked of the next one, so that a restart of containerd is a delay
and no failure. Deadlines: calls that run a runtime get 60 s, the others the channel's own. Errors are those
of errdefs.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import errdefs
from pb.containerd.runc.v1 import Options
from pb.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    ContainersStub,
    CreateContainerRequest,
    DeleteContainerRequest,
    UpdateContainerRequest,
)
from pb.containerd.services.tasks.v1 import (
    CreateTaskRequest,
    DeleteProcessRequest,
    DeleteResponse,
    DeleteTaskRequest,
    ExecProcessRequest,
    GetRequest,
    KillRequest,
    ListPidsRequest,
    ListTasksRequest,
    PauseTaskRequest,
    ResizePtyRequest,
    ResumeTaskRequest,
    StartRequest,
    TasksStub,
)
from pb.containerd.services.version.v1 import VersionStub
from pb.containerd.types import Mount
from pb.containerd.v1.types import Process, Status
from pb.google.protobuf import Any as AnyMessage
from pb.google.protobuf import Empty, FieldMask
from rpc.grpc import Channel
from rpc.persistent import PersistentStub

RUNTIME = "io.containerd.runc.v2"
_SPEC_URL = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
_PROCESS_URL = "types.containerd.io/opencontainers/runtime-spec/1/Process"
_OPTIONS_URL = "containerd.runc.v1.Options"
_RUNS = 60.0  # seconds, for a call behind which a runtime runs

# How ours knows a repeated Create or Start, and answers it as the first (docs/contracts.md).
_CALL_KEY = "buoy-call-key"

T = TypeVar("T")


class _Containers(PersistentStub, ContainersStub):
    pass


class _Tasks(PersistentStub, TasksStub):
    pass


class Tasks:
    """The calls to containerd. The channel names the namespace."""

    def __init__(self, channel: Channel) -> None:
        self._containers = _Containers(channel)
        self._tasks = _Tasks(channel)
        self._version = VersionStub(channel)

    async def version(self, *, timeout: float = 5.0) -> tuple[str, str]:
        """containerd's version and revision."""
        reply = await self._version.version(Empty(), timeout=timeout)
        return reply.version, reply.revision

    # -- containers

    async def create_container(
        self, container_id: str, document: Mapping[str, Any], *, image: str, labels: Mapping[str, str]
    ) -> None:
        """Records the container in containerd, in the place of a stale one of the same id."""
        request = CreateContainerRequest(
            container=Container(
                id=container_id,
                labels=dict(labels),
                image=image,
                runtime=ContainerRuntime(name=RUNTIME),
                spec=AnyMessage(type_url=_SPEC_URL, value=json.dumps(document).encode()),
                snapshotter="overlayfs",
                snapshot_key=container_id,
            )
        )
        try:
            await self._containers.create(request)
        except errdefs.AlreadyExists:
            await self.delete_task(container_id, missing_ok=True, kill=True)
            await self.delete_container(container_id)
            await self._containers.create(request)

    async def delete_container(self, container_id: str) -> None:
        """Idempotent."""
        try:
            await self._containers.delete(DeleteContainerRequest(id=container_id))
        except errdefs.NotFound:
            return

    async def set_label(self, container_id: str, key: str, value: str) -> None:
        """Writes one label, durably; NotFound when containerd has no such container."""
        await self._containers.update(
            UpdateContainerRequest(
                container=Container(id=container_id, labels={key: value}),
                update_mask=FieldMask(paths=[f"labels.{key}"]),
            )
        )

    # -- tasks

    async def create_task(
        self,
        container_id: str,
        mounts: Sequence[Mount],
        *,
        terminal: bool,
        stdin: bool,
        attach_socket: str,
        runtime_binary: str,
    ) -> int:
        """Asks for the task, whose stdio the shim keeps at the attach socket; answers the pid of its init."""
        stdio = f"attach://{attach_socket}"
        reply = await self._tasks.create(
            CreateTaskRequest(
                container_id=container_id,
                rootfs=list(mounts),
                stdin=stdio if stdin else "",
                stdout=stdio,
                stderr="" if terminal else stdio,
                terminal=terminal,
                options=AnyMessage(type_url=_OPTIONS_URL, value=bytes(Options(binary_name=runtime_binary))),
            ),
            timeout=_RUNS,
            metadata=_call_key(),
        )
        return reply.pid

    async def start(self, container_id: str, exec_id: str = "") -> int:
        """Lets init, or an exec, run; answers its pid."""
        reply = await self._tasks.start(
            StartRequest(container_id=container_id, exec_id=exec_id), timeout=_RUNS, metadata=_call_key()
        )
        return reply.pid

    async def kill(
        self, container_id: str, number: int, *, exec_id: str = "", everyone: bool = False
    ) -> None:
        await self._tasks.kill(
            KillRequest(container_id=container_id, exec_id=exec_id, signal=number, all=everyone)
        )

    async def delete_task(
        self, container_id: str, *, missing_ok: bool = False, kill: bool = False
    ) -> DeleteResponse | None:
        """Deletes a stopped task and ends its shim; with `kill` one that lives as well."""
        if kill:
            with contextlib.suppress(errdefs.NotFound, errdefs.FailedPrecondition):
                await self.kill(container_id, 9, everyone=True)
        try:
            return await self._tasks.delete(DeleteTaskRequest(container_id=container_id), timeout=_RUNS)
        except errdefs.NotFound:
            if missing_ok:
                return None
            raise

    async def pause(self, container_id: str) -> None:
        """No error when it is paused already."""
        try:
            await self._tasks.pause(PauseTaskRequest(container_id=container_id), timeout=_RUNS)
        except errdefs.FailedPrecondition:
            if not await self._is(container_id, Status.PAUSED):
                raise

    async def resume(self, container_id: str) -> None:
        """No error when it runs already."""
        try:
            await self._tasks.resume(ResumeTaskRequest(container_id=container_id), timeout=_RUNS)
        except errdefs.FailedPrecondition:
            if not await self._is(container_id, Status.RUNNING):
                raise

    async def _is(self, container_id: str, status: Status) -> bool:
        process = await self.get(container_id)
        return process is not None and process.status is status

    async def resize(self, container_id: str, width: int, height: int, exec_id: str = "") -> None:
        await self._tasks.resize_pty(
            ResizePtyRequest(container_id=container_id, exec_id=exec_id, width=width, height=height)
        )

    async def pids(self, container_id: str) -> list[int]:
        reply = await self._tasks.list_pids(ListPidsRequest(container_id=container_id))
        return [process.pid for process in reply.processes]

    async def get(self, container_id: str, exec_id: str = "") -> Process | None:
        """The process's state, None when there is no such task or exec."""
        try:
            reply = await self._tasks.get(GetRequest(container_id=container_id, exec_id=exec_id))
        except errdefs.NotFound:
            return None
        return reply.process

    async def list(self) -> dict[str, Process]:
        """Every task of the namespace by container id."""
        reply = await self._tasks.list(ListTasksRequest())
        return {process.container_id or process.id: process for process in reply.tasks}

    # -- execs

    async def add_exec(
        self,
        container_id: str,
        exec_id: str,
        process: Mapping[str, Any],
        *,
        terminal: bool,
        stdin: bool,
        attach_socket: str,
    ) -> None:
        """Adds an exec to a running task; it runs from `start` on. No attach socket: its output goes
        nowhere.
        """
        stdio = f"attach://{attach_socket}" if attach_socket else ""
        await self._tasks.exec(
            ExecProcessRequest(
                container_id=container_id,
                exec_id=exec_id,
                stdin=stdio if stdin else "",
                stdout=stdio,
                stderr="" if terminal else stdio,
                terminal=terminal,
                spec=AnyMessage(type_url=_PROCESS_URL, value=json.dumps(process).encode()),
            ),
            timeout=_RUNS,
        )

    async def delete_exec(self, container_id: str, exec_id: str) -> None:
        """Idempotent."""
        try:
            await self._tasks.delete_process(
                DeleteProcessRequest(container_id=container_id, exec_id=exec_id), timeout=_RUNS
            )
        except errdefs.NotFound:
            return


def _call_key() -> dict[str, str]:
    return {_CALL_KEY: secrets.token_hex(8)}


def is_alive(process: Process | None) -> bool:
    """Does the task's process run, paused or not?"""
    return process is not None and process.status in (Status.RUNNING, Status.PAUSED, Status.PAUSING)

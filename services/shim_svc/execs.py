"""The further processes of one container: each described, started, followed to its exit, forgotten."""

from __future__ import annotations

import asyncio
import logging
import time

import errdefs
from pb.containerd.task.v2 import ExecProcessRequest

from shim_svc.bundle import remove_file, write_file
from shim_svc.process import Process, Status, check_identifier
from shim_svc.reaper import Exit, Reaper
from shim_svc.runtime import Runtime
from shim_svc.stdio import Stdio
from shim_svc.streams import Streams
from shim_svc.task_facts import TaskFacts

log = logging.getLogger(__name__)

_WAIT = 10.0  # seconds that execs may outlive init


class Execs:
    """Those of the container whose first process is `init`."""

    def __init__(
        self,
        container: str,
        *,
        bundle: str,
        init: Process,
        runtime: Runtime,
        reaper: Reaper,
        facts: TaskFacts,
        streams: Streams,
    ) -> None:
        self._container = container
        self._bundle = bundle
        self._init = init
        self._runtime = runtime
        self._reaper = reaper
        self._facts = facts
        self._streams = streams
        self._processes: dict[str, Process] = {}
        self._over = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()

    def find(self, exec_id: str) -> Process:
        """The process behind an exec id; NotFound."""
        process = self._processes.get(exec_id)
        if process is None:
            raise errdefs.NotFound(f"process does not exist {exec_id}")
        return process

    def by_pid(self) -> dict[int, str]:
        """The exec ids of those that have a process."""
        return {process.pid: exec_id for exec_id, process in self._processes.items() if process.pid}

    def add(self, request: ExecProcessRequest) -> Process:
        """Take an exec's description; it runs at its start. Raises InvalidArgument, AlreadyExists,
        FailedPrecondition.
        """
        check_identifier("exec id", request.exec_id)
        if request.exec_id in self._processes:
            raise errdefs.AlreadyExists(f"id {request.exec_id}")
        if request.spec is None or not request.spec.value:
            raise errdefs.InvalidArgument("exec without a process")
        self._init.need("exec in", Status.CREATED, Status.STARTING, Status.RUNNING)
        fields = (request.stdin, request.stdout, request.stderr)
        process = Process(request.exec_id, Stdio.parse(*fields, request.terminal), fields)
        if process.stdio.attach_socket:
            process.attachments = self._streams.attachments(process, None)
        write_file(self._file(process, "process.json"), request.spec.value.decode(errors="replace"))
        process.become(Status.CREATED)
        self._processes[request.exec_id] = process
        self._facts.exec_added(request.exec_id)
        return process

    async def start(self, process: Process) -> int:
        """Run an exec's process; returns its pid."""
        process.need("start", Status.CREATED)
        if not self._init.running or self._init.exit is not None:
            raise errdefs.FailedPrecondition(f"container {self._container} init process is not running")
        process.become(Status.STARTING)
        process.io = self._streams.io_of(process)
        pid_file = self._file(process, "pid")
        with self._reaper:
            try:
                stdio, console = await process.io.open()
                process.pid = await self._runtime.exec(
                    self._container,
                    process=self._file(process, "process.json"),
                    pid_file=pid_file,
                    stdio=stdio,
                    console_socket=console,
                )
                process.io.started()
            except BaseException as error:
                self._not_started(process, error)
                raise
            if process.attachments is not None:
                process.attachments.begin_input(process.io.input)
            if process.size is not None:
                process.io.resize(*process.size)
            process.become(Status.RUNNING)
            self._facts.exec_started(process.exec_id, process.pid)
            self._reaper.watch(process.pid, lambda exit_: self._exited(process, exit_))
        return process.pid

    def _not_started(self, process: Process, error: BaseException) -> None:
        assert process.io is not None
        process.io.close()
        if process.attachments is not None:
            if isinstance(error, errdefs.BuoyError):
                process.attachments.complain(error.message)
            process.attachments.close()
        process.exit = Exit(process.pid, 255, time.time_ns())
        process.become(Status.STOPPED)
        process.exited.set()
        self._over.set()

    def _exited(self, process: Process, exit_: Exit) -> None:
        process.exit = exit_
        task = asyncio.get_running_loop().create_task(self._finish(process, exit_))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _finish(self, process: Process, exit_: Exit) -> None:
        if process.io is not None:
            process.io.drain()
            await process.io.flush()
        process.become(Status.STOPPED)
        self._facts.exited(process, exit_)
        process.exited.set()
        self._over.set()
        await self._streams.end(process)

    async def wait_for_all(self) -> None:
        """Init's exit is the last one that is told; the kernel, or a kill by the caller, ends the others."""
        try:
            async with asyncio.timeout(_WAIT):
                while any(process.running for process in self._processes.values()):
                    self._over.clear()
                    await self._over.wait()
        except TimeoutError:
            log.warning("execs of %s outlive its init process", self._container)

    async def delete(self, process: Process) -> None:
        """Forget an exec that is over or was never started."""
        process.need("delete", Status.STOPPED, Status.CREATED)
        await self._streams.settle(process)
        if process.io is not None:
            process.io.close()
            await process.io.finish()
        if process.attachments is not None:
            process.attachments.close()
        process.become(Status.DELETED)
        process.exited.set()
        self._processes.pop(process.exec_id, None)
        for suffix in ("process.json", "pid"):
            remove_file(self._file(process, suffix))

    async def delete_all(self) -> None:
        """Forget those that do not run."""
        for process in list(self._processes.values()):
            if not process.running:
                await self.delete(process)

    def _file(self, process: Process, suffix: str) -> str:
        return f"{self._bundle}/{process.exec_id}.{suffix}"

"""The task of one container: its init process, its execs, and everything that is to be undone at its end.

Facts come in containerd's order: create, start, exit, delete; an exec's exit before init's; a process's start
before its exit, however fast it was. An exit is on record before anybody is told.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import time
from contextlib import ExitStack, suppress

import errdefs
from linux.crashpoints import crashpoint
from pb.containerd.runc.v1 import CheckpointOptions
from pb.containerd.task.v2 import CreateTaskRequest, ExecProcessRequest

from shim_svc import checkpoint, exit_record, mounts
from shim_svc.attach import Attachments
from shim_svc.bundle import Spec, TaskState, read_spec, remove_file, write_file, write_state
from shim_svc.disk_writer import DiskWriter
from shim_svc.exit_record import ExitRecord
from shim_svc.facts import Facts
from shim_svc.logs import ContainerLog, open_log
from shim_svc.oom import OomWatch
from shim_svc.process import Process, Status, check_identifier
from shim_svc.reaper import Exit, Reaper
from shim_svc.runtime import Runtime, options_of, read_pid
from shim_svc.stdio import ProcessIO, Stdio
from shim_svc.task_facts import TaskFacts

log = logging.getLogger(__name__)

_STDIO_WAIT = 2.0  # seconds that output may outlive its process, as Docker waits
_EXECS_WAIT = 10.0  # seconds that execs may outlive init
_DISK_WAIT = 5.0  # seconds that a Delete waits for the last lines to be written


class Container:
    """One task, from its Create until its Delete.

    sockets: the folder for console sockets. runtime_root: where runtime states are when the request names no
    place. Nothing is changed by the constructor; it raises InvalidArgument or NotImplementedHere.
    """

    def __init__(
        self,
        request: CreateTaskRequest,
        *,
        namespace: str,
        reaper: Reaper,
        facts: Facts,
        sockets: str,
        runtime_root: str,
    ) -> None:
        check_identifier("container id", request.id)
        if request.checkpoint and not os.path.isdir(request.checkpoint):
            raise errdefs.InvalidArgument(f"checkpoint {request.checkpoint} is not a directory")
        if request.parent_checkpoint:
            raise errdefs.InvalidArgument("a restore takes no parent: the images name theirs")
        self.id = request.id
        self.bundle = request.bundle
        self.spec: Spec = read_spec(self.bundle)
        if not os.path.isdir(self.spec.container_dir):
            raise errdefs.InvalidArgument(f"container folder {self.spec.container_dir} does not exist")
        self._request = request
        self._namespace = namespace
        self._reaper = reaper
        self._facts = TaskFacts(facts, self.id)
        self._sockets = sockets
        self._options = options_of(request)
        self._runtime = Runtime(
            reaper,
            binary=self._options.binary_name,
            root=self._options.root or runtime_root,
            namespace=namespace,
            bundle=self.bundle,
            systemd_cgroup=self._options.systemd_cgroup,
        )
        fields = (request.stdin, request.stdout, request.stderr)
        self.init = Process("", Stdio.parse(*fields, request.terminal), fields)
        self.execs: dict[str, Process] = {}
        self.created = asyncio.Event()
        """Set when Create has ended, well or not."""
        record = exit_record.read(self.spec.container_dir)
        self._run = record.run + 1 if record is not None else 0
        self._started_at = 0
        self._oom: OomWatch | None = None
        self._disk = DiskWriter(None)
        self._exec_over = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()
        self._consoles = 0
        self._made = False

    # Create

    def open_streams(self) -> None:
        """Open the log and take clients from now on, when the shim keeps the streams; Internal."""
        if not self.init.stdio.attach_socket:
            return
        log_file = open_log(self.spec)
        if log_file is not None:
            self._disk = log_file.writer
            self._disk.on_drop = self._facts.log_dropped
        self.init.attachments = self._attachments(self.init, log_file)

    async def create(self) -> int:
        """Mount the root file system and make the container; returns init's pid. Undone when a step fails.

        Behind `open_streams`.
        """
        undo = ExitStack()
        try:
            await self._create(undo)
        except BaseException:
            if self._made:
                await self._undo_runtime()
            undo.close()
            self.init.become(Status.DELETED)
            if self.init.attachments is not None:
                self.init.attachments.close()
            raise
        finally:
            self.created.set()
        return self.init.pid

    async def _create(self, undo: ExitStack) -> None:
        init, rootfs = self.init, f"{self.bundle}/rootfs"
        self._write_state("creating")
        crashpoint("shim.create.recorded")
        if self._request.rootfs:
            undo.callback(mounts.unmount, rootfs)
            mounts.mount_all(self._request.rootfs, rootfs)
        crashpoint("shim.create.mounted")
        init.io = self._make_io(init)
        undo.callback(init.io.close)
        pid_file = f"{self.bundle}/init.pid"
        if self._request.checkpoint:
            # It is restored at its start, as containerd's shim does it; until then there is no process.
            init.become(Status.CREATED)
            self._write_state("created")
            self._facts.created(init, self.bundle, self._request.rootfs)
            return
        with self._reaper:
            stdio, console = init.io.open()
            self._made = True
            asyncio.get_running_loop().call_soon(self._disk.prepare)  # while the runtime works
            await self._runtime.create(
                self.id,
                pid_file=pid_file,
                stdio=stdio,
                console_socket=console,
                no_pivot=self._options.no_pivot_root,
                no_new_keyring=self._options.no_new_keyring,
            )
            crashpoint("shim.create.made")
            init.pid = read_pid(pid_file)
            init.io.started()
            self._connect_streams()
            init.become(Status.CREATED)
            self._oom = OomWatch(init.pid, self._facts.killed_for_memory)
            self._write_state("created")
            self._facts.created(init, self.bundle, self._request.rootfs)
            self._reaper.watch(init.pid, self._init_exited)

    def _connect_streams(self) -> None:
        """Pass input and size on to init, which has its streams now."""
        init = self.init
        assert init.io is not None
        if init.attachments is not None:
            init.attachments.begin_input(init.io.input)
        if init.size is not None:
            init.io.resize(*init.size)

    async def _undo_runtime(self) -> None:
        try:
            await self._runtime.delete(self.id, force=True)
        except errdefs.BuoyError as error:
            log.warning("after a failed create: %s", error.message)  # the create's own error is told

    def _attachments(self, process: Process, log_file: ContainerLog | None) -> Attachments:
        folder = self.spec.container_dir if self.spec.container_dir != self.bundle else None
        return Attachments(terminal=process.stdio.terminal, log_file=log_file, spill_folder=folder)

    def _make_io(self, process: Process) -> ProcessIO:
        self._consoles += 1
        name = f"{os.getpid():x}-{self._consoles:x}.c"  # short, and nobody else's: the shim is in it
        attachments = process.attachments
        return ProcessIO(
            process.stdio,
            console=f"{self._sockets}/{name}",
            sink_of=lambda stream, resume: _need(attachments).sink(stream, resume),
            owner=(self._options.io_uid, self._options.io_gid),
        )

    def _write_state(self, status: str) -> None:
        write_state(
            self.bundle,
            TaskState(
                namespace=self._namespace,
                id=self.id,
                runtime=self._runtime.binary,
                runtime_root=self._runtime.root,
                systemd_cgroup=self._options.systemd_cgroup,
                container_dir=self.spec.container_dir,
                run=self._run,
                status=status,
                pid=self.init.pid,
                started_at=exit_record.timestamp(self._started_at),
            ),
        )

    # Start and Exec

    def find(self, exec_id: str) -> Process:
        """The process behind an exec id, or init for the empty one; NotFound."""
        if not exec_id:
            return self.init
        process = self.execs.get(exec_id)
        if process is None:
            raise errdefs.NotFound(f"process does not exist {exec_id}")
        return process

    async def start(self) -> int:
        """Let init run its program; returns its pid."""
        init = self.init
        init.need("start", Status.CREATED)
        init.become(Status.STARTING)
        crashpoint("shim.start.begun")
        started_at = time.time_ns()
        try:
            if self._request.checkpoint:
                await self._restore()
            else:
                await self._runtime.start(self.id)
        except BaseException:
            init.become(Status.CREATED)
            self._late_exit(init)
            raise
        crashpoint("shim.start.done")
        self._started_at = started_at
        init.become(Status.RUNNING)
        self._write_state("running")
        self._facts.started(init.pid)
        self._late_exit(init)
        return init.pid

    async def _restore(self) -> None:
        """Make init of the images of a checkpoint; it runs at once."""
        init = self.init
        assert init.io is not None
        pid_file = f"{self.bundle}/init.pid"
        with self._reaper:
            stdio, console = init.io.open()
            words = checkpoint.restore_words(self._request, self._options, self.bundle)
            await self._runtime.restore(
                self.id, words, pid_file=pid_file, stdio=stdio, console_socket=console
            )
            init.pid = read_pid(pid_file)
            init.io.started()
            self._connect_streams()
            self._oom = OomWatch(init.pid, self._facts.killed_for_memory)
            self._reaper.watch(init.pid, self._init_exited)

    async def checkpoint(self, path: str, options: CheckpointOptions) -> None:
        """Write images of the processes to the folder `path`; they end when the options say so."""
        self.init.need("checkpoint", Status.RUNNING, Status.PAUSED)
        work, passing = checkpoint.work_folder(self.bundle, options.work_path)
        try:
            await self._runtime.checkpoint(self.id, checkpoint.dump_words(path, work, options))
        except errdefs.BuoyError:
            checkpoint.keep_log(work, self.bundle)
            raise
        finally:
            if passing:
                shutil.rmtree(work, ignore_errors=True)

    def _late_exit(self, process: Process) -> None:
        """Handle an exit that came while the start was under way."""
        if process.exit is not None:
            self._spawn(self._finish_init(process.exit))

    def add_exec(self, request: ExecProcessRequest) -> Process:
        """Take an exec's description; it runs at its start."""
        check_identifier("exec id", request.exec_id)
        if request.exec_id in self.execs:
            raise errdefs.AlreadyExists(f"id {request.exec_id}")
        if request.spec is None or not request.spec.value:
            raise errdefs.InvalidArgument("exec without a process")
        self.init.need("exec in", Status.CREATED, Status.STARTING, Status.RUNNING)
        fields = (request.stdin, request.stdout, request.stderr)
        process = Process(request.exec_id, Stdio.parse(*fields, request.terminal), fields)
        if process.stdio.attach_socket:
            process.attachments = self._attachments(process, None)
        write_file(self._exec_file(process, "process.json"), request.spec.value.decode(errors="replace"))
        process.become(Status.CREATED)
        self.execs[request.exec_id] = process
        self._facts.exec_added(request.exec_id)
        return process

    def _exec_file(self, process: Process, suffix: str) -> str:
        return f"{self.bundle}/{process.exec_id}.{suffix}"

    async def start_exec(self, process: Process) -> int:
        """Run an exec's process; returns its pid."""
        process.need("start", Status.CREATED)
        if not self.init.running or self.init.exit is not None:
            raise errdefs.FailedPrecondition(f"container {self.id} init process is not running")
        process.become(Status.STARTING)
        process.io = self._make_io(process)
        pid_file = self._exec_file(process, "pid")
        with self._reaper:
            try:
                stdio, console = process.io.open()
                process.pid = await self._runtime.exec(
                    self.id,
                    process=self._exec_file(process, "process.json"),
                    pid_file=pid_file,
                    stdio=stdio,
                    console_socket=console,
                )
                process.io.started()
            except BaseException as error:
                process.io.close()
                if process.attachments is not None:
                    if isinstance(error, errdefs.BuoyError):
                        process.attachments.complain(error.message)
                    process.attachments.close()
                process.exit = Exit(process.pid, 255, time.time_ns())
                process.become(Status.STOPPED)
                process.exited.set()
                self._exec_over.set()
                raise
            if process.attachments is not None:
                process.attachments.begin_input(process.io.input)
            if process.size is not None:
                process.io.resize(*process.size)
            process.become(Status.RUNNING)
            self._facts.exec_started(process.exec_id, process.pid)
            self._reaper.watch(process.pid, lambda exit_: self._exec_exited(process, exit_))
        return process.pid

    # Exits

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _exec_exited(self, process: Process, exit_: Exit) -> None:
        process.exit = exit_
        self._spawn(self._finish_exec(process, exit_))

    async def _finish_exec(self, process: Process, exit_: Exit) -> None:
        if process.io is not None:
            process.io.drain()
            await process.io.flush()
        process.become(Status.STOPPED)
        self._facts.exited(process, exit_)
        process.exited.set()
        self._exec_over.set()
        await self._end_streams(process)

    def _init_exited(self, exit_: Exit) -> None:
        self.init.exit = exit_
        if self.init.status is not Status.STARTING:  # else start() goes on here, behind its own fact
            self._spawn(self._finish_init(exit_))

    async def _finish_init(self, exit_: Exit) -> None:
        crashpoint("shim.exit.reaped")
        if not self.spec.own_pid_namespace:
            try:
                await self._runtime.kill(self.id, signal.SIGKILL, every=True)
            except errdefs.BuoyError as error:
                log.warning("failed to kill init's children: %s", error.message)
        await self._wait_for_execs()
        if self.init.io is not None:
            self.init.io.drain()
            await self.init.io.flush()
        oom_killed = False
        if self._oom is not None:
            self._oom.check()
            oom_killed = self._oom.seen
            self._oom.close()
        await self._record(exit_, oom_killed)
        crashpoint("shim.exit.recorded")
        self.init.become(Status.STOPPED)
        self._write_state("stopped")
        self._facts.exited(self.init, exit_)
        self.init.exited.set()
        await self._end_streams(self.init)

    async def _wait_for_execs(self) -> None:
        """Init's exit is the last one that is told; the kernel or the kill above ends the others."""
        try:
            async with asyncio.timeout(_EXECS_WAIT):
                while any(process.running for process in self.execs.values()):
                    self._exec_over.clear()
                    await self._exec_over.wait()
        except TimeoutError:
            log.warning("execs of %s outlive its init process", self.id)

    async def _record(self, exit_: Exit, oom_killed: bool) -> None:
        record = ExitRecord(
            container_id=self.id,
            pid=exit_.pid,
            exit_status=exit_.status,
            exited_at=exit_record.timestamp(exit_.at),
            started_at=exit_record.timestamp(self._started_at),
            oom_killed=oom_killed,
            run=self._run,
        )
        try:
            await self._disk.record(self.spec.container_dir, record)
        except OSError as error:
            # The caller still has to learn that the task is over, though a power cut would undo it.
            log.error("exit record of %s: %s", self.id, error)

    async def _end_streams(self, process: Process) -> None:
        """Let the clients go when the output is complete; what others keep open is not waited for long."""
        if process.io is not None:
            try:
                async with asyncio.timeout(_STDIO_WAIT):
                    await process.io.ended.wait()
            except TimeoutError:
                log.info("output of %s is still open", process.exec_id or self.id)
        if process.attachments is not None:
            process.attachments.finish()

    # Signals, pause

    async def kill(self, process: Process, number: int, *, every: bool) -> None:
        """Send a signal; NotFound when the process is over."""
        if not 0 <= number <= signal.NSIG - 1:
            raise errdefs.InvalidArgument(f"signal {number}")
        if process.exit is not None or process.status in (Status.STOPPED, Status.DELETED):
            raise errdefs.NotFound("process already finished")
        if process.exec_id:
            if not self._reaper.alive(process.pid):
                raise errdefs.FailedPrecondition("process not created")
            os.kill(process.pid, number)
            return
        simple = self._runtime.built_in and self.spec.own_pid_namespace and not every
        if simple and process.status is not Status.PAUSED and self._reaper.alive(process.pid):
            # Nobody has waited for it, so the number is its own; a call of the runtime would do the same.
            os.kill(process.pid, number)
            return
        try:
            await self._runtime.kill(self.id, number, every=every)
        except errdefs.NotFound:
            raise
        except errdefs.BuoyError:
            if every and self.init.status is not Status.PAUSED:
                await self._let_run()
            raise

    async def _let_run(self) -> None:
        """Thaw what a runtime that died on its way may have left frozen, and no signal would end."""
        with suppress(errdefs.BuoyError):
            await self._runtime.resume(self.id)

    async def pause(self) -> None:
        """Freeze every process."""
        self.init.need("pause", Status.RUNNING)
        try:
            await self._runtime.pause(self.id)
        except errdefs.BuoyError:
            await self._let_run()
            raise
        if self.init.status is Status.RUNNING:
            self.init.become(Status.PAUSED)
        self._facts.paused()

    async def resume(self) -> None:
        """Let them run on."""
        self.init.need("resume", Status.PAUSED)
        await self._runtime.resume(self.id)
        if self.init.status is Status.PAUSED:
            self.init.become(Status.RUNNING)
        self._facts.resumed()

    async def pids(self) -> list[int]:
        """All processes of the container."""
        return await self._runtime.pids(self.id)

    async def stats(self) -> bytes:
        """Usage of the container's cgroup, an encoded Any; FailedPrecondition when it has ended."""
        self.init.need("measure", Status.CREATED, Status.STARTING, Status.RUNNING, Status.PAUSED)
        return await self._runtime.stats(self.id, self.init.pid)

    async def update(self, resources: bytes) -> None:
        """Change limits; resources: the JSON of the OCI `linux.resources` object."""
        await self._runtime.update(self.id, resources)

    def resize(self, process: Process, width: int, height: int) -> None:
        """Set a terminal's size in cells; before the process has its terminal it is kept until then."""
        process.size = (width, height)
        if process.io is not None:
            process.io.resize(width, height)

    def close_stdin(self, process: Process) -> None:
        """End the process's stdin."""
        if process.io is not None:
            process.io.close_stdin()

    # Delete

    async def delete_exec(self, process: Process) -> None:
        """Forget an exec that is over or was never started."""
        process.need("delete", Status.STOPPED, Status.CREATED)
        await self._close_streams(process)
        process.become(Status.DELETED)
        process.exited.set()
        self.execs.pop(process.exec_id, None)
        for suffix in ("process.json", "pid"):
            remove_file(self._exec_file(process, suffix))

    async def delete(self) -> None:
        """Remove the container from the runtime and unmount its root. May be tried again when it fails."""
        init = self.init
        init.need("delete", Status.STOPPED, Status.CREATED)
        await self._close_streams(init)
        await self._runtime.delete(self.id)
        crashpoint("shim.delete.runtime")
        if self._request.rootfs:
            try:
                mounts.unmount(f"{self.bundle}/rootfs")
            except OSError as error:
                raise errdefs.Internal(f"failed rootfs umount: {error}") from error
        crashpoint("shim.delete.unmounted")
        for process in list(self.execs.values()):
            if not process.running:
                await self.delete_exec(process)
        if self._oom is not None:
            self._oom.close()
        init.become(Status.DELETED)
        init.exited.set()
        self._write_state("deleted")
        self._facts.deleted(init.exit or Exit(init.pid, 0, 0))

    async def _close_streams(self, process: Process) -> None:
        if process.io is not None and not process.io.ended.is_set() and process.exit is not None:
            left = process.exit.at / 1e9 + _STDIO_WAIT - time.time()
            if left > 0:
                try:
                    async with asyncio.timeout(left):
                        await process.io.ended.wait()
                except TimeoutError:
                    log.info("output of %s is cut off", process.exec_id or self.id)
        if process.status is Status.CREATED and not process.exec_id:
            return  # the runtime may refuse to delete it; its streams stay until it does not
        if process.io is not None:
            process.io.close()
        if not process.exec_id:
            try:
                async with asyncio.timeout(_DISK_WAIT):
                    await self._disk.flush()
            except TimeoutError:
                raise errdefs.DeadlineExceeded(f"the disk does not take the log of {self.id}") from None
            self._disk.close()
        if process.attachments is not None:
            process.attachments.close()


def _need(attachments: Attachments | None) -> Attachments:
    assert attachments is not None
    return attachments

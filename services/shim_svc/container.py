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
from pb.containerd.task.v2 import CreateTaskRequest

from shim_svc import checkpoint, exit_record, mounts
from shim_svc.bundle import Spec, TaskState, read_spec, write_state
from shim_svc.disk_writer import DiskWriter
from shim_svc.execs import Execs
from shim_svc.exit_record import ExitRecord
from shim_svc.facts import Facts
from shim_svc.logs import open_log
from shim_svc.oom import OomWatch
from shim_svc.process import Process, Status, check_identifier
from shim_svc.reaper import Exit, Reaper
from shim_svc.runtime import Runtime, options_of, read_pid
from shim_svc.stdio import Stdio
from shim_svc.streams import Streams
from shim_svc.task_facts import TaskFacts

log = logging.getLogger(__name__)

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
        self._streams = Streams(
            self.id,
            namespace=namespace,
            reaper=reaper,
            sockets=sockets,
            owner=(self._options.io_uid, self._options.io_gid),
            spill_folder=self.spec.container_dir if self.spec.container_dir != self.bundle else None,
        )
        self.execs = Execs(
            self.id,
            bundle=self.bundle,
            init=self.init,
            runtime=self._runtime,
            reaper=reaper,
            facts=self._facts,
            streams=self._streams,
        )
        self.created = asyncio.Event()
        """Set when Create has ended, well or not."""
        record = exit_record.read(self.spec.container_dir)
        self._run = record.run + 1 if record is not None else 0
        self._started_at = 0
        self._oom: OomWatch | None = None
        self._disk = DiskWriter(None)
        self._background: set[asyncio.Task[None]] = set()
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
        self.init.attachments = self._streams.attachments(self.init, log_file)

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
        init.io = self._streams.io_of(init)
        undo.callback(init.io.close)
        pid_file = f"{self.bundle}/init.pid"
        if self._request.checkpoint:
            # It is restored at its start, as containerd's shim does it; until then there is no process.
            init.become(Status.CREATED)
            self._write_state("created")
            self._facts.created(init, self.bundle, self._request.rootfs)
            return
        with self._reaper:
            stdio, console = await init.io.open()
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

    # Start

    def find(self, exec_id: str) -> Process:
        """The process behind an exec id, or init for the empty one; NotFound."""
        return self.execs.find(exec_id) if exec_id else self.init

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
            stdio, console = await init.io.open()
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

    # Exits

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)  # type: ignore[arg-type]
        self._background.add(task)
        task.add_done_callback(self._background.discard)

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
        await self.execs.wait_for_all()
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
        await self._streams.end(self.init)

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

    async def delete(self) -> None:
        """Remove the container from the runtime and unmount its root. May be tried again when it fails."""
        init = self.init
        init.need("delete", Status.STOPPED, Status.CREATED)
        await self._close_streams()
        await self._runtime.delete(self.id)
        crashpoint("shim.delete.runtime")
        if self._request.rootfs:
            try:
                mounts.unmount(f"{self.bundle}/rootfs")
            except OSError as error:
                raise errdefs.Internal(f"failed rootfs umount: {error}") from error
        crashpoint("shim.delete.unmounted")
        await self.execs.delete_all()
        if self._oom is not None:
            self._oom.close()
        init.become(Status.DELETED)
        init.exited.set()
        self._write_state("deleted")
        self._facts.deleted(init.exit or Exit(init.pid, 0, 0))

    async def _close_streams(self) -> None:
        init = self.init
        await self._streams.settle(init)
        if init.status is Status.CREATED:
            return  # the runtime may refuse to delete it; its streams stay until it does not
        if init.io is not None:
            init.io.close()
            await init.io.finish()
        try:
            async with asyncio.timeout(_DISK_WAIT):
                await self._disk.flush()
        except TimeoutError:
            raise errdefs.DeadlineExceeded(f"the disk does not take the log of {self.id}") from None
        self._disk.close()
        if init.attachments is not None:
            init.attachments.close()

"""Execs: further processes in a running container."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import secrets
from typing import TYPE_CHECKING, Any

import errdefs
from linux.crashpoints import crashpoint
from pb.containerd.v1.types import Process, Status

from dockerd_api.engine import failure, merge, options, rootfs, spec, users
from dockerd_api.engine.engine import Engine
from dockerd_api.engine.model import Container, Exec, Fact, Phase
from dockerd_api.engine.tasks import is_alive

if TYPE_CHECKING:
    from dockerd_api.streams.attach import PendingAttach

log = logging.getLogger(__name__)

_KEPT_PER_CONTAINER = 200  # ended execs that can still be inspected
_COULD_NOT_START = 126
_FOR_A_START = 5.0  # seconds that asking after an exec waits for its start
_FOR_A_FACT = 0.01  # seconds that asking after an exec waits for what is on its way
_FIRST_RETRY, _LAST_RETRY = 0.2, 10.0  # seconds between tries to settle a start


class Execs:
    """The public face of the engine's execs."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Execs whose start is under way in this process, and those that a kept connection is to start.
        self._starting: dict[str, asyncio.Event] = {}
        self._claimed: set[str] = set()
        self._ending: dict[str, asyncio.Event] = {}

    def resolve(self, exec_id: str) -> Exec:
        """By full id, from memory; NotFound "No such exec instance: x"."""
        record = self._engine.store.exec(exec_id)
        if record is None:
            raise errdefs.NotFound(f"No such exec instance: {exec_id}")
        return record

    def container_of(self, record: Exec) -> Container:
        return self._engine.containers.resolve(record.container_id)

    async def create(self, container_ref: str, document: Any) -> str:
        """A new exec of a running container; answers its id."""
        body = document if isinstance(document, dict) else {}
        config = options.decode(body, options.EXEC_CONFIG, "ExecConfig")
        if not config["Cmd"]:
            raise errdefs.InvalidArgument("No exec command specified")
        if config["DetachKeys"]:
            check_detach_keys(config["DetachKeys"])
        container = self._engine.containers.resolve(container_ref)
        _must_run(container)
        await self._drop_old(container.id)
        record = Exec(id=secrets.token_hex(32), container_id=container.id, config=config)
        told = self._engine.exec_happened(container, record, "exec_create")
        await self._engine.store.put_exec(record, events=[told])
        return record.id

    async def start_detached(self, exec_id: str, console_size: list[int] | None = None) -> None:
        """Starts it; its output goes nowhere, as Docker's."""
        await self._start(exec_id, None, console_size)

    async def start_attached(
        self, exec_id: str, attach: PendingAttach, console_size: list[int] | None = None
    ) -> None:
        """Starts it with the client's connection as its stdio; the shim has the connection before it runs.

        Goes on with a start that an earlier process began for the same client.
        """
        self._claimed.discard(exec_id)
        await self._start(exec_id, attach, console_size)

    def claim(self, exec_id: str) -> None:
        """A kept connection is about to call `start_attached`, which a half-done start is left to."""
        self._claimed.add(exec_id)

    def give_up(self, exec_id: str) -> None:
        """The connection of a `claim` is gone."""
        self._claimed.discard(exec_id)
        if self._is_half_started(self._engine.store.exec(exec_id)):
            self._engine.spawn(self._settle(exec_id))

    def recover(self) -> None:
        """Finishes or undoes, in the background, the starts that ended with the process before. Called once
        recovered connections had the time to `claim` theirs.
        """
        for container in self._engine.store.all():
            for record in self._engine.store.execs_of(container.id):
                if self._is_half_started(record):
                    self._engine.spawn(self._settle(record.id))

    async def check_start(self, exec_id: str) -> None:
        """`check_startable` as the stream room asks for it."""
        self.check_startable(exec_id)

    def check_startable(self, exec_id: str) -> Exec:
        """Raises what `start_*` would say of the exec's and the container's state, before a connection is
        taken.
        """
        record = self.resolve(exec_id)
        if record.running:
            raise errdefs.Conflict(f"Error: Exec command {exec_id} is already running")
        if record.started:
            raise errdefs.Conflict(f"Error: Exec command {exec_id} has already run")
        _must_run(self.container_of(record))
        return record

    async def resize(self, exec_id: str, width: int, height: int) -> None:
        record = self.resolve(exec_id)
        if not record.running:
            if record.started and record.exit_code is not None:
                raise errdefs.NotFound(f"process does not exist {exec_id}: not found")
            raise errdefs.InvalidArgument("exec process is not started")
        await self._engine.tasks.resize(record.container_id, width, height, record.id)

    async def inspect(self, exec_id: str) -> Exec:
        """The record; one that is recorded as running is asked after, so that an end just seen is told."""
        record = self.resolve(exec_id)
        if record.running and exec_id in self._starting:
            # The client may hear of a failure from the shim before we do, whose exit status says nothing.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._starting[exec_id].wait(), _FOR_A_START)
            record = self.resolve(exec_id)
        if not record.running or exec_id in self._starting:
            return record
        if await self._ends_soon(exec_id):
            return self.resolve(exec_id)
        process = await self._engine.tasks.get(record.container_id, record.id)
        if process is not None and not is_alive(process):
            await self.exited(record.container_id, exec_id, process.exit_status)
        elif process is None:
            task = await self._engine.tasks.get(record.container_id)
            if not is_alive(task):
                await self.exited(record.container_id, exec_id, 137)
        return self.resolve(exec_id)

    async def _ends_soon(self, exec_id: str) -> bool:
        """Whether the fact of the end comes within a moment: a client that has seen the end of its stream
        asks while the fact is on its way, and asking below takes as long.
        """
        ended = self._ending.setdefault(exec_id, asyncio.Event())
        try:
            await asyncio.wait_for(ended.wait(), _FOR_A_FACT)
        except TimeoutError:
            return False
        finally:
            self._ending.pop(exec_id, None)
        return True

    async def exited(self, container_id: str, exec_id: str, code: int, fact: Fact | None = None) -> None:
        """The process of an exec ended. It ends once: what comes again does nothing."""
        engine = self._engine
        record, container = engine.store.exec(exec_id), engine.store.get(container_id)
        if record is None or container is None or not record.started or record.exit_code is not None:
            return
        ended = dataclasses.replace(record, running=False, exit_code=code, pid=0)
        told = engine.exec_happened(container, ended, "exec_die", exitCode=str(code))
        await engine.store.put_exec(ended, cursor=fact.cursor if fact else None, events=[told])
        if exec_id in self._ending:
            self._ending[exec_id].set()
        engine.spawn(self._delete(container_id, exec_id))

    async def _start(
        self, exec_id: str, attach: PendingAttach | None, console_size: list[int] | None
    ) -> None:
        engine = self._engine
        record = self.resolve(exec_id)
        goes_on = attach is not None and self._is_half_started(record)
        if not goes_on:
            self.check_startable(exec_id)
        container = self.container_of(record)
        self._starting[exec_id] = asyncio.Event()
        try:
            process = None
            if goes_on:
                process = await engine.tasks.get(container.id, exec_id)
            else:
                record = dataclasses.replace(record, started=True, running=True)
                told = engine.exec_happened(container, record, "exec_start")
                await engine.store.put_exec(record, events=[told])
            await self._run(container, record, process, attach, console_size)
        finally:
            self._starting.pop(exec_id).set()

    async def _run(
        self,
        container: Container,
        record: Exec,
        process: Process | None,
        attach: PendingAttach | None,
        console_size: list[int] | None,
    ) -> None:
        """Takes an exec that is recorded as started from the state that containerd knows to its run."""
        engine = self._engine
        added = process is not None
        try:
            if process is None:
                await engine.tasks.add_exec(
                    container.id,
                    record.id,
                    self._process(container, record, console_size),
                    terminal=record.tty,
                    stdin=bool(attach and attach.stdin),
                    attach_socket=container.attach_socket if attach else "",
                )
                added = True
                crashpoint("engine.exec.added")
            if attach is not None and process is not None and process.status is Status.STOPPED:
                attach.handed_over()  # before it was started, so that it has all the output
            elif attach is not None:
                await engine.containers.hand_over(container.attach_socket, attach)
            if process is None or process.status is Status.CREATED:
                pid = await engine.tasks.start(container.id, record.id)
            else:
                pid = process.pid
        except errdefs.BuoyError as error:
            translated, code = failure.translate(error)
            failed = dataclasses.replace(record, running=False, exit_code=code if added else _COULD_NOT_START)
            await engine.store.put_exec(failed)
            if added:
                engine.spawn(self._delete(container.id, record.id))
            else:
                translated = error
            raise translated from error
        current = engine.store.exec(record.id)
        if current is not None and current.running:  # its end may have been reported meanwhile
            await engine.store.put_exec(dataclasses.replace(current, pid=pid))

    def _is_half_started(self, record: Exec | None) -> bool:
        """Recorded as started, without a pid, and by no call of this process?"""
        return record is not None and record.running and not record.pid and record.id not in self._starting

    async def _settle(self, exec_id: str) -> None:
        """Lets an exec run that was about to, whose client, if it has one, has gone on to the shim; ends one
        that containerd has not heard of.
        """
        wait = _FIRST_RETRY
        while True:
            record = self._engine.store.exec(exec_id)
            if record is None or exec_id in self._claimed or not self._is_half_started(record):
                return
            self._starting[exec_id] = asyncio.Event()
            try:
                container = self.container_of(record)
                process = await self._engine.tasks.get(container.id, exec_id)
                if process is None:
                    await self.exited(container.id, exec_id, _COULD_NOT_START)
                else:
                    await self._run(container, record, process, None, None)
                return
            except errdefs.BuoyError as error:
                log.warning("exec %s is not started yet: %s", exec_id, error)
            finally:
                self._starting.pop(exec_id).set()
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LAST_RETRY)

    def _process(self, container: Container, record: Exec, console_size: list[int] | None) -> dict[str, Any]:
        config, host = record.config, dict(container.host_config)
        pid = container.state.pid
        passwd = rootfs.read_running(pid, "/etc/passwd", users.FILE_LIMIT) or b""
        group = rootfs.read_running(pid, "/etc/group", users.FILE_LIMIT) or b""
        text = config["User"] or container.config["User"]
        user = users.resolve(text, passwd, group, () if config["User"] else host["GroupAdd"] or ())
        if config["Privileged"]:
            host["Privileged"] = True
        security = self._engine.security.resolve(host)
        own = {entry.partition("=")[0] for entry in config["Env"] or []}
        inherited = [e for e in container.config["Env"] or [] if e.partition("=")[0] not in own]
        process: dict[str, Any] = {
            "terminal": record.tty,
            "user": spec.user_document(user),
            "args": list(config["Cmd"]),
            "env": merge.process_env(
                {"Env": [*inherited, *(config["Env"] or [])]},
                hostname=container.config["Hostname"],
                tty=record.tty,
                user_home=user.home,
                default_path=spec.DEFAULT_PATH,
            ),
            "cwd": config["WorkingDir"] or container.config["WorkingDir"] or "/",
            "capabilities": spec.capability_sets(security.capabilities),
            "noNewPrivileges": security.no_new_privileges,
            "oomScoreAdj": host["OomScoreAdj"],
            "rlimits": spec.rlimits(host, self._engine.settings.default_ulimits),
        }
        if security.apparmor_profile:
            process["apparmorProfile"] = security.apparmor_profile
        height, width = console_size or config["ConsoleSize"] or (0, 0)
        if record.tty and height and width:
            process["consoleSize"] = {"height": height, "width": width}
        return process

    async def _delete(self, container_id: str, exec_id: str) -> None:
        try:
            await self._engine.tasks.delete_exec(container_id, exec_id)
        except errdefs.BuoyError:
            return  # the task's own deletion takes it along

    async def _drop_old(self, container_id: str) -> None:
        ended = [
            record.id for record in self._engine.store.execs_of(container_id) if record.exit_code is not None
        ]
        if len(ended) > _KEPT_PER_CONTAINER:
            await self._engine.store.delete_execs(ended[: len(ended) - _KEPT_PER_CONTAINER])


def check_detach_keys(text: str) -> None:
    """Docker's form: single characters or ctrl-<a-z@[\\]^_>, separated by commas."""
    for word in text.split(","):
        good = len(word) == 1 or (
            word.startswith("ctrl-")
            and len(word) == 6
            and ((word[5].isalpha() and word[5].islower()) or word[5] in "@[\\]^_")
        )
        if not good:
            raise errdefs.InvalidArgument(f"Invalid escape keys ({text}) provided")


def _must_run(container: Container) -> None:
    if container.state.phase is Phase.PAUSED:
        raise errdefs.Conflict(f"container {container.id} is paused, unpause the container before exec")
    if container.state.phase is Phase.RESTARTING:
        raise errdefs.Conflict(f"Container {container.id} is restarting, wait until the container is running")
    if container.state.phase is not Phase.RUNNING:
        raise errdefs.Conflict(f"container {container.id} is not running")

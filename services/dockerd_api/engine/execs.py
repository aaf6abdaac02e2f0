"""Execs: further processes in a running container."""

from __future__ import annotations

import dataclasses
import secrets
from typing import TYPE_CHECKING, Any

import errdefs
from linux.crashpoints import crashpoint

from dockerd_api.engine import failure, merge, options, rootfs, spec, users
from dockerd_api.engine.engine import Engine
from dockerd_api.engine.model import Container, Exec, Phase
from dockerd_api.engine.tasks import is_alive

if TYPE_CHECKING:
    from dockerd_api.streams.attach import PendingAttach

_KEPT_PER_CONTAINER = 200  # ended execs that can still be inspected
_COULD_NOT_START = 126


class Execs:
    """The public face of the engine's execs."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

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
        await self._engine.store.put_exec(record)
        await self._publish(container, record, "exec_create")
        return record.id

    async def start_detached(self, exec_id: str, console_size: list[int] | None = None) -> None:
        """Starts it; its output goes nowhere, as Docker's."""
        await self._start(exec_id, None, console_size)

    async def start_attached(
        self, exec_id: str, attach: PendingAttach, console_size: list[int] | None = None
    ) -> None:
        """Starts it with the client's connection as its stdio; the shim has the connection before it runs."""
        await self._start(exec_id, attach, console_size)

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
        if not record.running:
            return record
        process = await self._engine.tasks.get(record.container_id, record.id)
        if process is not None and not is_alive(process):
            await self.exited(record.container_id, exec_id, process.exit_status)
        elif process is None:
            task = await self._engine.tasks.get(record.container_id)
            if not is_alive(task):
                await self.exited(record.container_id, exec_id, 137)
        return self.resolve(exec_id)

    async def exited(self, container_id: str, exec_id: str, code: int, cursor: int | None = None) -> None:
        """The process of an exec ended; idempotent."""
        engine = self._engine
        record, container = engine.store.exec(exec_id), engine.store.get(container_id)
        if record is None or container is None or not record.started or record.exit_code is not None:
            return
        ended = dataclasses.replace(record, running=False, exit_code=code, pid=0)
        await engine.store.put_exec(ended, cursor=cursor)
        await self._publish(container, ended, "exec_die", exitCode=str(code))
        engine.spawn(self._delete(container_id, exec_id))

    async def _start(
        self, exec_id: str, attach: PendingAttach | None, console_size: list[int] | None
    ) -> None:
        engine = self._engine
        record = self.check_startable(exec_id)
        container = self.container_of(record)
        started = dataclasses.replace(record, started=True, running=True)
        await engine.store.put_exec(started)
        added = False
        try:
            process = self._process(container, record, console_size)
            await engine.tasks.add_exec(
                container.id,
                exec_id,
                process,
                terminal=record.tty,
                stdin=bool(attach and attach.stdin),
                attach_socket=container.attach_socket if attach else "",
            )
            added = True
            crashpoint("engine.exec.added")
            if attach is not None:
                await engine.containers.hand_over(container.attach_socket, attach)
            await self._publish(container, record, "exec_start")
            pid = await engine.tasks.start(container.id, exec_id)
        except errdefs.BuoyError as error:
            translated, code = failure.translate(error)
            failed = dataclasses.replace(
                started, running=False, exit_code=code if added else _COULD_NOT_START
            )
            await engine.store.put_exec(failed)
            if added:
                engine.spawn(self._delete(container.id, exec_id))
            else:
                translated = error
            raise translated from error
        current = engine.store.exec(exec_id)
        if current is not None and current.running:  # its end may have been reported meanwhile
            await engine.store.put_exec(dataclasses.replace(current, pid=pid))

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

    async def _publish(self, container: Container, record: Exec, action: str, **more: str) -> None:
        command = "" if action == "exec_die" else ": " + " ".join(record.config["Cmd"])
        await self._engine.publish(container, f"{action}{command}", execID=record.id, **more)

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

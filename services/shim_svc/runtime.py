"""Calls of the OCI runtime: a child of the shim for each, with the command line of runc.

The built-in runtime runs in the child as it is, without a new interpreter; any other is executed. Both get
`--root <root>/<namespace> --log <bundle>/log.json --log-format json`, as containerd calls them.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence

import errdefs
from linux.syscalls import PR_SET_PDEATHSIG, prctl
from pb.containerd.runc.v1 import Options
from pb.containerd.task.v2 import CreateTaskRequest
from runc_bin.__main__ import main as run_built_in
from runc_bin.commands.launch import connect_socket
from runc_bin.libcontainer.container import check_startable, delete_ended, opened_fifo, take_fifo
from runc_bin.libcontainer.exec_in import Begun, ExecOptions, begin, hear, read_process_file
from runc_bin.libcontainer.failures import reason
from runc_bin.libcontainer.state import load_state

from shim_svc.bundle import read_file
from shim_svc.forks import fork_child, set_stdio, signals_blocked
from shim_svc.metrics import manager_by_pid, manager_by_state, measure
from shim_svc.readiness import either_readable
from shim_svc.reaper import Exit, Reaper
from shim_svc.title import set_title

BUILT_IN = "runc-bin"
_START = 120.0  # seconds that init may take to go on
_CRIU = 600.0  # seconds that writing all memory, or reading it, may take
_STATS = 10.0  # seconds that reading a cgroup may take
_DONE = b"d"
_DELETE_TRIES = 8  # one more than there are steps behind which a delete can have died


class _Killed(errdefs.Internal):
    """The runtime was killed on its way."""


def options_of(request: CreateTaskRequest) -> Options:
    """The runtime's options in the request; InvalidArgument for those of another runtime."""
    if request.options is None or not request.options.value:
        return Options()
    if request.options.type_url.rpartition("/")[2] != "containerd.runc.v1.Options":
        raise errdefs.InvalidArgument(f"unknown options {request.options.type_url!r}")
    return Options.parse(request.options.value)


class Runtime:
    """One OCI runtime as one container's shim uses it.

    binary: empty, `runc-bin` or the built-in's own path for the built-in one; else a name or path to execute.
    root: the folder that holds a folder of runtime states per namespace.
    """

    def __init__(
        self, reaper: Reaper, *, binary: str, root: str, namespace: str, bundle: str, systemd_cgroup: bool
    ) -> None:
        self.binary = binary or BUILT_IN
        self.root = root
        self._reaper = reaper
        self._log = f"{bundle}/log.json"
        self._bundle = bundle
        self.built_in = self.binary in (BUILT_IN, f"{os.path.dirname(sys.executable)}/{BUILT_IN}")
        self._program = ""
        if not self.built_in:
            found = shutil.which(self.binary)
            if found is None:
                reason = f'exec: "{self.binary}": executable file not found in $PATH'
                raise errdefs.InvalidArgument(f"unable to retrieve OCI runtime: {reason}")
            self._program = found
        self._options = [
            "--root",
            os.path.join(root, namespace),
            "--log",
            self._log,
            "--log-format",
            "json",
            *(["--systemd-cgroup"] if systemd_cgroup else []),
        ]

    async def call(
        self,
        *words: str,
        failure: str,
        stdio: tuple[int, int, int] | None = None,
        stdin: bytes = b"",
        timeout: float = 60.0,
        until_done: bool = False,
    ) -> str:
        """Run the runtime with these words behind its options; returns what it printed.

        failure: what an error's message begins with ("OCI runtime create failed"). stdio: descriptors for the
        runtime and so for the container's process; without it, `stdin` is fed and what it prints is gathered.
        until_done: return when the built-in one has done its work; its process may still be ending.
        Errors: Internal with the runtime's own message; DeadlineExceeded after `timeout` seconds, when the
        runtime is killed.
        """
        output = source = told = tell = -1
        if until_done and self.built_in:
            told, tell = os.pipe2(os.O_CLOEXEC)
        if stdio is None:
            output, source = os.memfd_create("runtime-output", os.MFD_CLOEXEC), _readable(stdin)
            stdio = (source, output, output)
        try:
            before = self._log_size()
            arguments = [*self._options, *words]
            keep = (tell,) if tell >= 0 else ()
            pid = fork_child(lambda: self._child(arguments, tell), stdio=stdio, keep=keep)
            if tell >= 0:
                os.close(tell)
                tell = -1
            exit_ = await self._end_of(pid, f"{failure}: {self.binary} {words[0]}", timeout, told)
            printed = os.pread(output, 16 << 20, 0).decode(errors="replace") if output >= 0 else ""
        finally:
            if output >= 0:
                os.close(output)
                os.close(source)
            for fd in (told, tell):
                if fd >= 0:
                    os.close(fd)
        if exit_.status:
            message = self._last_error(before)
            kind = _Killed if exit_.status == 128 + signal.SIGKILL and not message else errdefs.Internal
            if not message:
                message = f"{self.binary} did not terminate successfully: exit status {exit_.status}"
                if printed.strip():
                    message += f": {printed.strip()}"
            raise kind(f"{failure}: {message}")
        return printed

    async def _end_of(self, pid: int, what: str, timeout: float, told: int = -1) -> Exit:
        """The exit of a child just forked, which is killed after `timeout` seconds; then DeadlineExceeded.

        told: a pipe through which the child may say that all is done; that counts as its exit with 0. The
        kernel takes a millisecond to free a child's memory, which nobody needs to wait for.
        """
        loop = asyncio.get_running_loop()
        ended = self._reaper.exit_of(pid)

        def came() -> None:
            loop.remove_reader(told)  # it is also readable once the child has ended without a word
            if os.read(told, 1) and not ended.done():
                ended.set_result(Exit(pid, 0, time.time_ns()))

        if told >= 0:
            loop.add_reader(told, came)
        # Until it is waited for, the number is the child's.
        timer = loop.call_later(timeout, os.kill, pid, signal.SIGKILL)
        try:
            exit_ = await ended
        finally:
            if told >= 0:
                loop.remove_reader(told)
        if timer.when() <= loop.time():
            raise errdefs.DeadlineExceeded(f"{what} did not end in {timeout:g} s")
        timer.cancel()
        return exit_

    def _child(self, arguments: list[str], tell: int) -> int:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # Whom containerd, as a service, is to tell that it is ready: not a container's matter.
        os.environ.pop("NOTIFY_SOCKET", None)
        if not self.built_in:
            os.execv(self._program, [self.binary, *arguments])
        set_title(f"{BUILT_IN} {' '.join(arguments)}", BUILT_IN)
        code = run_built_in(arguments)
        if tell >= 0 and not code:
            os.write(tell, _DONE)
        return code

    def _log_size(self) -> int:
        try:
            return os.stat(self._log).st_size
        except OSError:
            return 0

    def _last_error(self, offset: int) -> str:
        """The last error that the runtime logged behind `offset`; empty when there is none."""
        found = ""
        try:
            with open(self._log, "rb") as file:
                file.seek(offset)
                lines = file.read().splitlines()
        except OSError:
            return ""
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and entry.get("level") == "error":
                found = str(entry.get("msg", "")).strip()
        return found

    # The verbs, in the words of runc's command line.

    async def create(
        self,
        container: str,
        *,
        pid_file: str,
        stdio: tuple[int, int, int],
        console_socket: str,
        no_pivot: bool,
        no_new_keyring: bool,
    ) -> None:
        """Make the container with its init process waiting to be started."""
        await self.call(
            "create",
            "--bundle",
            self._bundle,
            *_flags(console_socket, pid_file),
            *(["--no-pivot"] if no_pivot else []),
            *(["--no-new-keyring"] if no_new_keyring else []),
            container,
            failure="OCI runtime create failed",
            stdio=stdio,
            timeout=120.0,
            until_done=True,
        )

    async def start(self, container: str) -> None:
        """Let the init process run its program."""
        if self.built_in and await self._start_here(container):
            return
        await self.call("start", container, failure="OCI runtime start failed", timeout=120.0)

    async def _start_here(self, container: str) -> bool:
        """`start` without a child: opening a fifo enters no container. False when hooks are to be run."""
        root = self._options[1]
        failure = "OCI runtime start failed"
        try:
            record = load_state(root, container)
            if record.late_hooks:
                return False
            check_startable(root, record)
            with opened_fifo(root, record) as fds:
                await either_readable(fds, _START)
                take_fifo(root, record, fds[0])
        except TimeoutError:
            raise errdefs.DeadlineExceeded(f"{failure}: init did not go on in {_START:g} s") from None
        except (errdefs.BuoyError, OSError) as error:
            raise errdefs.Internal(f"{failure}: {reason(error)}") from error
        return True

    async def exec(
        self,
        container: str,
        *,
        process: str,
        pid_file: str,
        stdio: tuple[int, int, int],
        console_socket: str,
    ) -> int:
        """Run one more process, described by the file `process`, in the container; its pid.

        To be called within a hold of the reaper.
        """
        if self.built_in:
            return await self._exec_here(container, process, stdio, console_socket)
        await self.call(
            "exec",
            "--process",
            process,
            *(["--console-socket", console_socket] if console_socket else []),
            "--detach",
            "--pid-file",
            pid_file,
            container,
            failure="OCI runtime exec failed",
            stdio=stdio,
            timeout=120.0,
        )
        return read_pid(pid_file)

    async def _exec_here(
        self, container: str, process: str, stdio: tuple[int, int, int], console_socket: str
    ) -> int:
        """`exec` without a child that runs the runtime's command line."""
        failure = "OCI runtime exec failed"
        try:
            begun = self._begin_exec(container, process, stdio, console_socket)
            try:
                more = True
                while more:
                    await either_readable((begun.channel.fileno(),), _START)
                    more = hear(begun)
            except BaseException:
                if not self._reaper.has_ended(begun.pid):
                    os.kill(begun.pid, signal.SIGKILL)
                raise
            finally:
                begun.channel.close()
        except TimeoutError:
            raise errdefs.DeadlineExceeded(f"{failure}: the process was not ready in {_START:g} s") from None
        except (errdefs.BuoyError, OSError) as error:
            raise errdefs.Internal(f"{failure}: exec failed: {reason(error)}") from error
        return begun.pid

    def _begin_exec(
        self, container: str, process: str, stdio: tuple[int, int, int], console_socket: str
    ) -> Begun:
        root = self._options[1]
        record = load_state(root, container)
        wanted = read_process_file(process, record)
        console = connect_socket(console_socket) if wanted.terminal else None
        try:
            with signals_blocked():
                return begin(
                    root,
                    record,
                    wanted,
                    ExecOptions(console=console),
                    first=lambda: _become_runtime(f"exec {container}", stdio),
                )
        finally:
            if console is not None:
                console.close()

    async def kill(self, container: str, number: int, *, every: bool) -> None:
        """Send a signal to init, or to every process of the container; NotFound when there is none."""
        everyone = ["--all"] if every else []
        try:
            await self.call("kill", *everyone, container, str(number), failure="OCI runtime kill failed")
        except errdefs.Internal as error:
            text = error.message.lower()
            if any(words in text for words in ("already finished", "not running", "no such process")):
                raise errdefs.NotFound("process already finished") from None
            if "does not exist" in text:
                raise errdefs.NotFound("no such container") from None
            raise

    async def delete(self, container: str, *, force: bool = False) -> None:
        """Remove the container. One that the runtime does not know is no error; a runtime that is killed on
        its way is called again.
        """
        if self.built_in and not force and self._delete_here(container):
            return
        for left in reversed(range(_DELETE_TRIES)):
            try:
                await self.call(
                    "delete", *(["--force"] if force else []), container, failure="failed to delete task"
                )
                return
            except _Killed:
                if not left:
                    raise
            except errdefs.Internal as error:
                if "does not exist" not in error.message:
                    raise
                return

    def _delete_here(self, container: str) -> bool:
        """`delete` without a child, where there is nothing to end and nothing to wait for; else False."""
        try:
            return delete_ended(self._options[1], container)
        except errdefs.NotFound:
            return True
        except (errdefs.BuoyError, OSError) as error:
            raise errdefs.Internal(f"failed to delete task: {reason(error)}") from error

    async def pause(self, container: str) -> None:
        """Freeze every process of the container."""
        await self.call("pause", container, failure="OCI runtime pause failed")

    async def resume(self, container: str) -> None:
        """Let them run on; nothing happens when they do, as when a runtime died after it had thawed them."""
        try:
            await self.call("resume", container, failure="OCI runtime resume failed")
        except errdefs.Internal as error:
            if "not paused" not in error.message:
                raise

    async def pids(self, container: str) -> list[int]:
        """The processes of the container, as numbers of the shim's pid namespace."""
        text = await self.call("ps", "--format", "json", container, failure="OCI runtime ps failed")
        try:
            found = json.loads(text)
        except ValueError:
            raise errdefs.Internal(f"OCI runtime ps failed: unreadable output {text[:200]!r}") from None
        return [int(pid) for pid in found or []]

    async def checkpoint(self, container: str, words: Sequence[str]) -> None:
        """Write images of the container's processes; `words` are the flags that say where and how."""
        failure = "OCI runtime checkpoint failed"
        await self.call("checkpoint", *words, container, failure=failure, timeout=_CRIU)

    async def restore(
        self,
        container: str,
        words: Sequence[str],
        *,
        pid_file: str,
        stdio: tuple[int, int, int],
        console_socket: str,
    ) -> None:
        """Make the container of images; its processes then run. `words` say of which, and how."""
        flags = _flags(console_socket, pid_file)
        failure = "OCI runtime restore failed"
        await self.call("restore", *words, *flags, container, failure=failure, stdio=stdio, timeout=_CRIU)

    async def update(self, container: str, resources: bytes) -> None:
        """Change limits; resources: the JSON of the OCI `linux.resources` object."""
        await self.call(
            "update", "--resources", "-", container, failure="OCI runtime update failed", stdin=resources
        )

    async def stats(self, container: str, pid: int) -> bytes:
        """Usage of the container's cgroup: an encoded Any (`metrics.measure`). pid: the init process's.

        Measured in a child, so that the shim's memory does not grow by it.
        """
        failure = "failed to get container stats"
        output, source = os.memfd_create("stats", os.MFD_CLOEXEC), _readable(b"")
        try:
            child = fork_child(lambda: self._measure(container, pid), stdio=(source, output, output))
            exit_ = await self._end_of(child, f"{failure}: reading the cgroup", _STATS)
            found = os.pread(output, 16 << 20, 0)
        finally:
            os.close(output)
            os.close(source)
        if exit_.status:
            raise errdefs.Internal(f"{failure}: {found.decode(errors='replace').strip()}")
        return found

    def _measure(self, container: str, pid: int) -> int:
        """In the child: print the usage, or why there is none."""
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            manager = manager_by_state(self._options[1], container) if self.built_in else manager_by_pid(pid)
            found, code = bytes(measure(manager)), 0
        except (errdefs.BuoyError, OSError) as error:
            found, code = reason(error).encode(), 1
        os.write(1, found)
        return code


def _become_runtime(words: str, stdio: tuple[int, int, int]) -> None:
    """The first thing in a child that is the runtime; libcontainer undoes what else it has inherited."""
    gc.disable()
    set_stdio(stdio)
    set_title(f"{BUILT_IN} {words}", BUILT_IN)


def read_pid(path: str) -> int:
    """The number in a pid file of the runtime; Internal."""
    try:
        return int(read_file(path))
    except (OSError, ValueError) as error:
        raise errdefs.Internal(f"failed to retrieve OCI runtime container pid: {error}") from error


def _flags(console_socket: str, pid_file: str) -> Sequence[str]:
    console = ["--console-socket", console_socket] if console_socket else []
    return ["--pid-file", pid_file, *console]


def _readable(data: bytes) -> int:
    """A descriptor that `data` can be read from."""
    if not data:
        return os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    fd = os.memfd_create("runtime-input", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd

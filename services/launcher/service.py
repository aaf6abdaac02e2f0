"""One supervised service: its process, its life's states, and what it says by sd_notify."""

from __future__ import annotations

import contextlib
import enum
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable

from launcher import notify, process
from launcher.fdstore import FdStore, valid_name
from launcher.layout import Layout, Service

#: Waits between a process that ended before it was ready and the next: a service that cannot start must not
#: eat a processor.
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 1.0
#: From SIGABRT, which lets a hung process say where it hangs, to SIGKILL.
_ABORT_TIMEOUT = 2.0
#: From the start of a process to READY=1.
_START_TIMEOUT = 120.0


class Phase(enum.Enum):
    STOPPED = "stopped"
    #: Ended, and due to be started again.
    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


def say(text: str) -> None:
    """One line of the launcher's own log."""
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n")
    sys.stderr.flush()


class Supervised:
    """Owns the service's listening sockets, notification socket, descriptor store and main process.

    The supervisor calls `on_notify`, `on_exit`, `on_hang_up` when the descriptors become readable and
    `on_time` when `deadline` has passed; `changed` is called when the main process begins or ends.
    """

    def __init__(self, spec: Service, layout: Layout, changed: Callable[[Supervised], None]) -> None:
        self.spec = spec
        self.phase = Phase.STOPPED
        self.pid = 0
        self.pidfd = -1
        self.started = 0  # of the process, in clock ticks since boot
        self.starts = 0
        self.failures = 0  # in a row, before READY=1
        self.status = ""
        self.notify_socket = notify.listen(layout.notify_socket(spec.name))
        self.store = FdStore(spec.stored_fds)
        self._layout = layout
        self._changed = changed
        self._listening = [_listen(one.path, one.mode) for one in spec.sockets]
        self._again = False  # start again once the process has ended
        self._watchdog = spec.watchdog
        self._alive_by = 0.0
        self._kill_at = 0.0
        self._start_at = 0.0

    def start(self) -> None:
        """Start the main process, unless there is one; one that is ending is followed by another."""
        self._again = True
        if self.phase in (Phase.STOPPED, Phase.WAITING):
            self._spawn()

    def stop(self, *, again: bool) -> None:
        """Ask the main process to end, kill it when it does not in time; `again`: start the next one."""
        self._again = again
        if self.phase is Phase.WAITING:
            self.phase = Phase.STOPPED
        if self.phase is Phase.STOPPED:
            if again:
                self._spawn()
            return
        if self.phase is not Phase.STOPPING:
            self.phase = Phase.STOPPING
            self._kill_at = time.monotonic() + self.spec.stop_timeout
            self._alive_by = 0.0
            self._signal(signal.SIGTERM)
            self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Let go of everything; the process has ended before."""
        self.store.close()
        self.notify_socket.close()
        for sock in self._listening:
            sock.close()
        for one in self.spec.sockets:
            one.path.unlink(missing_ok=True)
        self._layout.notify_socket(self.spec.name).unlink(missing_ok=True)

    @property
    def deadline(self) -> float:
        """Monotonic time at which `on_time` is due; infinity when nothing is."""
        due = [at for at in (self._alive_by, self._kill_at, self._start_at) if at]
        return min(due, default=float("inf"))

    def on_time(self) -> None:
        now = time.monotonic()
        if self._start_at and now >= self._start_at:
            self._start_at = 0.0
            self._spawn()
        if self._kill_at and now >= self._kill_at:
            self._kill_at = 0.0
            say(f"{self.spec.name}: pid {self.pid} did not end in time, killing it")
            self._signal(signal.SIGKILL)
        if self._alive_by and now >= self._alive_by:
            self._hung()

    def on_notify(self) -> None:
        for message in notify.receive(self.notify_socket):
            try:
                self._obey(message)
            finally:
                # Also what ends a barrier: the sender waits until its descriptor is closed.
                message.close()

    def on_hang_up(self) -> None:
        self.store.drop_hung_up()

    def on_exit(self) -> None:
        """The main process has ended. What it said last counts, so that is read first."""
        self.on_notify()
        if not select.select([self.pidfd], [], [], 0)[0]:
            return  # Its last word was MAINPID.
        ended, how, killed = self.pid, "ended", False
        with contextlib.suppress(ChildProcessError):
            _, status = os.waitpid(self.pid, 0)
            code = os.waitstatus_to_exitcode(status)
            killed = code < 0
            how = f"ended with {code}" if code >= 0 else f"was ended by {signal.Signals(-code).name}"
        if self.spec.kill_mode == "group":
            with contextlib.suppress(ProcessLookupError):
                os.killpg(ended, signal.SIGKILL)
        was, self.phase = self.phase, Phase.STOPPED
        say(f"{self.spec.name}: pid {ended} {how}")
        self._forget()
        if self._again and (was is not Phase.STARTING or killed):
            self._spawn()  # Which writes the next pid over the old: the file is never missing meanwhile.
            return
        self._layout.pid_file(self.spec.name).unlink(missing_ok=True)
        if not self._again:
            return
        self.failures += 1
        self.phase = Phase.WAITING
        self._start_at = time.monotonic() + min(_FIRST_WAIT * 2 ** (self.failures - 1), _LONGEST_WAIT)

    def _spawn(self) -> None:
        self._start_at = 0.0
        passed = [(s.name, sock.fileno()) for s, sock in zip(self.spec.sockets, self._listening, strict=True)]
        self.pid, self.pidfd = process.spawn(
            self.spec.argv,
            log=self._layout.log_file(self.spec.name),
            fds=[*passed, *self.store.passed()],
            notify=self._layout.notify_socket(self.spec.name),
            watchdog=self.spec.watchdog,
            environment=os.environ,
        )
        self.started = process.start_time(self.pid) or 0
        self.starts += 1
        self.phase = Phase.STARTING
        self._watchdog = self.spec.watchdog
        self._kill_at = time.monotonic() + _START_TIMEOUT
        self.status = ""
        _write(self._layout, self.spec.name, self.pid)
        say(f"{self.spec.name}: pid {self.pid} started with {len(self.store)} stored descriptors")
        self._changed(self)

    def _forget(self) -> None:
        os.close(self.pidfd)
        self.pid, self.pidfd, self.started = 0, -1, 0
        self._alive_by = self._kill_at = 0.0
        self._changed(self)

    def _obey(self, message: notify.Message) -> None:
        fields = message.fields
        # systemd's NotifyAccess=main: what the service forked (shims above all) has no say.
        if message.uid not in (0, os.geteuid()) or message.pid != self.pid:
            if "BARRIER" not in fields:
                say(f"{self.spec.name}: a message of pid {message.pid}, uid {message.uid} is not heard")
            return
        if "BARRIER" in fields:
            return
        if "FDSTOREREMOVE" in fields and "FDNAME" in fields:
            self.store.remove(fields["FDNAME"])
        elif "FDSTORE" in fields:
            self._keep(message)
        if "STATUS" in fields:
            self.status = fields["STATUS"]
        if fields.get("WATCHDOG_USEC", "").isdecimal():
            self._watchdog = int(fields["WATCHDOG_USEC"]) / 1e6
        if "STOPPING" in fields and self.phase is Phase.READY:
            # It ends by itself. It is started again, and killed when it takes too long.
            self.phase = Phase.STOPPING
            self._alive_by = 0.0
            self._kill_at = time.monotonic() + self.spec.stop_timeout
        if "READY" in fields and self.phase is Phase.STARTING:
            self.phase = Phase.READY
            self.failures = 0
            self._kill_at = 0.0
            self._feed()
        if fields.get("WATCHDOG") == "trigger":
            self._hung()
        elif "WATCHDOG" in fields and self.phase is Phase.READY:
            self._feed()
        if fields.get("MAINPID", "").isdecimal():
            self._follow(int(fields["MAINPID"]))

    def _keep(self, message: notify.Message) -> None:
        name = fields_name(message.fields)
        if not valid_name(name):
            say(f"{self.spec.name}: {name!r} is not a name for a stored descriptor")
            name = "stored"
        while message.fds:
            refusal = self.store.add(message.fds.pop(0), name, poll=message.fields.get("FDPOLL") != "0")
            if refusal:
                say(f"{self.spec.name}: {name} is not stored: {refusal}")

    def _follow(self, pid: int) -> None:
        """Another process is the main one from now on. It is watched by a pidfd, whoever its parent is."""
        if pid == self.pid or pid == os.getpid():
            return
        started = process.start_time(pid)
        if started is None:
            say(f"{self.spec.name}: MAINPID={pid} names no process")
            return
        pidfd = os.pidfd_open(pid)
        os.close(self.pidfd)
        self.pid, self.pidfd, self.started = pid, pidfd, started
        _write(self._layout, self.spec.name, pid)
        self._changed(self)

    def _feed(self) -> None:
        self._alive_by = time.monotonic() + self._watchdog if self._watchdog else 0.0

    def _hung(self) -> None:
        say(f"{self.spec.name}: pid {self.pid} gives no sign of life, ending it")
        self._alive_by = 0.0
        self._kill_at = time.monotonic() + _ABORT_TIMEOUT
        self._signal(signal.SIGABRT)
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)


def fields_name(fields: dict[str, str]) -> str:
    """The name under which a descriptor is stored; systemd's default is "stored"."""
    return fields.get("FDNAME") or "stored"


def _listen(path: os.PathLike[str], mode: int) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    before = os.umask(0o777)  # Nobody connects before the mode is set.
    try:
        sock.bind(os.fspath(path))
    finally:
        os.umask(before)
    os.chmod(path, mode)
    sock.listen(socket.SOMAXCONN)
    return sock


def _write(layout: Layout, service: str, pid: int) -> None:
    path = layout.pid_file(service)
    scratch = path.with_suffix(".new")
    scratch.write_text(f"{pid}\n")
    scratch.replace(path)

"""The long-lived process behind `make up`: runs the services and answers on the control socket.

One thread, one epoll. Everything that can block is a deadline in `Supervised`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Sequence

from launcher import process
from launcher.control import Connection, serve
from launcher.layout import Layout, Refused, Service
from launcher.service import Phase, Supervised, say

#: Seconds that a service left by a killed launcher has from SIGTERM to SIGKILL.
_TAKE_OVER_TIMEOUT = 10.0


class Supervisor:
    """Runs `specs` in `layout` until it is told to stop, by SIGTERM or on the control socket."""

    def __init__(self, layout: Layout, specs: Sequence[Service]) -> None:
        self._layout = layout
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._pidfds: dict[str, int] = {}
        self._connections: list[Connection] = []
        self._ending = False
        self._services = {spec.name: Supervised(spec, layout, self._changed) for spec in specs}
        self._control = serve(layout.control)

    def run(self, ready: Callable[[], None]) -> None:
        """Start everything, call `ready` once the control socket answers, return when all has ended."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._watch(woken, lambda: _empty(woken))
        self._watch(self._control.fileno(), self._accept)
        for one in self._services.values():
            self._watch(one.notify_socket.fileno(), one.on_notify)
            self._watch(one.store.fileno(), one.on_hang_up)
            one.start()
        ready()
        while not (self._ending and all(s.phase is Phase.STOPPED for s in self._services.values())):
            self._turn()
        for one in self._services.values():
            one.close()
        self._layout.processes.unlink(missing_ok=True)
        for connection in self._connections:
            connection.answer({"ok": True})
        self._control.close()
        self._layout.control.unlink(missing_ok=True)

    def _turn(self) -> None:
        deadline = min((one.deadline for one in self._services.values()), default=float("inf"))
        wait = -1.0 if deadline == float("inf") else max(0.0, deadline - time.monotonic())
        for fd, _ in self._epoll.poll(wait):
            # A handler before this one may have ended what this descriptor belonged to.
            handler = self._handlers.get(fd)
            if handler:
                handler()
        now = time.monotonic()
        for one in self._services.values():
            if one.deadline <= now:
                one.on_time()
        if self._ending:
            self._stop_next()
        self._connections = [c for c in self._connections if not self._settle(c)]

    def _stop_next(self) -> None:
        """One after the other, the last started first: what it calls is there while it ends."""
        for one in reversed(self._services.values()):
            if one.phase is not Phase.STOPPED:
                one.stop(again=False)
                return

    def _on_signal(self, number: int, frame: object) -> None:
        self._ending = True

    def _watch(self, fd: int, handler: Callable[[], None]) -> None:
        self._epoll.register(fd, select.EPOLLIN)
        self._handlers[fd] = handler

    def _unwatch(self, fd: int) -> None:
        del self._handlers[fd]
        # A closed descriptor has left by itself.
        with contextlib.suppress(FileNotFoundError, OSError):
            self._epoll.unregister(fd)

    def _changed(self, one: Supervised) -> None:
        old = self._pidfds.pop(one.spec.name, -1)
        if old >= 0:
            self._unwatch(old)
        if one.pidfd >= 0:
            self._pidfds[one.spec.name] = one.pidfd
            self._watch(one.pidfd, one.on_exit)
        record = {s.spec.name: {"pid": s.pid, "start": s.started} for s in self._services.values() if s.pid}
        scratch = self._layout.processes.with_suffix(".new")
        scratch.write_text(json.dumps(record))
        scratch.replace(self._layout.processes)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            sock, _ = self._control.accept()
            connection = Connection(sock)
            self._connections.append(connection)
            self._watch(sock.fileno(), lambda: self._hear(connection))

    def _hear(self, connection: Connection) -> None:
        request = connection.read()
        if connection.gone:
            self._drop(connection)
        elif request is not None:
            self._obey(connection, request)

    def _obey(self, connection: Connection, request: dict[str, object]) -> None:
        match request.get("op"):
            case "stop":
                connection.until = "stopped"
                self._ending = True
            case "ready":
                connection.until = "ready"
                connection.services = dict.fromkeys(self._services, 0)
            case "restart":
                one = self._services.get(str(request.get("service")))
                if one is None:
                    known = ", ".join(self._services)
                    connection.answer({"error": f"no service is called {request.get('service')!r}: {known}"})
                    return
                connection.until = "ready"
                connection.services = {one.spec.name: one.starts}
                one.failures = 0
                one.stop(again=True)
            case "status":
                connection.answer({"ok": True, "pid": os.getpid(), "services": self._status()})
            case other:
                connection.answer({"error": f"{other!r} is not understood"})

    def _status(self) -> dict[str, object]:
        return {
            name: {
                "pid": one.pid,
                "phase": one.phase.value,
                "starts": one.starts,
                "stored": [stored for stored, _ in one.store.passed()],
                "status": one.status,
            }
            for name, one in self._services.items()
        }

    def _settle(self, connection: Connection) -> bool:
        """Answer a request whose condition holds now. True when the connection is done with."""
        if connection.until == "ready" and not connection.gone:
            services = [(self._services[name], starts) for name, starts in connection.services.items()]
            for one, starts in services:
                if one.failures and one.starts > starts:
                    connection.answer(
                        {"error": f"{one.spec.name} ended before it was ready", "service": one.spec.name}
                    )
                    break
            else:
                if all(one.phase is Phase.READY and one.starts > starts for one, starts in services):
                    connection.answer({"ok": True})
        if connection.gone:
            self._drop(connection)
            return True
        return False

    def _drop(self, connection: Connection) -> None:
        fd = connection.sock.fileno()
        if fd >= 0:
            self._unwatch(fd)
            connection.sock.close()
        connection.gone = True


def hold(layout: Layout) -> int:
    """Become the folder's only supervisor; returns the locked descriptor. Refuses with the holder's pid."""
    fd = os.open(layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        pid = os.pread(fd, 32, 0).decode().strip()
        os.close(fd)
        raise Refused(f"an engine runs in {layout.state} already: launcher pid {pid}") from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def take_over(layout: Layout) -> None:
    """End the services that a killed launcher left. Containers and shims are not among them."""
    try:
        record = json.loads(layout.processes.read_text())
    except (FileNotFoundError, ValueError):
        return
    left: dict[int, int] = {}
    for name, entry in record.items():
        pid, started = int(entry["pid"]), int(entry["start"])
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            # Asked after the pidfd is held: from here on the pid cannot come to mean another process.
            if process.start_time(pid) != started:
                os.close(pidfd)
                continue
            say(f"{name}: pid {pid} was left by a launcher that was killed, ending it")
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            left[pidfd] = pid
    deadline = time.monotonic() + _TAKE_OVER_TIMEOUT
    while left:
        ended = select.select(list(left), [], [], max(0.0, deadline - time.monotonic()))[0]
        for pidfd in ended:
            os.close(pidfd)
            del left[pidfd]
        if not ended:
            for pidfd in left:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            deadline = time.monotonic() + _TAKE_OVER_TIMEOUT
    layout.processes.unlink(missing_ok=True)


def supervise(layout: Layout, specs: Sequence[Service], report: int) -> None:
    """The supervisor process. Says "ok" on the descriptor `report`, or why not, and closes it."""
    try:
        lock = hold(layout)
    except Refused as refusal:
        os.write(report, str(refusal).encode())
        os.close(report)
        return
    try:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        take_over(layout)

        def ready() -> None:
            os.write(report, b"ok")
            os.close(report)

        Supervisor(layout, specs).run(ready)
    finally:
        os.close(lock)


def _empty(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(fd, 512):
            pass


def main(layout: Layout, specs: Sequence[Service], report: int) -> int:
    """As `supervise`; errors go to the launcher's log, which stderr is."""
    try:
        supervise(layout, specs, report)
    except OSError as error:
        say(f"the launcher ends: {error}")
        with contextlib.suppress(OSError):
            os.write(report, str(error).encode())
        return 1
    return 0

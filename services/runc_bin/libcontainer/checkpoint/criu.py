"""One `criu swrk` process and the talk with it; criu(8), https://criu.org/RPC.

It serves one request: it gets a packet socket as descriptor 3, tells of its steps by notifications that must
be acknowledged, and answers in the end. When this process dies CRIU finds the socket closed at its next step,
takes back what it did, and ends.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import re
import select
from collections.abc import Callable, Sequence

from errdefs import DeadlineExceeded, FailedPrecondition, Internal, NotFound
from linux import fds, signals, syscalls

from runc_bin.libcontainer.checkpoint import messages
from runc_bin.libcontainer.checkpoint.messages import Response
from runc_bin.record import Record

# What is used of it: external network (3.11) and pid namespaces and status-ready (3.15), the freezer of
# cgroup v2 (3.14), labels given anew (3.16).
MINIMUM = (3, 16)
FIRST_PASSED = 4  # descriptors 0 to 2 are the streams, 3 is the socket
_CHECK_SECONDS = 20.0
_LARGEST = 1 << 16

# Gets a notification and the descriptor that came along, if any.
Handler = Callable[[Response, int | None], None]


def in_path(name: str) -> str:
    """The path of a program that $PATH has; empty when it has none."""
    for folder in os.environ.get("PATH", os.defpath).split(":"):
        path = os.path.join(folder, name)
        if folder and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return ""


def find(name: str) -> str:
    """The path of CRIU, which is a path or a name in $PATH; NotFound when it is not there."""
    if "/" in name:
        path = os.path.abspath(name) if os.path.isfile(name) and os.access(name, os.X_OK) else ""
    else:
        path = in_path(name)
    if path:
        return path
    wanted = ".".join(map(str, MINIMUM))
    where = f"{name} is no program" if "/" in name else f"there is no {name} in $PATH"
    raise NotFound(f"CRIU (version {wanted} or later) is needed, and {where}")


class Criu(Record):
    """The program at hand."""

    path: str
    version: tuple[int, ...]


def check(name: str = "criu", *, mem_track: bool = False, lazy_pages: bool = False) -> Criu:
    """A CRIU, by name or path, that is recent enough and works with this kernel, which does what is asked
    for: tell which pages a process has changed, fetch pages on demand.

    NotFound without one, FailedPrecondition with what is missing. Nothing is changed.
    """
    program = find(name)
    version = _version(program)
    if version < MINIMUM:
        have, wanted = ".".join(map(str, version)), ".".join(map(str, MINIMUM))
        raise FailedPrecondition(f"{program} is version {have}, and {wanted} or later is needed")
    packet = messages.request(messages.FEATURE_CHECK, features={"mem_track": True, "lazy_pages": True})
    with contextlib.closing(Worker(program, quiet=True)) as worker:
        try:
            found = worker.ask(packet, seconds=_CHECK_SECONDS)
        except Internal:
            found = None
    if found is None or not found.success:
        have = ".".join(map(str, version))
        raise FailedPrecondition(
            f"CRIU {have} does not work with this kernel: see the output of `criu check`"
        )
    for wanted_one, name, what in (
        (mem_track, "mem_track", "tell which pages of memory have changed"),
        (lazy_pages, "lazy_pages", "fetch pages of memory on demand"),
    ):
        if wanted_one and not found.features[name]:
            raise FailedPrecondition(f"criu is missing features: this kernel cannot {what} ({name})")
    return Criu(program, version)


def _version(program: str) -> tuple[int, ...]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = _spawn(program, ["--version"], [(writer, 1)], quiet=True)
    os.close(writer)
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    said = b""
    try:
        while True:
            if not poller.poll(_CHECK_SECONDS * 1000):
                os.kill(pid, signals.SIGKILL)
                raise DeadlineExceeded(f"{program} --version did not end within {_CHECK_SECONDS:.0f} s")
            chunk = os.read(reader, 4096)
            if not chunk:
                break
            said += chunk
    finally:
        os.close(reader)
        os.waitpid(pid, 0)
    found = re.search(rb"Version: (\d+(?:\.\d+)*)", said)
    if found is None:
        raise FailedPrecondition(f"{program} --version does not name a version")
    return tuple(int(part) for part in found[1].split(b"."))


def _spawn(
    program: str,
    words: Sequence[str],
    place: Sequence[tuple[int, int]],
    *,
    quiet: bool = False,
    enter: Callable[[], None] | None = None,
) -> int:
    """Start it with descriptors moved to their places; the rest is closed. `quiet`: without our streams.
    `enter` is called in the child first.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        signals.set_wakeup_fd(-1)
        for number in (signals.SIGPIPE, signals.SIGINT, signals.SIGTERM, signals.SIGCHLD, signals.SIGHUP):
            signals.signal(number, signals.SIG_DFL)
        signals.pthread_sigmask(signals.SIG_SETMASK, ())
        if enter is not None:
            enter()
        if quiet:
            null = os.open("/dev/null", os.O_RDWR)
            for fd in range(3):
                os.dup2(null, fd)
        # First out of one another's way, then down to where they belong.
        last = FIRST_PASSED + len(place)
        moved = [(_above(fd, last), target) for fd, target in place]
        for fd, target in moved:
            os.dup2(fd, target)
        syscalls.close_range(1 + max(2, *(target for _, target in place)))
        os.execv(program, [program, *words])
    except OSError as error:
        os.write(2, f"exec {program}: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _above(fd: int, last: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD, last)


class Worker:
    """A `criu swrk` process. `passed` are descriptors that it has from FIRST_PASSED on; `enter` is called in
    it before the program is there.
    """

    def __init__(
        self,
        program: str,
        *,
        passed: Sequence[int] = (),
        quiet: bool = False,
        enter: Callable[[], None] | None = None,
    ) -> None:
        self._sock, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            place = [(theirs.fileno(), 3), *((fd, FIRST_PASSED + n) for n, fd in enumerate(passed))]
            self.pid = _spawn(program, ["swrk", "3"], place, quiet=quiet, enter=enter)
        except BaseException:
            self._sock.close()
            raise
        finally:
            theirs.close()
        self._ended = False

    def ask(self, packet: bytes, handler: Handler | None = None, *, seconds: float | None = None) -> Response:
        """Send a request and return its answer, which may tell of a failure; `handler` is called with each
        notification, and what it raises ends the talk.

        Internal when CRIU ends without one, DeadlineExceeded after `seconds` without a word.
        """
        with contextlib.suppress(BrokenPipeError):
            self._sock.send(packet, _socket.MSG_NOSIGNAL)
        poller = select.poll()
        poller.register(self._sock.fileno(), select.POLLIN)
        while True:
            if not poller.poll(None if seconds is None else seconds * 1000):
                raise DeadlineExceeded(f"CRIU did not answer within {seconds:.0f} s")
            try:
                data, passed = fds.receive_fds(self._sock, _LARGEST, 1)
            except ConnectionResetError:
                data, passed = b"", []
            try:
                if not data:
                    raise Internal("CRIU ended without an answer")
                said = messages.response(data)
                if said.type != messages.NOTIFY or not said.success:
                    return said
                if handler is not None:
                    handler(said, passed[0] if passed else None)
            finally:
                for fd in passed:
                    os.close(fd)
            self._sock.send(messages.request(messages.NOTIFY, notify_success=True), _socket.MSG_NOSIGNAL)

    def end(self) -> int:
        """Close the talk and wait for the process; its exit code, negative for a signal."""
        self._ended = True
        self._sock.close()
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """`end`, if that has not been."""
        if not self._ended:
            self.end()


def failure(kind: int, answer: Response, log: str) -> Internal:
    """The error for a request of that kind that has failed, with what CRIU's log says of it."""
    why = _first_error(log) or answer.message.strip()
    return Internal(
        f"criu failed: type {messages.REQUEST_NAMES[kind]} errno {answer.error_number}"
        f"{': ' if why else ''}{why} (log file: {log})"
    )


def _first_error(log: str) -> str:
    """The first line that tells of an error: what follows are its consequences. It is not one that a program
    called by CRIU has failed (the reason comes next), nor that it could not raise its own limits.
    """
    with contextlib.suppress(OSError), open(log, encoding="utf-8", errors="replace") as file:
        for line in file:
            time, mark, text = line.partition(" Error (")
            what = text.partition("): ")[2].strip()
            if mark and time.startswith("(") and not what.startswith(("exited, ", "rlimit: ")):
                return what
    return ""

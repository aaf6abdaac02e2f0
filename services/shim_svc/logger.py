"""A program that takes a process's output: containerd's `binary://` (core/runtime/v2/README.md, "Logging").

It reads stdout from descriptor 3 and stderr from 4, and closes or writes to 5 when it is ready. Its
environment is CONTAINER_ID (an exec's own id) and CONTAINER_NAMESPACE, nothing else.

The shim copies, and so keeps the process's ends: a logger that dies breaks no pipe of the container's. One
that reads nothing makes the container wait for `STALL` seconds, then what is beyond is dropped until it reads
again. The shim's log says how much was dropped.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import errdefs

from shim_svc.forks import fork_child
from shim_svc.readiness import either_readable
from shim_svc.reaper import Exit, Reaper

log = logging.getLogger(__name__)

READY = 10.0  # seconds for a logger to be ready
STALL = 5.0  # seconds that a process waits for a logger that reads nothing
_FINISH = 10.0  # seconds for what is left of the output, once it has ended
_TERMINATE = 2.0  # seconds between SIGTERM and SIGKILL
_STREAMS = ("stdout", "stderr")
_FIRST = 3  # of the logger's descriptors


class LoggerSink:
    """One stream's pipe to the logger. fd: its write end, non-blocking; taken."""

    def __init__(self, fd: int, name: str, resume: Callable[[], None]) -> None:
        self._fd = fd
        self._name = name
        self._resume = resume
        self._pending = b""
        self._closing = False
        self._dropping = False
        self._dropped = 0
        self._progress = False
        self._stall: asyncio.TimerHandle | None = None

    def write(self, data: bytes) -> bool:
        """Take the data, or drop it; False when no more should come until the logger has read."""
        if self._fd < 0 or self._dropping:
            self._dropped += len(data)
            return True
        self._pending += data
        self._flush()
        if self._pending and self._stall is None:
            self._watch()
        return not self._pending

    def _watch(self) -> None:
        self._progress = False
        self._stall = asyncio.get_running_loop().call_later(STALL, self._stalled)

    def _stalled(self) -> None:
        self._stall = None
        if self._progress:
            self._watch()
            return
        log.warning("logger %s reads nothing; output is dropped", self._name)
        self._dropping = True
        self._resume()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            try:
                count = os.write(self._fd, self._pending)
            except BlockingIOError:
                loop.add_writer(self._fd, self._flush)
                return
            except OSError as error:  # EPIPE: it has closed the stream, or is gone
                log.warning("logger %s: %s; output is dropped", self._name, os.strerror(error.errno or 0))
                self._dropped += len(self._pending)
                self.abandon()
                self._resume()
                return
            self._progress = True
            self._pending = self._pending[count:]
        self._all_read()

    def _all_read(self) -> None:
        asyncio.get_running_loop().remove_writer(self._fd)
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        if self._closing:
            self.abandon()
            return
        if self._dropping:
            self._dropping = False
            self._tell_drops()
        self._resume()

    def _tell_drops(self) -> None:
        if self._dropped:
            log.warning("logger %s: %d bytes were dropped", self._name, self._dropped)
            self._dropped = 0

    def close(self) -> None:
        """The stream has ended: so does the logger's, behind what it has not read yet."""
        self._closing = True
        if self._fd >= 0 and not self._pending:
            self.abandon()

    def abandon(self) -> None:
        """Close even though the logger has not read everything."""
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        self._pending = b""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1
        if self._closing:
            self._tell_drops()


class Logger:
    """The logger of one process. Steps: `start`, `sink` for each stream, `close` at its end, `finish`.

    words: the program's absolute path and its arguments. process: the container's id, or the exec's.
    """

    def __init__(self, words: Sequence[str], *, process: str, namespace: str, reaper: Reaper) -> None:
        self._words = words
        self._environ = {"CONTAINER_ID": process, "CONTAINER_NAMESPACE": namespace}
        self._reaper = reaper
        self._pid = 0
        self._exit: asyncio.Future[Exit] | None = None
        self._writers: dict[str, int] = {}
        self._sinks: list[LoggerSink] = []

    async def start(self) -> None:
        """Run the program until it is ready. Internal when it cannot be run, DeadlineExceeded when it is not
        ready in `READY` seconds; then it has been killed.
        """
        with ExitStack() as ends:
            pipes = {}
            for stream in _STREAMS:
                read_end, self._writers[stream] = os.pipe2(os.O_CLOEXEC)
                ends.callback(os.close, read_end)
                os.set_blocking(self._writers[stream], False)
                pipes[stream] = read_end
            ready, ready_write = os.pipe2(os.O_CLOEXEC)
            ends.callback(os.close, ready)
            failed, failed_write = os.pipe2(os.O_CLOEXEC)
            ends.callback(os.close, failed)
            null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            ends.callback(os.close, null)
            theirs = (*pipes.values(), ready_write)
            try:
                self._pid = fork_child(
                    lambda: self._child(theirs, failed_write),
                    stdio=(null, null, null),
                    keep=(*theirs, failed_write),
                )
                self._exit = self._reaper.exit_of(self._pid)
            finally:
                os.close(ready_write)
                os.close(failed_write)
            try:
                await either_readable((failed,), READY)
                if code := os.read(failed, 16):
                    reason = os.strerror(int(code)).lower()
                    raise errdefs.Internal(
                        f"failed to start binary process: fork/exec {self._words[0]}: {reason}"
                    )
                await either_readable((ready,), READY)
            except TimeoutError:
                raise errdefs.DeadlineExceeded(
                    f"logger {self._words[0]} was not ready in {READY:g} s"
                ) from None

    def _child(self, fds: Sequence[int], failed: int) -> int:
        # Out of the way of their own numbers first. What is not to be the program's closes at the exec.
        above = _FIRST + len(fds)
        failed = fcntl.fcntl(failed, fcntl.F_DUPFD_CLOEXEC, above)
        for at, fd in enumerate([fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in fds]):
            os.dup2(fd, _FIRST + at)
        try:
            os.execve(self._words[0], list(self._words), self._environ)
        except OSError as error:
            os.write(failed, str(error.errno or errno.ENOEXEC).encode())
        return 127

    def sink(self, stream: str, resume: Callable[[], None]) -> LoggerSink:
        """Where a stream's output goes; once for each."""
        sink = LoggerSink(self._writers.pop(stream), self._words[0], resume)
        self._sinks.append(sink)
        return sink

    def close(self) -> None:
        """Let go of streams that never began. A logger that never had one is killed: there was no process."""
        for fd in self._writers.values():
            os.close(fd)
        self._writers = {}
        if not self._sinks and self._exit is not None and not self._exit.done():
            os.kill(self._pid, signal.SIGKILL)

    async def finish(self) -> None:
        """Wait for the end of the logger, which has all output or is not going to take it; at last end it."""
        if self._exit is None:
            return
        for seconds, number in ((_FINISH, signal.SIGTERM), (_TERMINATE, signal.SIGKILL)):
            await asyncio.wait((self._exit,), timeout=seconds)
            if self._exit.done():
                break
            log.warning("logger %s does not end: signal %d", self._words[0], number)
            for sink in self._sinks:
                sink.abandon()
            os.kill(self._pid, number)

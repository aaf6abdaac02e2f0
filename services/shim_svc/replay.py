"""Sending a client what the log holds so far (logs=1), by a child that reads the files and writes the socket.

Reading a file may wait for the disk, and the shim must not. The child sends what was known to be written when
the client came; what was still on its way the shim has in memory, and what comes meanwhile waits behind it.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C function; see forks
import asyncio
import contextlib
import gc
import os
import select
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from container_log.reader import LogOptions, up_to

from shim_svc.forks import fork_child
from shim_svc.logs import ContainerLog
from shim_svc.title import set_title


class Replay:
    """One replay, from its beginning on. done: called once, with whether the client has got everything.

    OSError when no process can be had.
    """

    def __init__(
        self, log: ContainerLog, options: LogOptions, sock: socket.socket, done: Callable[[bool], None]
    ) -> None:
        self._done = done
        file = log.writer.file
        assert file is not None
        path, fd, size, driver = Path(file.path), file.fd, log.writer.offset, log.driver
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)
        with theirs:
            try:
                pid = fork_child(
                    lambda: _send(path, driver, options, fd, size, sock, theirs),
                    keep=(fd, sock.fileno(), theirs.fileno()),
                )
            except OSError:
                self._channel.close()
                raise
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._channel.fileno(), self._ended)

    def _ended(self) -> None:
        try:
            told = self._channel.recv(1)
        except BlockingIOError:
            return
        except OSError:
            told = b""
        self.stop()
        self._done(told == b"d")

    def stop(self) -> None:
        """End it; `done` is not called any more. May be called twice."""
        if self._pidfd < 0:
            return
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            _signal.pidfd_send_signal(self._pidfd, int(signal.SIGKILL))
        os.close(self._pidfd)
        self._pidfd = -1


def _send(
    path: Path,
    driver: str,
    options: LogOptions,
    fd: int,
    size: int,
    sock: socket.socket,
    channel: socket.socket,
) -> int:
    """The child; returns the exit code."""
    gc.disable()
    set_title("shim-svc log-replay", "shim-replay")
    poller = select.poll()
    poller.register(sock.fileno(), select.POLLOUT)
    try:
        for data in up_to(path, driver, options, os.dup(fd), size):
            view = memoryview(data)
            while view:
                try:
                    view = view[sock.send(view, socket.MSG_NOSIGNAL) :]
                except BlockingIOError:
                    poller.poll()
        channel.send(b"d")
    except OSError:
        return 1
    return 0

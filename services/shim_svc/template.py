"""The template: a process that forks shims and does nothing else.

A page that a parent writes between two forks is private memory of each child, so the template writes as
little as can be; the nursery, which serves, writes much. It keeps one spare: a process that has been forked
ahead, is all that a shim is but for its container, and waits for one. A shim is forked twice, so that it is
nobody's child here, in a session of its own.

The spare takes the nursery's request by itself. It tells the template through a pipe, which closes when it
ends instead. Neither outlives the other, nor the nursery: each looks whether the other ends of its
descriptors are there.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import time
from collections.abc import Sequence

from linux.crashpoints import crashpoint
from linux.fds import receive_fds

from shim_svc.forks import fork_child
from shim_svc.journal import Journal
from shim_svc.shim import ShimOptions, prepare, run_shim
from shim_svc.title import set_title

log = logging.getLogger(__name__)

_LONGEST = 65536  # bytes of a request
_TAKEN = b"t"
_HURRY = 0.1  # seconds that the start of a container takes
_PAUSE = 0.2  # seconds before another spare is forked for one that died


def pack(options: ShimOptions) -> bytes:
    """A request: with it go the shim's listening socket and the pipe that gets its number."""
    return json.dumps(vars(options)).encode()


def _unpack(data: bytes) -> ShimOptions:
    return ShimOptions(**json.loads(data))


def be_template(requests: socket.socket, journal: Journal, cgroups: Sequence[str]) -> int:
    """Keep a spare until the nursery is gone; returns the exit code. `requests` is shared with the spares."""
    set_title("shim-svc nursery-template", "shim-svc")
    requests.setblocking(True)
    while True:
        try:
            idle, alive = _fork_spare(requests, journal, cgroups)
        except OSError as error:
            log.error("fork: %s", error)
            time.sleep(_PAUSE)
            continue
        try:
            if not _wait(idle, requests):
                return 0
            taken = os.read(idle, 1) == _TAKEN
        finally:
            os.close(idle)
            os.close(alive)
        if taken:
            crashpoint("nursery.start.forked")
            _leave_time(requests)
        else:
            time.sleep(_PAUSE)


def _fork_spare(requests: socket.socket, journal: Journal, cgroups: Sequence[str]) -> tuple[int, int]:
    """Fork a spare. Returns a pipe from it, which says that it was taken or ends with it, and one to it,
    which is open as long as it is to wait.
    """
    idle, idle_write = os.pipe2(os.O_CLOEXEC)
    alive_read, alive = os.pipe2(os.O_CLOEXEC)
    keep = (requests.fileno(), idle_write, alive_read, journal.fd)

    def between() -> int:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        fork_child(
            lambda: _be_spare(requests, idle_write, alive_read, journal, cgroups),
            stdio=(null, null, 2),
            keep=keep,
        )
        return 0

    try:
        os.waitpid(fork_child(between, keep=keep), 0)
    except OSError:
        os.close(idle)
        os.close(alive)
        raise
    finally:
        os.close(idle_write)
        os.close(alive_read)
    return idle, alive


def _wait(idle: int, requests: socket.socket) -> bool:
    """Wait for the spare to say something or to end; False once the nursery is gone."""
    poller = select.poll()
    poller.register(idle, select.POLLIN)
    poller.register(requests, 0)  # its end is told unasked
    while True:
        found = dict(poller.poll())
        if requests.fileno() in found:
            return False
        if idle in found:
            return True


def _leave_time(requests: socket.socket) -> None:
    """Let the container that was just asked for go first, unless another is asked for."""
    poller = select.poll()
    poller.register(requests, select.POLLIN)
    poller.poll(_HURRY * 1000)


def _be_spare(
    requests: socket.socket, idle: int, alive: int, journal: Journal, cgroups: Sequence[str]
) -> int:
    """Wait for a container, then be its shim."""
    set_title("shim-svc nursery-spare", "shim-svc")
    prepared = prepare(cgroups)
    poller = select.poll()
    poller.register(requests, select.POLLIN)
    poller.register(alive, 0)
    if alive in dict(poller.poll()):
        prepared.leave()
        return 0
    data, fds = receive_fds(requests, _LONGEST, 2)
    if not data:
        prepared.leave()
        return 0
    os.write(idle, _TAKEN)
    os.close(idle)
    os.close(alive)
    requests.close()
    with socket.socket(fileno=fds[0]) as listener:
        return run_shim(prepared, _unpack(data), listener, fds[1], journal)

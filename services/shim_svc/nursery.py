"""The nursery: imports everything once, then has one shim per container forked on request.

Two processes, neither of which ever has a thread. The server speaks ttrpc. The template, forked from it
first, does nothing but fork shims (see template).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Sequence

import errdefs
from linux.crashpoints import crashpoint
from linux.fds import send_fds
from pb.buoy.nursery.v1 import NurseryBase, StartRequest, StartResponse
from rpc import ttrpc

from shim_svc import cgroup
from shim_svc.bundle import PROTOCOL, VERSION
from shim_svc.forks import fork_child
from shim_svc.journal import Journal
from shim_svc.notify import Notifier
from shim_svc.process import check_identifier
from shim_svc.shim import ShimOptions, answers, bind, prepare, run_shim
from shim_svc.template import be_template, pack
from shim_svc.warmth import warm

log = logging.getLogger(__name__)

_READY = 10.0  # seconds for a shim to be there
_FINISH = 2.0  # seconds for the calls under way at the end


class Nursery(NurseryBase):
    """Serves Start. Requests for the same bundle share one fork."""

    def __init__(self, template: socket.socket, *, sockets: str, runtime_root: str) -> None:
        self._template = template
        self._sockets = sockets
        self._runtime_root = runtime_root
        self._under_way: dict[str, asyncio.Task[StartResponse]] = {}

    async def start(self, message: StartRequest) -> StartResponse:
        """Fork a shim, or answer with the one that this bundle has."""
        check_identifier("namespace", message.namespace)
        check_identifier("container id", message.id)
        bundle = message.bundle
        if not os.path.isabs(bundle) or not os.path.isfile(f"{bundle}/config.json"):
            raise errdefs.InvalidArgument(f"bundle {message.bundle!r} does not hold a config.json")
        options = ShimOptions(
            namespace=message.namespace,
            id=message.id,
            bundle=bundle,
            sockets=self._sockets,
            runtime_root=self._runtime_root,
            debug=message.debug,
        )
        task = self._under_way.get(bundle)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._start(options))
            self._under_way[bundle] = task
            task.add_done_callback(lambda done: self._done(bundle, done))
        return await asyncio.shield(task)

    async def finish(self, timeout: float) -> None:
        """Answer the calls under way."""
        if self._under_way:
            await asyncio.wait(self._under_way.values(), timeout=timeout)
            await asyncio.sleep(0)  # those who wait for them go on

    def _done(self, bundle: str, task: asyncio.Task[StartResponse]) -> None:
        del self._under_way[bundle]
        if not task.cancelled():
            task.exception()  # seen, even when the caller is gone

    async def _start(self, options: ShimOptions) -> StartResponse:
        if answers(options.socket_path):
            return _response(options, _recorded_pid(options.bundle))
        listener = bind(options)
        crashpoint("nursery.start.bound")
        ready, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            send_fds(self._template, pack(options), [listener.fileno(), write_end])
        except OSError as error:
            os.close(ready)
            raise errdefs.Unavailable(f"the nursery's template: {error.strerror}") from error
        finally:
            os.close(write_end)
            listener.close()
        crashpoint("nursery.start.asked")
        return _response(options, await _read_ready(ready))


def _response(options: ShimOptions, pid: int) -> StartResponse:
    return StartResponse(version=VERSION, address=options.address, protocol=PROTOCOL, pid=pid)


def _recorded_pid(bundle: str) -> int:
    try:
        with open(f"{bundle}/shim.pid", encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return 0


async def _read_ready(fd: int) -> int:
    """Wait for the number that a new shim writes into its pipe; Internal when it dies instead."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def came() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(fd, came)
    try:
        async with asyncio.timeout(_READY):
            await readable
        text = os.read(fd, 32)
    except TimeoutError:
        raise errdefs.DeadlineExceeded("the shim did not come up") from None
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    if not text:
        raise errdefs.Internal("the shim ended while it started")
    return int(text)


def fork_shim(
    options: ShimOptions,
    listener: socket.socket,
    ready: int,
    *,
    journal: Journal,
    cgroups: Sequence[str],
    stderr: int = 2,
) -> None:
    """Fork a shim by way of a child that ends at once.

    ready: the write end of a pipe, to which the shim writes its number. stderr: the descriptor for its log,
    which must not be what somebody reads to the end.
    """

    def between() -> int:
        os.setsid()
        keep = (listener.fileno(), ready, journal.fd)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)

        def shim() -> int:
            return run_shim(prepare(cgroups), options, listener, ready, journal)

        fork_child(shim, stdio=(null, null, stderr), keep=keep)
        return 0

    pid = fork_child(between, keep=(listener.fileno(), ready, journal.fd, stderr))
    os.waitpid(pid, 0)


def run_nursery(
    listener: socket.socket, *, sockets: str, runtime_root: str, notifier: Notifier, journal: Journal
) -> int:
    """Serve on the listening socket until SIGTERM; shims live on. Returns the exit code."""
    os.makedirs(sockets, mode=0o700, exist_ok=True)
    cgroups = cgroup.delegated()
    cgroup.sweep(cgroups)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    warm(sockets)
    fork_child(lambda: be_template(theirs, journal, cgroups), keep=(theirs.fileno(), journal.fd))
    theirs.close()
    ours.setblocking(False)
    nursery = Nursery(ours, sockets=sockets, runtime_root=runtime_root)
    return asyncio.run(_serve(nursery, listener, ours, notifier))


async def _serve(
    nursery: Nursery, listener: socket.socket, template: socket.socket, notifier: Notifier
) -> int:
    server = ttrpc.Server([nursery])
    loop = asyncio.get_running_loop()
    over: asyncio.Future[int] = loop.create_future()

    def end(code: int) -> None:
        if not over.done():
            over.set_result(code)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, 0)
    loop.add_reader(template, end, 1)  # it says nothing while it lives
    await server.serve(listener)
    if notifier.watchdog:
        _watch(loop, notifier)
    notifier.send("READY=1")
    code = await over
    notifier.send("STOPPING=1")
    await nursery.finish(_FINISH)
    await server.close()
    template.close()
    return code


def _watch(loop: asyncio.AbstractEventLoop, notifier: Notifier) -> None:
    notifier.send("WATCHDOG=1")
    loop.call_later(notifier.watchdog / 3, _watch, loop, notifier)

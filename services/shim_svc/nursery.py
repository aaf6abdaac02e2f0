"""The nursery: imports everything once, then forks one shim per container on request.

It is single-threaded and forks outside of its event loop, so that a shim begins with a clean stack. The shim
is forked twice, so that it is nobody's child here, in a session of its own. It shares the nursery's memory.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

import errdefs
from linux.crashpoints import crashpoint
from pb.buoy.nursery.v1 import NurseryBase, StartRequest, StartResponse
from rpc import ttrpc

from shim_svc import cgroup
from shim_svc.bundle import PROTOCOL, VERSION
from shim_svc.forks import fork_child
from shim_svc.notify import Notifier
from shim_svc.process import check_identifier
from shim_svc.shim import ShimOptions, answers, bind, run_shim

log = logging.getLogger(__name__)

_READY = 10.0  # seconds for a forked shim to be there


@dataclass
class _Job:
    options: ShimOptions
    listener: socket.socket
    done: asyncio.Future[int]


class Nursery(NurseryBase):
    """Serves Start. Requests for the same bundle share one fork."""

    def __init__(self, *, sockets: Path, runtime_root: str) -> None:
        self._sockets = sockets
        self._runtime_root = runtime_root
        self._under_way: dict[Path, asyncio.Task[StartResponse]] = {}
        self.jobs: asyncio.Queue[_Job | None] = asyncio.Queue()

    async def start(self, message: StartRequest) -> StartResponse:
        """Fork a shim, or answer with the one that this bundle has."""
        check_identifier("namespace", message.namespace)
        check_identifier("container id", message.id)
        bundle = Path(message.bundle)
        if not bundle.is_absolute() or not (bundle / "config.json").is_file():
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

    def _done(self, bundle: Path, task: asyncio.Task[StartResponse]) -> None:
        del self._under_way[bundle]
        if not task.cancelled():
            task.exception()  # seen, even when the caller is gone

    async def _start(self, options: ShimOptions) -> StartResponse:
        if answers(options.socket_path):
            return _response(options, _recorded_pid(options.bundle))
        listener = bind(options)
        crashpoint("nursery.start.bound")
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        try:
            self.jobs.put_nowait(_Job(options, listener, done))
            ready = await done
        finally:
            listener.close()
        pid = await _read_ready(ready)
        return _response(options, pid)


def _response(options: ShimOptions, pid: int) -> StartResponse:
    return StartResponse(version=VERSION, address=options.address, protocol=PROTOCOL, pid=pid)


def _recorded_pid(bundle: Path) -> int:
    try:
        return int((bundle / "shim.pid").read_text())
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


def fork_shim(options: ShimOptions, listener: socket.socket, stderr: int = 2) -> int:
    """Fork a shim by way of a child that ends at once; returns the read end of its ready pipe.

    stderr: the descriptor for its log, which must not be what somebody reads to the end.
    """
    ready, write_end = os.pipe2(os.O_CLOEXEC)

    def between() -> int:
        os.setsid()
        keep = (listener.fileno(), write_end)
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        fork_child(lambda: run_shim(options, listener, write_end), stdio=(null, null, stderr), keep=keep)
        return 0

    try:
        pid = fork_child(between, keep=(listener.fileno(), write_end, stderr))
        os.waitpid(pid, 0)
    except BaseException:
        os.close(ready)
        raise
    finally:
        os.close(write_end)
    crashpoint("nursery.start.forked")
    return ready


def run_nursery(listener: socket.socket, *, sockets: Path, runtime_root: str, notifier: Notifier) -> int:
    """Serve on the listening socket until SIGTERM; shims live on. Returns the exit code."""
    sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
    cgroup.sweep()
    loop = asyncio.SelectorEventLoop()
    asyncio.set_event_loop(loop)
    nursery = Nursery(sockets=sockets, runtime_root=runtime_root)
    server = ttrpc.Server([nursery])

    async def begin() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, nursery.jobs.put_nowait, None)
        await server.serve(listener)
        if notifier.watchdog:
            loop.call_soon(_watch, loop, notifier)

    loop.run_until_complete(begin())
    gc.collect()
    gc.freeze()
    notifier.send("READY=1")
    while (job := loop.run_until_complete(nursery.jobs.get())) is not None:
        try:
            job.done.set_result(fork_shim(job.options, job.listener))
        except OSError as error:
            job.done.set_exception(errdefs.Unavailable(f"fork: {error.strerror}"))
    notifier.send("STOPPING=1")
    loop.run_until_complete(server.close())
    loop.close()
    return 0


def _watch(loop: asyncio.AbstractEventLoop, notifier: Notifier) -> None:
    notifier.send("WATCHDOG=1")
    loop.call_later(notifier.watchdog / 3, _watch, loop, notifier)

"""Shims: starting one, finding one that lives, speaking to it, noticing its death, cleaning up behind it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TypeVar

import errdefs
from betterproto2 import Message
from pb.buoy.facts.v1 import NextRequest, NextResponse
from pb.buoy.nursery.v1 import StartRequest, StartResponse
from pb.containerd.task.v2 import ConnectRequest, ConnectResponse, DeleteResponse
from rpc.ttrpc import Client

from containerd_svc.bundle import Bundle
from containerd_svc.foreign_shims import ForeignShims, start_answer
from containerd_svc.shim_command import call_shim

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

_CONNECT = 2.0  # seconds for a connection to a shim
_START = 15.0  # seconds until a new shim answers
_LAST_WORDS = 0.02  # seconds for what a shim said before it died
_DELETE = 20.0  # seconds for cleaning up behind a dead shim
_RECONNECT = 0.1  # seconds between two tries while the process lives


class Shim:
    """A live shim: its connection, made again when it breaks, and its process. One that is foreign tells no
    facts, and may hold tasks of other bundles too.
    """

    def __init__(
        self, bundle: Bundle, client: Client, version: int, pid: int, pidfd: int, *, foreign: bool = False
    ) -> None:
        self.bundle = bundle
        self.pid = pid
        self.version = version
        self.foreign = foreign
        self._client = client
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self.dead = asyncio.Event()
        self._loop.add_reader(pidfd, self._died)

    def _died(self) -> None:
        self._release()
        self.dead.set()
        # Its last words may be on their way. A connection that stays open is held by something else.
        self._loop.call_later(_LAST_WORDS, self._hang_up)

    def _hang_up(self) -> None:
        if not self._client.closed:
            self._client.abort()

    def _release(self) -> None:
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    async def call(self, method: str, request: Message, reply: type[M], *, timeout: float) -> M:
        """Call the Task service. `timeout` in seconds, 0 for none. Unavailable when the shim is gone."""
        service = "containerd.task.v3.Task" if self.version >= 3 else "containerd.task.v2.Task"
        return await self._call(service, method, request, reply, timeout)

    async def facts(self, epoch: str, after: int, wait_ms: int, *, timeout: float) -> NextResponse:
        """The facts later than the cursor; NotImplementedHere from a shim that has none to give."""
        request = NextRequest(epoch=epoch, after=after, wait_ms=wait_ms)
        return await self._call("buoy.facts.v1.Facts", "Next", request, NextResponse, timeout)

    async def _call(self, service: str, method: str, request: Message, reply: type[M], timeout: float) -> M:
        if self.dead.is_set():
            raise errdefs.Unavailable(f"the shim of {self.bundle.id} has died")
        if self._client.closed:
            self._client = await Client.connect(self._client.path, timeout=_CONNECT)
        return await self._client.call(service, method, request, reply, timeout=timeout)

    async def reconnected(self) -> None:
        """Return when the shim may be called again after an Unavailable, or is dead."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.dead.wait(), _RECONNECT)

    @property
    def path(self) -> str:
        """Its socket."""
        return self._client.path

    def is_listed(self) -> bool:
        """Whether the shim's socket is there: one that was killed leaves it."""
        return os.path.exists(self._client.path)

    def kill(self) -> None:
        """End the process, if it has not ended."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def close(self) -> None:
        """Let go of the shim, which lives on."""
        self._release()
        await self._client.close()


class _NoNursery(errdefs.Unavailable):
    """Nobody listens at the nursery's socket."""


class Shims:
    """How this daemon gets at shims. Holds one connection to the nursery."""

    def __init__(
        self, *, nursery: str, address: str, sockets: Path, runtime_root: str, debug: bool = False
    ) -> None:
        self._nursery_path = nursery
        self._address = address
        self._sockets = sockets
        self._runtime_root = runtime_root
        self._debug = debug
        self._nursery: Client | None = None
        self._foreign = ForeignShims(address=address, debug=debug)

    async def start(self, bundle: Bundle) -> Shim:
        """Start the bundle's shim, or find the one that a former call started. Raises Unavailable,
        DeadlineExceeded; NotImplementedHere for a shim that speaks otherwise.
        """
        foreign = bundle.foreign_shim()
        if foreign:
            path, version = await self._foreign.start(bundle, foreign)
            return await self._connect(bundle, path, version, 0, _CONNECT, foreign=True)
        try:
            reply = await self._ask_nursery(bundle)
        except _NoNursery as error:
            log.warning("no nursery (%s): starting a shim of its own for %s", error.message, bundle.id)
            path, version = await self._start_alone(bundle)
            return await self._connect(bundle, path, version, bundle.pid("shim.pid"), _CONNECT)
        return await self._connect(
            bundle, reply.address.removeprefix("unix://"), reply.version, reply.pid, _CONNECT
        )

    async def connect(self, bundle: Bundle, *, timeout: float = _CONNECT) -> Shim:
        """The bundle's live shim. Raises Unavailable when there is none."""
        found = bundle.bootstrap()
        if found is None:
            raise errdefs.Unavailable(f"{bundle.path}: no shim was started")
        path, version = found
        if bundle.foreign_shim():
            self._foreign.read_log(bundle)
            return await self._connect(bundle, path, version, 0, timeout, foreign=True)
        return await self._connect(bundle, path, version, bundle.pid("shim.pid"), timeout)

    async def delete(self, bundle: Bundle) -> DeleteResponse:
        """Clean up behind a dead shim by `shim-svc delete`: ends the container's processes, unmounts, forgets
        the runtime's state.

        Returns how the container ended. Raises Unavailable or DeadlineExceeded.
        """
        foreign = bundle.foreign_shim()
        if foreign:
            return await self._foreign.delete(bundle, foreign)
        output = await self._run(bundle, ["-bundle", str(bundle.path), "delete"], _DELETE)
        return DeleteResponse.parse(output)

    def forget(self, bundle: Bundle) -> None:
        """Nothing is asked of the bundle's shim any more."""
        self._foreign.forget(bundle)

    async def close(self) -> None:
        """Close the nursery's connection."""
        if self._nursery is not None:
            await self._nursery.close()

    async def _ask_nursery(self, bundle: Bundle) -> StartResponse:
        """What the nursery answers. Raises _NoNursery when there is none, and what the nursery raises."""
        request = StartRequest(
            namespace=bundle.namespace, id=bundle.id, bundle=str(bundle.path), debug=self._debug
        )
        held = self._nursery
        if held is not None and not held.closed:
            try:
                return await self._ask(held, request)
            except errdefs.Unavailable:
                if not held.closed:
                    raise
                # A nursery that was restarted left this connection dead; the call may be repeated.
        try:
            self._nursery = await Client.connect(self._nursery_path, timeout=_CONNECT)
        except errdefs.Unavailable as error:
            raise _NoNursery(error.message) from error
        return await self._ask(self._nursery, request)

    @staticmethod
    async def _ask(nursery: Client, request: StartRequest) -> StartResponse:
        return await nursery.call("buoy.nursery.v1.Nursery", "Start", request, StartResponse, timeout=_START)

    async def _start_alone(self, bundle: Bundle) -> tuple[str, int]:
        return start_answer(await self._run(bundle, ["start"], _START))

    async def _run(self, bundle: Bundle, arguments: list[str], timeout: float) -> bytes:
        """Run our shim's command (containerd's shim contract: flags, then `start` or `delete`), in the
        bundle."""
        flags = ["-namespace", bundle.namespace, "-id", bundle.id, "-address", self._address]
        flags += ["-sockets", str(self._sockets), "-runtime-root", self._runtime_root]
        return await call_shim([*_shim_command(), *flags, *arguments], folder=bundle.path, timeout=timeout)

    async def _connect(
        self, bundle: Bundle, path: str, version: int, pid: int, timeout: float, *, foreign: bool = False
    ) -> Shim:
        client = await Client.connect(path, timeout=timeout)
        try:
            if not pid:
                connected = await client.call(
                    "containerd.task.v3.Task" if version >= 3 else "containerd.task.v2.Task",
                    "Connect",
                    ConnectRequest(id=bundle.id),
                    ConnectResponse,
                    timeout=timeout,
                )
                # The oldest of containerd's own said no more than the task's.
                pid = connected.shim_pid or bundle.pid("shim.pid")
            if not pid:
                raise errdefs.Unavailable(f"the shim of {bundle.id} does not say which process it is")
            pidfd = os.pidfd_open(pid)
            if foreign:
                bundle.write_pid("shim.pid", pid)
        except BaseException as error:
            await client.close()
            if isinstance(error, ProcessLookupError):
                raise errdefs.Unavailable(f"the shim of {bundle.id} has died") from error
            raise
        return Shim(bundle, client, version, pid, pidfd, foreign=foreign)


def _shim_command() -> list[str]:
    """The installed command beside this interpreter, or the module when there is none."""
    beside = Path(sys.executable).with_name("shim-svc")
    if beside.exists():
        return [str(beside)]
    found = shutil.which("shim-svc")
    return [found] if found else [sys.executable, "-m", "shim_svc"]

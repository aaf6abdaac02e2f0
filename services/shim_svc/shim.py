"""One shim: the process that is the parent of one container's processes, from its fork to its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import errdefs
from linux.syscalls import PR_SET_CHILD_SUBREAPER, prctl
from pb.buoy.attach.v1 import Request
from rpc import grpc, ttrpc

from shim_svc import cgroup
from shim_svc.attach_socket import AttachSocket
from shim_svc.bundle import bootstrap, remove_file, task_socket, write_file
from shim_svc.facts import Facts
from shim_svc.journal import Journal
from shim_svc.ports import Ports
from shim_svc.publish import publish
from shim_svc.reaper import Reaper
from shim_svc.service import V2, V3, BothVersions, TaskService
from shim_svc.signals import ignore_signals, on_signals
from shim_svc.title import set_title

log = logging.getLogger(__name__)

_CHILDREN_WAIT = 0.3  # seconds for the children to end behind the task; one may be held by a disk that hangs


@dataclass(frozen=True)
class ShimOptions:
    """What a shim is started with.

    containerd: the address for `ps`, as containerd's own shims show it; events_address: the ttrpc socket of a
    real containerd to publish to, or empty.
    """

    namespace: str
    id: str
    bundle: str
    sockets: str
    runtime_root: str
    debug: bool = False
    containerd: str = ""
    events_address: str = ""

    @property
    def socket_path(self) -> str:
        """The Task socket; InvalidArgument when that path is too long."""
        return task_socket(self.sockets, self.namespace, self.id, self.bundle)

    @property
    def address(self) -> str:
        """The Task socket as clients are told it."""
        return f"unix://{self.socket_path}"


def bind(options: ShimOptions) -> socket.socket:
    """Bind the Task socket and write its address into the bundle, so that whoever looks finds this shim.

    AlreadyExists when a shim answers there; Internal when the kernel refuses.
    """
    path = options.socket_path
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.exists(path):
            if answers(path):
                raise errdefs.AlreadyExists(f"a shim serves {path}")
            remove_file(path)
        os.fchmod(sock.fileno(), 0o600)
        sock.bind(path)
        sock.listen(128)
        write_file(f"{options.bundle}/address", options.address)
        write_file(f"{options.bundle}/bootstrap.json", bootstrap(options.address))
    except OSError as error:
        sock.close()
        raise errdefs.Internal(f"shim socket {path}: {error.strerror}") from error
    except BaseException:
        sock.close()
        raise
    return sock


def answers(path: str) -> bool:
    """Whether anybody listens on the socket at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except OSError as error:
            return isinstance(error, (TimeoutError, BlockingIOError))  # a full queue is somebody's
    return True


class Shim:
    """Wires the parts of one shim together."""

    def __init__(self, options: ShimOptions) -> None:
        self._options = options
        self._over = asyncio.Event()
        self._facts = Facts()
        self._ports = Ports()
        self._attach_sockets: dict[str, AttachSocket] = {}
        self._reaper = Reaper()
        self._service = TaskService(
            container_id=options.id,
            namespace=options.namespace,
            reaper=self._reaper,
            facts=self._facts,
            sockets=options.sockets,
            runtime_root=options.runtime_root,
            prepare=self._listen_for_clients,
            shutdown=self._over.set,
        )
        self._grpc: grpc.Server | None = None

    def _grpc_protocol(self) -> asyncio.Protocol:
        # Made for the first client that speaks it: most shims never meet one.
        if self._grpc is None:
            self._grpc = grpc.Server([cast(Any, BothVersions(self._service)), self._facts])
        return self._grpc._protocol_factory()

    def _listen_for_clients(self, path: str) -> None:
        if path in self._attach_sockets:
            return
        try:
            self._attach_sockets[path] = AttachSocket(path, self._attach_request)
        except OSError as error:
            raise errdefs.Internal(f"attach socket {path}: {error.strerror}") from error

    def _attach_request(self, request: Request, sockets: list[socket.socket]) -> None:
        if request.ports is not None:
            self._ports.replace(request.ports.mappings, sockets)
            return
        if request.attach is None or len(sockets) != 1:
            raise errdefs.InvalidArgument("an attach request carries one descriptor")
        container = self._service.container
        if container is None:
            raise errdefs.NotFound("container not created")
        attachments = container.find(request.attach.exec_id).attachments
        if attachments is None:
            raise errdefs.FailedPrecondition("the streams of this process are not kept by the shim")
        attachments.add(request.attach, sockets[0])

    def _terminate(self) -> None:
        if self._service.container is None:
            self._over.set()
        else:
            log.info("SIGTERM ignored: there is a task")

    async def run(self, listener: socket.socket) -> None:
        """Serve until Shutdown, or SIGTERM without a task."""
        stop_signals = on_signals({signal.SIGTERM: self._terminate, signal.SIGCHLD: self._reaper.reap})
        self._reaper.reap()
        server = ttrpc.Server([self._service, self._facts], aliases={V3: V2}, other=self._grpc_protocol)
        await server.serve(listener)
        publisher = None
        if self._options.events_address:
            publisher = asyncio.ensure_future(
                publish(self._facts, address=self._options.events_address, namespace=self._options.namespace)
            )
        await self._over.wait()
        await asyncio.sleep(0)  # the reply to Shutdown is queued behind the event
        await server.close()
        if self._grpc is not None:
            await self._grpc.close()
        if publisher is not None:
            publisher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await publisher
        self._ports.close()
        for attach_socket in self._attach_sockets.values():
            attach_socket.close()
        remove_file(self._options.socket_path)
        stop_signals()


@dataclass(frozen=True)
class Prepared:
    """What a process has that is going to be a shim: its loop, and what takes it out of its cgroup again."""

    loop: asyncio.AbstractEventLoop
    leave: Callable[[], None]


def prepare(cgroups: Sequence[str]) -> Prepared:
    """Do what needs not be known of the container, in a child that `forks` has cleaned.

    cgroups: the delegated ones below which the process makes one of its own.
    """
    os.umask(0o022)
    ignore_signals()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    return Prepared(asyncio.SelectorEventLoop(), cgroup.join_own(cgroups, str(os.getpid())))


def run_shim(
    prepared: Prepared, options: ShimOptions, listener: socket.socket, ready: int, journal: Journal
) -> int:
    """Be a shim; returns its exit code.

    journal: the handler of its log records. ready: a pipe that gets this process's number and is closed once
    `shim.pid` is written.
    """
    words = f"shim-svc -namespace {options.namespace} -id {options.id}"
    set_title(f"{words} -address {options.containerd}" if options.containerd else words, "shim-svc")
    os.chdir(options.bundle)
    journal.identifier = f"shim[{options.id[:12]}]"
    if options.debug:
        logging.getLogger().setLevel(logging.DEBUG)
    write_file(f"{options.bundle}/shim.pid", str(os.getpid()))
    with contextlib.suppress(BrokenPipeError):  # the nursery was killed; containerd finds the socket
        os.write(ready, str(os.getpid()).encode())
    os.close(ready)
    prepared.loop.run_until_complete(_serve(options, listener))
    _wait_for_children()  # the cgroup cannot be removed while one is in it
    prepared.leave()
    return 0


def _wait_for_children() -> None:
    deadline = time.monotonic() + _CHILDREN_WAIT
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0] or time.monotonic() < deadline:
            time.sleep(0.001)


async def _serve(options: ShimOptions, listener: socket.socket) -> None:
    await Shim(options).run(listener)

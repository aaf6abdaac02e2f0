"""The one process that enters network namespaces for the daemon: single-threaded, forked before any thread.

The daemon has threads and may neither fork nor setns(2). It asks this process over a SEQPACKET pair: one
packet of JSON is one request, one packet one answer, descriptors by SCM_RIGHTS. The helper makes a sandbox
(a namespace pinned below `<exec_root>/netns`, a veth pair with its far end inside), takes it away, and
returns sockets that were opened inside, over which the daemon then configures addresses by itself.

The helper ends when the daemon's end of the pair closes. While it lives it holds `<exec_root>/netns.lock`,
so that the helper of a killed daemon has finished before the next one looks what is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import errdefs
from linux import netns
from linux.crashpoints import crashpoint
from linux.fds import close_all_but, receive_fds, send_fds
from linux.syscalls import CLONE_NEWNET, prctl, setns

from dockerd_api.network import netlink

PEER = "eth0"
_PACKET = 1 << 16
_PR_SET_NAME = 15


@dataclass(frozen=True)
class SandboxSpec:
    """What a sandbox is made of. `bridge` 0 means loopback only; `link` is the veth's name on the host."""

    path: str
    bridge: int = 0
    link: str = ""
    mac: str = ""
    mtu: int = 1500
    hairpin: bool = False
    isolated: bool = False


class Served:
    """The helper's side: one request after the other, nothing kept between them but the lock."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._host = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._netlink = netlink.Netlink.open()
        self._lock = -1

    def run(self) -> None:
        """Answer requests until the other end closes."""
        while True:
            data, _ = receive_fds(self._sock, _PACKET, 1)
            if not data:
                return
            request = json.loads(data)
            sent: list[socket.socket] = []
            try:
                answer, sent = self._answer(request)
            except OSError as error:
                answer = {"error": error.strerror or str(error), "errno": error.errno or 0}
            except TimeoutError as error:
                answer = {"error": str(error), "errno": 0}
            answer["id"] = request["id"]
            with contextlib.suppress(BrokenPipeError):
                send_fds(self._sock, json.dumps(answer).encode(), [s.fileno() for s in sent])
            for s in sent:
                s.close()

    def _answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[socket.socket]]:
        match request["op"]:
            case "make":
                return self._make(SandboxSpec(**request["spec"]))
            case "destroy":
                for path in request["paths"]:
                    netns.delete(path)
                return {}, []
            case "lock":
                self._take_lock(request["path"], request["timeout"])
                return {}, []
            case other:
                return {"error": f"unknown request {other!r}", "errno": 0}, []

    def _take_lock(self, path: str, timeout: float) -> None:
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(fd)
                    raise TimeoutError(f"{path} is held by another helper") from None
                time.sleep(0.02)
            else:
                break
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = fd

    def _make(self, spec: SandboxSpec) -> tuple[dict[str, Any], list[socket.socket]]:
        with contextlib.ExitStack() as undo:
            netns.create(spec.path)
            undo.callback(netns.delete, spec.path)
            crashpoint("network.netns.made")
            fd = os.open(spec.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if spec.bridge:
                    self._netlink.transact(
                        netlink.new_veth(
                            spec.link,
                            master=spec.bridge,
                            mtu=spec.mtu,
                            peer=PEER,
                            peer_netns=fd,
                            peer_mac=spec.mac,
                        )
                    )
                    crashpoint("network.veth.made")
                    if spec.hairpin or spec.isolated:
                        port = socket.if_nametoindex(spec.link)
                        self._netlink.transact(
                            netlink.set_port(port, hairpin=spec.hairpin, isolated=spec.isolated)
                        )
                setns(fd, CLONE_NEWNET)
                try:
                    made = self._inside(spec)
                finally:
                    setns(self._host, CLONE_NEWNET)
            finally:
                os.close(fd)
            undo.pop_all()
        return made

    def _inside(self, spec: SandboxSpec) -> tuple[dict[str, Any], list[socket.socket]]:
        inner = netlink.Netlink.open()
        try:
            if not spec.bridge:
                inner.transact(netlink.set_link(1, up=True))
                inner.close()
                return {"index": 0}, []
            index = socket.if_nametoindex(PEER)
            # No IPv6 address of any kind on a network without IPv6, as the real engine has it.
            with contextlib.suppress(FileNotFoundError):
                Path(f"/proc/sys/net/ipv6/conf/{PEER}/disable_ipv6").write_text("1")
            # The kernel announces a changed address to the neighbours (ip-sysctl, arp_notify).
            Path(f"/proc/sys/net/ipv4/conf/{PEER}/arp_notify").write_text("1")
            inner.transact(netlink.set_link(1, up=True), netlink.set_link(index, up=True))
        except BaseException:
            inner.close()
            raise
        return {"index": index}, [inner.sock]


def serve(sock: socket.socket) -> None:
    """The helper's whole life. Signals meant for the daemon's group do not end it: the daemon's end does."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    prctl(_PR_SET_NAME, _name_address())
    with contextlib.suppress(ConnectionResetError):
        Served(sock).run()


def _name_address() -> int:
    import ctypes

    global _name
    _name = ctypes.create_string_buffer(b"netns-helper")
    return ctypes.addressof(_name)


_name: Any = None


class NetnsHelper:
    """The daemon's side. Calls may run at the same time; each has a deadline.

    A helper that died is replaced by a new process (exec, never a fork of the threaded daemon) at the next
    call; a call under way then is tried once more.
    """

    def __init__(self, sock: socket.socket, pid: int, reap: Callable[[], object]) -> None:
        self._sock = sock
        self._sock.setblocking(False)
        self._pid = pid
        self._reap = reap
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: dict[int, asyncio.Future[tuple[dict[str, Any], list[int]]]] = {}
        self._last = 0
        self._dead = False
        self._closed = False
        self._lock: tuple[str, float] | None = None
        self._reviving: asyncio.Lock | None = None

    @classmethod
    def fork(cls) -> NetnsHelper:
        """Fork the helper, before anything else: the process may have no thread but its main one."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid:
            theirs.close()
            return cls(ours, pid, lambda: _reap(pid))
        status = 1
        try:
            ours.close()
            # The service manager has passed clients' connections: a copy here would keep them from ending.
            close_all_but((0, 1, 2, theirs.fileno()))
            serve(theirs)
            status = 0
        finally:
            os._exit(status)

    @classmethod
    def spawn(cls) -> NetnsHelper:
        """Start the helper as a program of its own: for processes that have threads, and for commands."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-m", "dockerd_api.network.netns_helper", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        return cls(ours, child.pid, child.wait)

    async def lock(self, path: Path, timeout: float = 10.0) -> None:
        """Hold the lock file until the helper ends; Unavailable when another's helper keeps it."""
        self._lock = (str(path), timeout)
        await self._call({"op": "lock", "path": str(path), "timeout": timeout}, timeout + 5)

    async def make(self, spec: SandboxSpec) -> tuple[int, socket.socket | None]:
        """Make a sandbox. Returns the index of its inner interface (0: none) and, with a bridge, an
        rtnetlink socket that was opened inside."""
        answer, fds = await self._call({"op": "make", "spec": spec.__dict__}, 10)
        return int(answer["index"]), socket.socket(fileno=fds[0]) if fds else None

    async def destroy(self, paths: list[str]) -> None:
        """Let go of sandboxes (idempotent); the kernel takes their links away in its own time."""
        await self._call({"op": "destroy", "paths": paths}, 10)

    async def close(self) -> None:
        """End the helper and reap it."""
        if self._closed:
            return
        self._closed = True
        self._forget(errdefs.Unavailable("the namespace helper is closed"))
        await asyncio.get_running_loop().run_in_executor(None, self._reap)

    async def _call(self, request: dict[str, Any], timeout: float) -> tuple[dict[str, Any], list[int]]:
        for attempt in (1, 2):
            try:
                answer, fds = await self._exchange(request, timeout)
            except errdefs.Unavailable:
                if attempt == 2 or self._closed:
                    raise
                if request["op"] == "make":
                    netns.delete(request["spec"]["path"])  # what the dead helper may have left
                continue
            if "error" in answer:
                raise errdefs.Internal(f"network namespace: {answer['error']}")
            return answer, fds
        raise AssertionError("unreachable")

    async def _exchange(self, request: dict[str, Any], timeout: float) -> tuple[dict[str, Any], list[int]]:
        if self._closed:
            raise errdefs.Unavailable("the namespace helper is closed")
        await self._ready()
        loop = asyncio.get_running_loop()
        self._last += 1
        number = self._last
        future: asyncio.Future[tuple[dict[str, Any], list[int]]] = loop.create_future()
        self._waiting[number] = future
        packet = json.dumps({**request, "id": number}).encode()
        try:
            async with asyncio.timeout(timeout):
                while True:
                    try:
                        self._sock.send(packet)
                        break
                    except BlockingIOError:
                        await asyncio.sleep(0.001)  # the helper has a full queue before it
                    except OSError:
                        self._forget(errdefs.Unavailable("the namespace helper died"))
                        break
                return await future
        except TimeoutError:
            raise errdefs.DeadlineExceeded(
                f"the namespace helper did not answer within {timeout} s"
            ) from None
        finally:
            self._waiting.pop(number, None)

    async def _ready(self) -> None:
        """Watch the socket on the running loop; replace a helper that died."""
        loop = asyncio.get_running_loop()
        if self._reviving is None:
            self._reviving = asyncio.Lock()
        if self._dead:
            async with self._reviving:
                if self._dead:
                    await loop.run_in_executor(None, self._reap)
                    fresh = await loop.run_in_executor(None, type(self).spawn)
                    self._sock, self._pid, self._reap = fresh._sock, fresh._pid, fresh._reap
                    self._dead, self._loop = False, None
                    if self._lock:
                        path, timeout = self._lock
                        self._watch(loop)
                        await self._exchange({"op": "lock", "path": path, "timeout": timeout}, timeout + 5)
        self._watch(loop)

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is None:
            self._loop = loop
            loop.add_reader(self._sock.fileno(), self._readable)

    def _readable(self) -> None:
        try:
            data, fds = receive_fds(self._sock, _PACKET, 4)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._forget(errdefs.Unavailable("the namespace helper died"))
            return
        answer = json.loads(data)
        future = self._waiting.get(answer["id"])
        if future is None or future.done():  # its caller gave up
            for fd in fds:
                os.close(fd)
            return
        future.set_result((answer, fds))

    def _forget(self, error: errdefs.BuoyError) -> None:
        if not self._dead:
            self._dead = True
            if self._loop is not None:
                self._loop.remove_reader(self._sock.fileno())
            self._sock.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)


def _reap(pid: int) -> None:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))

"""Published ports of the container, as far as no kernel rule takes them: accept and proxy.

The listeners were bound by dockerd-api; holding them reserves the ports. TCP connections and UDP flows are
connected to the container's address from the host's network namespace. The container sees the host as the
peer.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Sequence

import errdefs
from pb.buoy.attach.v1 import PortMapping

log = logging.getLogger(__name__)

_CHUNK = 64 * 1024
_DATAGRAM = 65536
_UDP_IDLE = 90.0  # seconds without traffic after which a UDP flow is forgotten
_MOST_FLOWS = 1024
_CONNECT_TIMEOUT = 30.0


class _Pump:
    """Copies one direction of a connection and passes its end on."""

    def __init__(self, source: socket.socket, target: socket.socket, done: asyncio.Event) -> None:
        self._source = source
        self._target = target
        self._done = done
        self._pending = b""
        self.over = False
        asyncio.get_running_loop().add_reader(source, self._readable)

    def _readable(self) -> None:
        try:
            data = self._source.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._done.set()
            return
        loop = asyncio.get_running_loop()
        if not data:
            loop.remove_reader(self._source)
            self.over = True
            with contextlib.suppress(OSError):
                self._target.shutdown(socket.SHUT_WR)
            self._done.set()
            return
        self._pending = data
        self._writable()
        if self._pending:
            loop.remove_reader(self._source)
            loop.add_writer(self._target, self._writable)

    def _writable(self) -> None:
        try:
            count = self._target.send(self._pending, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return
        except OSError:
            self.over = True
            self._pending = b""
            self._done.set()
            return
        self._pending = self._pending[count:]
        loop = asyncio.get_running_loop()
        if not self._pending and loop.remove_writer(self._target):
            loop.add_reader(self._source, self._readable)


class _TcpPort:
    def __init__(self, listener: socket.socket, address: tuple[str, int]) -> None:
        self._listener = listener
        self._address = address
        self._connections: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        self._family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listener, self._accept)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                # The connection stays in the queue; look again in a while instead of at once.
                self._loop.remove_reader(self._listener)
                self._loop.call_later(0.5, self._listen_again)
            return
        client.setblocking(False)
        task = self._loop.create_task(self._serve(client))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    def _listen_again(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)

    async def _serve(self, client: socket.socket) -> None:
        server = socket.socket(self._family, socket.SOCK_STREAM)
        server.setblocking(False)
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                await self._loop.sock_connect(server, self._address)
            # Either end of input may come first; the connection is over when both have come, or one has
            # failed.
            changed = asyncio.Event()
            pumps = (_Pump(client, server, changed), _Pump(server, client, changed))
            while True:
                await changed.wait()
                changed.clear()
                if all(pump.over for pump in pumps) or _failed(client) or _failed(server):
                    return
        except (OSError, TimeoutError):
            return  # the client sees its connection end, as with nobody listening
        finally:
            for sock in (client, server):
                self._loop.remove_reader(sock)
                self._loop.remove_writer(sock)
                sock.close()

    def close(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for task in self._connections:
            task.cancel()


def _failed(sock: socket.socket) -> bool:
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


class _UdpPort:
    """One socket towards the container per client address, so that answers find their way back."""

    def __init__(self, listener: socket.socket, address: tuple[str, int]) -> None:
        self._listener = listener
        self._address = address
        self._family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._flows: dict[object, tuple[socket.socket, asyncio.TimerHandle]] = {}
        listener.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listener, self._from_client)

    def _from_client(self) -> None:
        try:
            data, client = self._listener.recvfrom(_DATAGRAM)
        except OSError:
            return
        flow = self._flow(client)
        if flow is not None:
            try:
                flow.send(data)
            except OSError:
                return  # full, or refused by the container: datagrams may be lost

    def _flow(self, client: object) -> socket.socket | None:
        found = self._flows.get(client)
        if found is not None:
            found[1].cancel()
            flow = found[0]
        else:
            if len(self._flows) >= _MOST_FLOWS:
                self._forget(next(iter(self._flows)))
            flow = socket.socket(self._family, socket.SOCK_DGRAM)
            flow.setblocking(False)
            try:
                flow.connect(self._address)
            except OSError:
                flow.close()
                return None
            self._loop.add_reader(flow, self._from_container, client, flow)
        self._flows[client] = (flow, self._loop.call_later(_UDP_IDLE, self._forget, client))
        return flow

    def _from_container(self, client: object, flow: socket.socket) -> None:
        try:
            data = flow.recv(_DATAGRAM)
            self._listener.sendto(data, client)  # type: ignore[call-overload]
        except OSError:
            return
        self._flow(client)

    def _forget(self, client: object) -> None:
        flow, timer = self._flows.pop(client)
        timer.cancel()
        self._loop.remove_reader(flow)
        flow.close()

    def close(self) -> None:
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for client in list(self._flows):
            self._forget(client)


class Ports:
    """The published ports that this shim holds, through all tasks of its container."""

    def __init__(self) -> None:
        self._open: list[_TcpPort | _UdpPort] = []

    def replace(self, mappings: Sequence[PortMapping], sockets: Sequence[socket.socket]) -> None:
        """Serve these mappings from now on, and let go of the ones before.

        sockets: one per mapping, in order: listening for tcp, bound for udp. InvalidArgument when they do not
        fit, NotImplementedHere for other protocols; then nothing has changed.
        """
        if len(mappings) != len(sockets):
            raise errdefs.InvalidArgument(f"{len(mappings)} port mappings with {len(sockets)} sockets")
        for mapping, sock in zip(mappings, sockets, strict=True):
            _check(mapping, sock)
        self.close()
        for mapping, sock in zip(mappings, sockets, strict=True):
            address = (mapping.container_ip, mapping.container_port)
            self._open.append(
                _TcpPort(sock, address) if mapping.protocol == "tcp" else _UdpPort(sock, address)
            )

    def close(self) -> None:
        """Let go of all ports; connections under way end."""
        for port in self._open:
            port.close()
        self._open = []


def _check(mapping: PortMapping, sock: socket.socket) -> None:
    if mapping.protocol not in ("tcp", "udp"):
        raise errdefs.NotImplementedHere(
            f"port {mapping.host_port}/{mapping.protocol}: only tcp and udp can be proxied"
        )
    wanted = socket.SOCK_STREAM if mapping.protocol == "tcp" else socket.SOCK_DGRAM
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) != wanted:
        raise errdefs.InvalidArgument(
            f"port {mapping.host_port}/{mapping.protocol}: the socket is no such one"
        )
    family = socket.AF_INET6 if ":" in mapping.container_ip else socket.AF_INET
    try:
        socket.inet_pton(family, mapping.container_ip)
    except OSError:
        raise errdefs.InvalidArgument(f"container address {mapping.container_ip!r}") from None
    if not 0 < mapping.container_port < 65536:
        raise errdefs.InvalidArgument(f"container port {mapping.container_port}")

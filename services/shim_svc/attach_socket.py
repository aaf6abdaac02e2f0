"""The attach socket: where dockerd-api hands over clients and listeners. One packet, one request, one
reply.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Callable

import errdefs
from linux.fds import receive_fds
from pb.buoy.attach.v1 import Reply, Request

from shim_svc.bundle import remove_file

log = logging.getLogger(__name__)

_PACKET = 1 << 20  # bytes
_MOST_FDS = 253  # SCM_MAX_FD of the kernel
_PEERCRED = struct.Struct("3i")

Handler = Callable[[Request, list[socket.socket]], None]


class AttachSocket:
    """Listens on a SEQPACKET socket. The handler owns the sockets it is given, also when it raises
    errdefs.
    """

    def __init__(self, path: str, handler: Handler) -> None:
        self.path = path
        self._handler = handler
        self._connections: set[socket.socket] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        remove_file(path)
        os.fchmod(self._listener.fileno(), 0o600)
        self._listener.bind(path)
        self._listener.listen(64)
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
        if _PEERCRED.unpack(credentials)[1] not in (0, os.geteuid()):
            connection.close()
            return
        connection.setblocking(False)
        self._connections.add(connection)
        asyncio.get_running_loop().add_reader(connection.fileno(), self._readable, connection)

    def _readable(self, connection: socket.socket) -> None:
        try:
            data, fds = receive_fds(connection, _PACKET, _MOST_FDS)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._drop(connection)
            return
        reply = self._answer(data, [_as_socket(fd) for fd in fds])
        try:
            # An empty packet would read as the end of the connection: spell the empty error out.
            connection.send(bytes(reply) or b"\x0a\x00")
        except OSError:
            self._drop(connection)

    def _answer(self, data: bytes, sockets: list[socket.socket | None]) -> Reply:
        given = [sock for sock in sockets if sock is not None]
        try:
            if len(given) != len(sockets):
                raise errdefs.InvalidArgument("a descriptor is no socket")
            request = Request.parse(data)
            self._handler(request, given)
        except errdefs.BuoyError as error:
            for sock in given:
                sock.close()
            return Reply(error=error.message, kind=type(error).__name__)
        except Exception as error:
            log.exception("attach request failed")
            for sock in given:
                sock.close()
            return Reply(error=str(error) or "failed", kind="Internal")
        return Reply()

    def _drop(self, connection: socket.socket) -> None:
        self._connections.discard(connection)
        asyncio.get_running_loop().remove_reader(connection.fileno())
        connection.close()

    def close(self) -> None:
        """Stop listening and remove the socket."""
        asyncio.get_running_loop().remove_reader(self._listener.fileno())
        self._listener.close()
        remove_file(self.path)
        for connection in list(self._connections):
            self._drop(connection)


def _as_socket(fd: int) -> socket.socket | None:
    try:
        return socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        return None

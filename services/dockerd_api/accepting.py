"""Accepts connections. Each is the service manager's too before anything else is done with it.

asyncio's and uvloop's own servers accept all that wait, and tell of each in a later turn of the loop: a
process that is killed between the two loses connections whose clients have done nothing wrong. Here nothing
lies between the two system calls.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING

from dockerd_api.hijack import connect
from dockerd_api.streams.connections import Connections

if TYPE_CHECKING:
    from uvicorn import Server

log = logging.getLogger(__name__)

#: Connections accepted in one turn of the loop.
_AT_ONCE = 64
#: Seconds without accepting after the process has run out of descriptors or memory.
_PAUSE = 1.0


class Acceptor:
    """Accepts at `listener`, which it owns, for a `server` that has started; has what uvicorn asks of the
    servers that it ends.
    """

    def __init__(self, server: Server, listener: socket.socket, connections: Connections) -> None:
        self._server = server
        self._listener = listener
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._connecting: set[asyncio.Task[object]] = set()
        self._resume: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._loop.add_reader(listener.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more; what waits in the queue is the next process's."""
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._listener.fileno())
        self._listener.close()

    async def wait_closed(self) -> None:
        """Wait until each connection that was accepted has its protocol."""
        await asyncio.gather(*self._connecting, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("no connection is accepted for a second: %s", error)
                self._loop.remove_reader(self._listener.fileno())
                self._resume = self._loop.call_later(
                    _PAUSE, self._loop.add_reader, self._listener.fileno(), self._accept
                )
                return
            slot = self._connections.accepted(sock.fileno())
            task = self._loop.create_task(connect(self._server, sock, slot))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

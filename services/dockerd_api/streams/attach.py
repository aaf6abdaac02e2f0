"""Handing a client's connection to the shim, which speaks the stream from then on (docs/contracts.md, Sockets
of a shim).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

import errdefs
from errdefs.grpc import error_from
from linux.crashpoints import crashpoint
from linux.fds import send_fds
from pb.buoy.attach.v1 import Attach, Reply, Request

_LONGEST_REPLY = 64 * 1024
_UNKNOWN = 2  # gRPC's UNKNOWN: the kind's name decides


@dataclass
class PendingAttach:
    """A client that is to get a process's stream. `attach_id` stays the same over restarts of this process.

    The fields are those of buoy.attach.v1.Attach. `handed_over` is called once the shim has the connection,
    `abandon` ends it because there will be no process; both leave nothing stored.
    """

    attach_id: str
    sock: socket.socket
    exec_id: str
    stdin: bool
    stdout: bool
    stderr: bool
    logs: bool
    stream: bool
    multiplexed: bool
    detach_keys: str
    leading_input: bytes
    stdin_once: bool
    handed_over: Callable[[], None] = field(default=lambda: None, repr=False)
    abandon: Callable[[], None] = field(default=lambda: None, repr=False)

    def request(self) -> Request:
        return Request(
            attach=Attach(
                attach_id=self.attach_id,
                exec_id=self.exec_id,
                stdin=self.stdin,
                stdout=self.stdout,
                stderr=self.stderr,
                logs=self.logs,
                stream=self.stream,
                multiplexed=self.multiplexed,
                detach_keys=self.detach_keys,
                leading_input=self.leading_input,
                stdin_once=self.stdin_once,
            )
        )


async def hand_over(attach_socket: str, attach: PendingAttach, *, timeout: float = 5.0) -> None:
    """Give the client to the shim that listens at `attach_socket`; returns once the shim has acknowledged.

    Calling again after a crash is right: the shim knows the attach_id. Raises Unavailable when no shim
    answers there, DeadlineExceeded after `timeout` seconds, the shim's own error else; the connection is then
    still ours.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(
        socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    ) as sock:
        try:
            async with asyncio.timeout(timeout):
                # At once or never for a local socket; a full queue of connections says EAGAIN.
                while True:
                    try:
                        sock.connect(attach_socket)
                        break
                    except BlockingIOError:
                        await asyncio.sleep(0.005)
                send_fds(sock, bytes(attach.request()), [attach.sock.fileno()])
                crashpoint("streams.handed")
                data = await loop.sock_recv(sock, _LONGEST_REPLY)
        except TimeoutError:
            raise errdefs.DeadlineExceeded(f"the shim did not take the client within {timeout:g} s") from None
        except OSError as error:
            raise errdefs.Unavailable(
                f"the shim cannot be reached at {attach_socket}: {error.strerror}"
            ) from None
    if not data:
        raise errdefs.Unavailable("the shim closed its attach socket")
    reply = Reply.parse(data)
    if reply.error:
        raise error_from(_UNKNOWN, reply.error, kind=reply.kind)
    crashpoint("streams.acknowledged")
    attach.handed_over()

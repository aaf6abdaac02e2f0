"""The receiving end of sd_notify(3): one datagram socket per service, one message per datagram."""

from __future__ import annotations

import array
import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

#: Kernel's SCM_MAX_FD: descriptors in one message (unix(7)).
_MOST_FDS = 253
#: systemd's NOTIFY_BUFFER_MAX is a page; longer messages are not understood by it either.
_LONGEST = 4096
_CREDENTIALS = struct.Struct("iII")
#: Bytes of queued messages; the queue's length is net.unix.max_dgram_qlen, and senders wait where it is full.
_QUEUE_BYTES = 8 << 20


@dataclass
class Message:
    """What one datagram said. The sender's pid and uid come from the kernel; `fds` are ours to close."""

    pid: int
    uid: int
    fields: dict[str, str]
    fds: list[int] = field(default_factory=list)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds.clear()


def listen(path: Path) -> socket.socket:
    """Bind the notification socket of one service.

    A file of that name left by a dead launcher is replaced.
    """
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _QUEUE_BYTES)
    sock.bind(str(path))
    path.chmod(0o600)
    return sock


def receive(sock: socket.socket) -> Iterator[Message]:
    """Every message that has arrived, in order. Messages without credentials or cut short are dropped."""
    room = socket.CMSG_SPACE(_CREDENTIALS.size) + socket.CMSG_SPACE(_MOST_FDS * 4)
    while True:
        try:
            data, ancillary, flags, _ = sock.recvmsg(_LONGEST, room, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        message = Message(pid=0, uid=-1, fields=_fields(data))
        for level, kind, content in ancillary:
            if level != socket.SOL_SOCKET:
                continue
            if kind == socket.SCM_CREDENTIALS and len(content) >= _CREDENTIALS.size:
                message.pid, message.uid, _ = _CREDENTIALS.unpack(content[: _CREDENTIALS.size])
            elif kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                message.fds.extend(fds)
        if message.pid == 0 or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            message.close()
            continue
        yield message


def _fields(data: bytes) -> dict[str, str]:
    fields = {}
    for line in data.decode(errors="replace").split("\n"):
        key, equals, value = line.partition("=")
        if equals:
            fields[key] = value
    return fields

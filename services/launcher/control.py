"""The control socket: one JSON object a line to the supervisor, one back."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from pathlib import Path
from typing import Any

from launcher.layout import Refused

_LONGEST_REQUEST = 4096
_CREDENTIALS = struct.Struct("iII")


def serve(path: Path) -> socket.socket:
    """Listen on the control socket; a file of that name is a dead launcher's."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    sock.bind(str(path))
    path.chmod(0o600)
    sock.listen(16)
    return sock


class Connection:
    """The supervisor's side of one client. `until` says what its answer waits for."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.gone = False
        self.until = ""
        #: The services waited for, with the number of starts that each must have more than.
        self.services: dict[str, int] = {}
        self._read = b""
        _, uid, _ = _CREDENTIALS.unpack(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        self._allowed = uid in (0, os.geteuid())

    def read(self) -> dict[str, object] | None:
        """The request, once it is whole. A client that is gone or talks nonsense sets `gone`."""
        try:
            data = self.sock.recv(_LONGEST_REQUEST)
        except BlockingIOError:
            return None
        except OSError:
            data = b""
        self._read += data
        if not data or not self._allowed or len(self._read) > _LONGEST_REQUEST:
            self.gone = True
            return None
        if b"\n" not in self._read:
            return None
        line, _, self._read = self._read.partition(b"\n")
        try:
            request = json.loads(line)
        except ValueError:
            request = None
        if not isinstance(request, dict):
            self.answer({"error": "a JSON object is needed"})
            return None
        return request

    def answer(self, reply: dict[str, object]) -> None:
        """Send the reply, which fits into any socket's buffer, and be done with the client."""
        with contextlib.suppress(OSError):
            self.sock.send(json.dumps(reply).encode() + b"\n")
        self.gone = True


def ask(path: Path, timeout: float, **request: object) -> dict[str, Any]:
    """The client's side: one request, its reply. Refuses when none comes within `timeout` seconds."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(str(path))
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as lines:
                line = lines.readline()
        except TimeoutError:
            raise Refused(f"{request['op']}: not done within {timeout:g} s") from None
        except (FileNotFoundError, ConnectionError):
            raise Refused("no engine runs there: its launcher does not answer") from None
    if not line:
        raise Refused(f"{request['op']}: the launcher ended without an answer")
    reply = json.loads(line)
    assert isinstance(reply, dict)
    return reply

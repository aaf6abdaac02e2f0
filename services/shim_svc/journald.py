"""The log driver journald: each line is one datagram of its native protocol.

Source: systemd's JOURNAL_NATIVE_PROTOCOL; the fields are those that Docker's driver writes.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Mapping

from container_log.members import LAST_PART, PART, RUN_SIZE, Piece, queued_runs
from container_log.times import timestamp

from shim_svc.log_file import LogFile

SOCKET = "/run/systemd/journal/socket"
_PRIORITY = {"stdout": b"6", "stderr": b"3"}
_LENGTH = struct.Struct("<Q")


class JournaldFile(LogFile):
    """Stands for a log file: runs from a queue go to journald. Nothing is opened before the first one.

    fields: of every entry. The successor of a writer that dies amid a run sends it again.
    """

    def __init__(self, fields: Mapping[str, str], path: str = SOCKET) -> None:
        self.path = path
        self.max_size = 0
        self.max_file = 1
        self.size = 0
        self.fd = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)  # what is kept open for a writer
        self._socket: socket.socket | None = None
        self._fields = b"".join(_field(name, value.encode()) for name, value in fields.items())
        self._epoch = os.urandom(32).hex().encode()
        self._ordinal = 0
        self._parts: dict[str, tuple[bytes, int]] = {}  # of a line that has begun: its id, its pieces so far
        self._sent = 0  # lines of the present run that journald has

    def resume(self, offset: int | None) -> tuple[int, bool]:
        """What a dead writer had sent is not known."""
        self.size = offset or 0
        return 0, False

    @property
    def full(self) -> bool:
        """Never."""
        return False

    def append(self, data: bytes, latest: int = 0) -> int:
        """Send the first run; returns its bytes. OSError when journald does not take it all."""
        run, text = queued_runs(data)[0]
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        lines = text[:-1].split(b"\n") if text.endswith(b"\n") else [text]
        common = self._common(run)
        while self._sent < len(lines):
            entry = common + b"CONTAINER_LOG_ORDINAL=%d\n" % (self._ordinal + 1)
            self._socket.sendto(entry + _field("MESSAGE", lines[self._sent]), self.path)
            self._ordinal += 1
            self._sent += 1
        self._sent = 0
        if run.part == PART:
            name, count = self._parts.get(run.stream, (b"", 0))
            self._parts[run.stream] = name, count + 1
        else:
            self._parts.pop(run.stream, None)
        count = len(text) + RUN_SIZE
        self.size += count
        return count

    def close(self) -> None:
        """Close the socket too."""
        super().close()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _common(self, run: Piece) -> bytes:
        """The fields of every line of a run."""
        fields = self._fields + b"PRIORITY=%s\nSYSLOG_TIMESTAMP=%s\nCONTAINER_LOG_EPOCH=%s\n" % (
            _PRIORITY[run.stream],
            timestamp(run.time),
            self._epoch,
        )
        if run.part not in (PART, LAST_PART):
            return fields
        name, count = self._parts.setdefault(run.stream, (os.urandom(32).hex().encode(), 0))
        return fields + (
            b"CONTAINER_PARTIAL_MESSAGE=true\nCONTAINER_PARTIAL_ID=%s\nCONTAINER_PARTIAL_ORDINAL=%d\n"
            b"CONTAINER_PARTIAL_LAST=%s\n"
        ) % (name, count + 1, b"true" if run.part == LAST_PART else b"false")


def _field(name: str, value: bytes) -> bytes:
    """One field; with its length when it holds a newline."""
    if b"\n" in value:
        return name.encode() + b"\n" + _LENGTH.pack(len(value)) + value + b"\n"
    return name.encode() + b"=" + value + b"\n"

"""A reply in memory that two processes can send exactly once between them.

A memory file (memfd_create(2)) holds the bytes of the reply, and sendfile(2) with no offset given sends from
the file's own offset, which the kernel moves by exactly what went into the socket. The offset belongs to the
open file, which the service manager keeps: a process that is killed between two sends, or in one, leaves it
right.

Layout: one page with the head record (what is valid, and how far its source was read), the stream's
description, and from `_BODY` on the bytes. The head record is one pwrite(2) within a page, which a kill does
not split. Sent pages are given back.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import socket
import struct
from collections.abc import Mapping
from typing import Any

_PAGE = 4096
_BODY = 16 * _PAGE
#: length of the valid bytes, finished, length of the position.
_HEAD = struct.Struct("<QBH")
_LONGEST_POSITION = _PAGE - _HEAD.size
_LONGEST_DESCRIPTION = _BODY - _PAGE - 4
#: Sent bytes after which their memory is given back.
_PUNCH = 1 << 20
_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, fallocate(2)

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate64
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class ReplyFile:
    """One reply's memory file. `fd` is owned; `position` says what of the source the valid bytes cover."""

    def __init__(
        self, fd: int, description: dict[str, Any], length: int, finished: bool, position: str
    ) -> None:
        self.fd = fd
        self.description = description
        self.length = length
        self.finished = finished
        self.position = position
        self._punched = _BODY

    @classmethod
    def create(cls, description: Mapping[str, Any]) -> ReplyFile:
        """An empty reply. `description` is what another process needs to go on producing it, as JSON."""
        text = json.dumps(description, separators=(",", ":")).encode()
        if len(text) > _LONGEST_DESCRIPTION:
            raise ValueError(f"the description of a stream has {len(text)} bytes")
        fd = os.memfd_create("reply", os.MFD_CLOEXEC)
        try:
            os.pwrite(fd, struct.pack("<I", len(text)) + text, _PAGE)
            made = cls(fd, dict(description), 0, False, "")
            made._commit(0, False, "")
            os.lseek(fd, _BODY, os.SEEK_SET)
        except BaseException:
            os.close(fd)
            raise
        return made

    @classmethod
    def open(cls, fd: int) -> ReplyFile:
        """The reply that another process made; takes `fd`. ValueError when it is none."""
        try:
            head = os.pread(fd, _PAGE, 0)
            length, finished, position_length = _HEAD.unpack_from(head)
            position = head[_HEAD.size : _HEAD.size + position_length].decode()
            size = int.from_bytes(os.pread(fd, 4, _PAGE), "little")
            description = json.loads(os.pread(fd, size, _PAGE + 4))
        except (struct.error, UnicodeDecodeError) as error:
            raise ValueError(f"not a reply: {error}") from None
        if not isinstance(description, dict):
            raise ValueError("not a reply: it has no description")
        return cls(fd, description, length, bool(finished), position)

    @property
    def unsent(self) -> int:
        """Bytes that are valid and not in the socket yet."""
        return _BODY + self.length - os.lseek(self.fd, 0, os.SEEK_CUR)

    def append(self, data: bytes, position: str, *, finished: bool = False) -> None:
        """Add `data`; with it, at once, `position` and `finished` become true."""
        written = 0
        while written < len(data):
            written += os.pwrite(self.fd, memoryview(data)[written:], _BODY + self.length + written)
        self._commit(self.length + len(data), finished, position)

    def send(self, sock: socket.socket) -> bool:
        """Send what the socket takes; true when nothing is left. OSErrors of the socket come through."""
        while left := self.unsent:
            try:
                if os.sendfile(sock.fileno(), self.fd, None, min(left, 1 << 20)) == 0:
                    raise OSError(errno.EIO, "the reply's file is shorter than its length")
            except BlockingIOError:
                return False
            self._give_back()
        return True

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)
        self.fd = -1

    def _commit(self, length: int, finished: bool, position: str) -> None:
        place = position.encode()
        if len(place) > _LONGEST_POSITION:
            raise ValueError(f"the position in a stream's source has {len(place)} bytes")
        os.pwrite(self.fd, _HEAD.pack(length, finished, len(place)) + place, 0)
        self.length, self.finished, self.position = length, finished, position

    def _give_back(self) -> None:
        sent = os.lseek(self.fd, 0, os.SEEK_CUR) // _PAGE * _PAGE
        if sent - self._punched >= _PUNCH:
            _fallocate(self.fd, _PUNCH_HOLE, self._punched, sent - self._punched)
            self._punched = sent

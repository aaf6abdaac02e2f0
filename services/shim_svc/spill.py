"""Bytes that a slow client has not taken yet, kept out of the shim's memory.

They lie in unnamed files of a few megabytes each, on the container's disk where there is a folder for it,
else in memory; a file is given back when it has been read. Sent by sendfile(2), so that they are not copied
in.
"""

from __future__ import annotations

import os
import socket
from collections import deque

SEGMENT = 8 << 20
LIMIT_MEMORY = 64 << 20
LIMIT_DISK = 512 << 20


class Spill:
    """A bounded queue of bytes. folder: where its files lie; None: in memory."""

    def __init__(self, folder: str | None) -> None:
        self._folder = folder
        self._limit = LIMIT_MEMORY if folder is None else LIMIT_DISK
        self._segments: deque[int] = deque()
        self._read_at = 0  # in the first segment
        self._written = 0  # in the last segment
        self.size = 0
        """Bytes in the queue."""

    def _new_segment(self) -> int:
        if self._folder is not None:
            try:
                return os.open(self._folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            except OSError:
                self._limit = LIMIT_MEMORY
                self._folder = None  # no such files there: memory it is
        return os.memfd_create("attach-spill", os.MFD_CLOEXEC)

    def append(self, data: bytes | memoryview) -> bool:
        """Queue the data; False when the limit or the disk does not allow it, and then nothing can be
        added.
        """
        if self.size + len(data) > self._limit:
            return False
        view = memoryview(data)
        while view:
            if not self._segments or self._written >= SEGMENT:
                self._segments.append(self._new_segment())
                self._written = 0
            try:
                count = os.pwrite(self._segments[-1], view[: SEGMENT - self._written], self._written)
            except OSError:
                return False
            self._written += count
            self.size += count
            view = view[count:]
        return True

    def send(self, sock: socket.socket) -> None:
        """Send until the queue is empty. BlockingIOError when the socket takes no more; OSError when it is
        gone.
        """
        while self.size:
            last = len(self._segments) == 1
            available = (self._written if last else SEGMENT) - self._read_at
            count = os.sendfile(sock.fileno(), self._segments[0], self._read_at, available)
            self._read_at += count
            self.size -= count
            if count == available:
                os.close(self._segments.popleft())
                self._read_at = 0
                if last:
                    self._written = 0

    def close(self) -> None:
        """Drop everything."""
        while self._segments:
            os.close(self._segments.pop())
        self.size = 0

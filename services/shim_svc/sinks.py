"""Where one output stream of a process goes, apart from the log and the attached clients (see attach)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Protocol

from shim_svc.disk_writer import DiskWriter
from shim_svc.log_file import LogFile


class Sink(Protocol):
    """Where one output stream goes."""

    def write(self, data: bytes) -> bool:
        """Take the data; False when no more should come until the reader is resumed."""

    def close(self) -> None:
        """The stream has ended."""


class FifoSink:
    """A named pipe. Both ends are held, so that its reader may come, go and come back."""

    def __init__(self, path: str, resume: Callable[[], None]) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._pending = b""
        self._resume = resume
        self._closing = False

    def write(self, data: bytes) -> bool:
        self._pending += data
        self._flush()
        return not self._pending

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            try:
                count = os.write(self._fd, self._pending)
            except BlockingIOError:
                loop.add_writer(self._fd, self._flush)
                return
            self._pending = self._pending[count:]
        loop.remove_writer(self._fd)
        if self._closing:
            os.close(self._fd)
            self._fd = -1
        else:
            self._resume()

    def close(self) -> None:
        self._closing = True
        if self._fd >= 0 and not self._pending:
            os.close(self._fd)
            self._fd = -1

    def abandon(self) -> None:
        """Close even though the reader has not taken everything."""
        if self._fd >= 0:
            asyncio.get_running_loop().remove_writer(self._fd)
            os.close(self._fd)
            self._fd = -1


class FileSink:
    """Appends to a file. What the disk does not take is dropped, and the lines counted in the shim's log."""

    def __init__(self, path: str, resume: Callable[[], None]) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.writer = DiskWriter(LogFile(path, mode=0o644))
        self.writer.on_room = resume

    def write(self, data: bytes) -> bool:
        return self.writer.append(data)

    def close(self) -> None:
        """The writer is closed when the process is forgotten; until then it can be waited for."""


class Discard:
    """Nowhere."""

    def write(self, data: bytes) -> bool:
        return True

    def close(self) -> None:
        return

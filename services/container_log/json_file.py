"""One file of Docker's json-file log, opened for reading."""

from __future__ import annotations

import os
import zlib

from container_log.json_decoding import decode
from container_log.run import Damage, Run

CHUNK = 512 * 1024
"""Bytes that one read looks at, unless one record is longer."""
_BLOCK = 64 * 1024  # bytes of one look from the end
MARK_BYTES = 64


class JsonFile:
    """Takes the descriptor. Offsets are the file's own."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.inode = os.fstat(fd).st_ino
        self.bytes_read = 0
        """For those who measure."""
        self.mark = 0
        """A sum of the first bytes, 0 while there are too few: inodes are used again."""
        self.refresh_mark()

    def refresh_mark(self) -> None:
        """Look at the first bytes again, when there were too few of them."""
        first = b"" if self.mark else os.pread(self.fd, MARK_BYTES, 0)
        if len(first) == MARK_BYTES:
            self.mark = zlib.crc32(first)

    @property
    def size(self) -> int:
        """Bytes in it now."""
        return os.fstat(self.fd).st_size

    def _pread(self, count: int, at: int) -> bytes:
        data = os.pread(self.fd, count, at)
        self.bytes_read += len(data)
        return data

    def read(self, offset: int, limit: int | None = None) -> tuple[list[Run | Damage], int]:
        """Some of the entries from an offset on, none at the end, and the offset behind them.

        limit: an offset at which a record ends, and behind which nothing is read.
        """
        most = CHUNK if limit is None else max(0, min(CHUNK, limit - offset))
        data = self._pread(most, offset)
        end = data.rfind(b"\n") + 1
        if not end and len(data) == CHUNK:
            data = self._long_line(data, offset)
            end = data.rfind(b"\n") + 1
        return list(decode(data[:end])), offset + end

    def _long_line(self, data: bytes, offset: int) -> bytes:
        """A record longer than a chunk, to its end."""
        parts = [data]
        at = offset + len(data)
        while more := self._pread(CHUNK, at):
            parts.append(more)
            at += len(more)
            if b"\n" in more:
                break
        return b"".join(parts)

    def cut(self, offset: int) -> bool:
        """Whether the file has become shorter than it was when that offset was read."""
        return self.size < offset

    def place(self, offset: int) -> int:
        """Where in the file that offset is."""
        return offset

    def skip_to(self, at: int, offset: int) -> int:
        """The offset at a place of the file where a record begins; `offset` when none does."""
        return at if at > offset and self._pread(1, at - 1) == b"\n" else offset

    def torn(self, offset: int) -> int:
        """How many bytes there are behind an offset at which no whole record begins any more."""
        return max(0, self.size - offset)

    def tail(self, count: int) -> tuple[int, int]:
        """How many of the last `count` entries are here, and the offset of the first of them."""
        end = self.size
        while end > 0:
            start = max(0, end - _BLOCK)
            cut = self._pread(end - start, start).rfind(b"\n") + 1
            if cut:
                end = start + cut
                break
            end = start
        if count <= 0:
            return 0, end
        # The end of the last line itself is not the beginning of a wanted one.
        found, at = 0, end - 1
        while at > 0:
            start = max(0, at - _BLOCK)
            block = self._pread(at - start, start)
            here = block.count(b"\n")
            if found + here >= count:
                place = len(block)
                for _ in range(count - found):
                    place = block.rfind(b"\n", 0, place)
                return count, start + place + 1
            found += here
            at = start
        return found + (1 if end > 0 else 0), 0

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

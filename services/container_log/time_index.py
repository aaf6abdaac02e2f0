"""A sparse index beside a log file, so that `--since` need not read what is older.

`<log>.idx`: after 16 bytes of head (a magic, the log's inode), entries of 24: where a stretch of the log
begins and ends, and the latest time up to its end (nanoseconds since 1970). Stretches are about a megabyte.
The index only says what may be left out; without it, or when it does not fit the log, all is read.
"""

from __future__ import annotations

import contextlib
import os
import struct

SUFFIX = ".idx"
STRETCH = 1 << 20  # bytes of the log from one entry to the next
_HEAD = struct.Struct("<8sQ")
_MAGIC = b"buoyidx1"
_ENTRY = struct.Struct("<QQQ")


def _open(path: str, flags: int, mode: int = 0o640) -> int:
    return os.open(path + SUFFIX, flags | os.O_CLOEXEC, mode)


class TimeIndexWriter:
    """Writes the index of one log file, whose size is given, from there on; never raises."""

    def __init__(self, path: str, inode: int, size: int, latest: int = 0) -> None:
        self._path = path
        self._inode = inode
        self._begin = self._size = size
        self._latest = latest

    def wrote(self, count: int, size: int, latest: int) -> None:
        """So many bytes were appended, the log has `size` bytes now, and `latest` is its latest time."""
        if size != self._size + count:  # cut by somebody: what the index says is true no more
            with contextlib.suppress(OSError):
                os.unlink(self._path + SUFFIX)
            self._begin = size - count
        self._size, self._latest = size, max(self._latest, latest)
        if size - self._begin >= STRETCH:
            with contextlib.suppress(OSError):  # a full disk: an entry less
                self._put(_ENTRY.pack(self._begin, size, self._latest))
            self._begin = size

    def _put(self, entry: bytes) -> None:
        fd = _open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        try:
            head = _HEAD.pack(_MAGIC, self._inode)
            size = os.fstat(fd).st_size
            if size and os.pread(fd, _HEAD.size, 0) != head:  # of a file that had the name before
                os.ftruncate(fd, 0)
                size = 0
            torn = (size - _HEAD.size) % _ENTRY.size if size else 0
            os.ftruncate(fd, size - torn)
            os.write(fd, entry if size else head + entry)
        finally:
            os.close(fd)


class TimeIndex:
    """What the index of a log file says. path: the log's; inode: the log's."""

    def __init__(self, path: str, inode: int) -> None:
        self._entries: list[tuple[int, int, int]] = []
        self.bytes_read = 0
        """For those who measure."""
        try:
            fd = _open(path, os.O_RDONLY)
        except OSError:
            return
        with open(fd, "rb") as file:
            data = file.read()
        self.bytes_read = len(data)
        if data[: _HEAD.size] == _HEAD.pack(_MAGIC, inode):
            whole = (len(data) - _HEAD.size) // _ENTRY.size * _ENTRY.size
            self._entries = list(_ENTRY.iter_unpack(data[_HEAD.size : _HEAD.size + whole]))

    def skip(self, at: int, size: int, since: int) -> int:
        """From which place on a log of `size` bytes must be read for what is not older than `since`, when
        it would be read from `at` on.
        """
        for begin, end, latest in self._entries:
            if begin <= at < end:
                if latest >= since or end > size:
                    break
                at = end
        return at

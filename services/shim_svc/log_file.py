"""A file that is appended to, and rotated at its limit: path, path.1, path.2 …, newest first.

It takes any bytes; a file ends behind the line that reaches the limit. A rotation that was cut off by a kill
is gone on with by the next writer: files move up only as far as the first name that is free.
"""

from __future__ import annotations

import contextlib
import os

from linux.crashpoints import crashpoint


class LogFile:
    """Opens or makes the file; OSError.

    max_size: bytes after which the file is rotated, 0 for never. max_file: how many files there are at most.
    The descriptor can be read as well, by those who name their offset.
    """

    def __init__(self, path: str, *, max_size: int = 0, max_file: int = 1, mode: int = 0o640) -> None:
        self.path = path
        self.max_size = max_size
        self.max_file = max_file
        self._mode = mode
        self.fd = self._open()
        self.size = os.fstat(self.fd).st_size

    def _open(self, flags: int = 0) -> int:
        return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | flags, self._mode)

    def _replace(self, fd: int) -> None:
        os.close(self.fd)
        self.fd = fd
        self.size = os.fstat(fd).st_size

    def _moved(self) -> bool:
        """Whether the file has another name by now, or none."""
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self.fd))
        except FileNotFoundError:
            return True

    def resume(self, offset: int | None) -> tuple[int, bool]:
        """Take over from a writer that died: how many bytes behind `offset` are in the file already, and
        whether it had begun to rotate, which is done then. offset: None when none has died.
        """
        if offset is not None and self.max_size and self._moved():  # what belongs in the old file is there
            self._replace(self._open())
            return 0, True
        self.size = os.fstat(self.fd).st_size
        return (0 if offset is None else max(0, self.size - offset)), False

    @property
    def full(self) -> bool:
        """Whether the next byte belongs in a new file."""
        if not self.max_size or self.size < self.max_size:
            return False
        return os.pread(self.fd, 1, self.size - 1) == b"\n"

    def append(self, data: bytes) -> int:
        """Append as much as goes and belongs in this file; returns how much. OSError when nothing does."""
        if self.max_size and len(data) > (room := max(0, self.max_size - self.size)):
            data = data[: data.find(b"\n", max(0, room - 1)) + 1] or data
        count = os.write(self.fd, data)
        self.size = os.lseek(self.fd, 0, os.SEEK_CUR)  # others may have cut it
        return count

    def rotate(self) -> None:
        """Begin a new file; OSError, and then it may be tried again."""
        if not self._moved():
            self._move_up()
        self._replace(self._open(os.O_TRUNC))

    def _move_up(self) -> None:
        names = [self.path, *(f"{self.path}.{number}" for number in range(1, self.max_file))]
        free = next((at for at, name in enumerate(names) if at and not os.path.exists(name)), len(names) - 1)
        if not free:  # one file. Readers may stand in it, so that it is replaced rather than cut.
            os.unlink(self.path)
        for at in range(free, 0, -1):
            os.rename(names[at - 1], names[at])
        crashpoint("writer.rotate.moved")

    def older(self) -> list[int]:
        """Descriptors of the files before this one, oldest first, opened for reading.

        A rotation may come in between, so that a file is met twice, but none is missed.
        """
        found: list[int] = []
        seen = [os.fstat(self.fd)]
        for number in range(1, self.max_file):
            with contextlib.suppress(FileNotFoundError):
                fd = os.open(f"{self.path}.{number}", os.O_RDONLY | os.O_CLOEXEC)
                status = os.fstat(fd)
                if any(os.path.samestat(status, other) for other in seen):
                    os.close(fd)
                else:
                    seen.append(status)
                    found.append(fd)
        return found[::-1]

    def follow(self, fd: int) -> None:
        """The writer, another process, has begun a new file and sends its descriptor."""
        self._replace(fd)

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

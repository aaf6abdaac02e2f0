"""A file that is appended to, and rotated at its limit: path, path.1, path.2 …, newest first.

It takes any bytes; a file ends behind the line that reaches the limit. A rotation that was cut off by a kill
is gone on with by the next writer: files move up only as far as the first name that is free. Compressed, a
rotated file is path.1.gz instead, made by a process of its own, since it takes a while.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

from container_log import members
from container_log.compress import compress
from container_log.member_file import MemberFile
from container_log.members import describe, lines_of, pack, queued_runs
from container_log.time_index import SUFFIX, TimeIndexWriter
from linux.crashpoints import crashpoint

from shim_svc.forks import fork_child

_VARIANTS = ("", ".gz", SUFFIX)
_MEMBER = 256 * 1024  # bytes of text of one member at most


class LogFile:
    """Opens or makes the file; OSError.

    max_size: bytes after which the file is rotated, 0 for never. max_file: how many files there are at most.
    compressed: whether those that are rotated away are compressed. indexed: whether there is a time index.
    """

    def __init__(
        self,
        path: str,
        *,
        max_size: int = 0,
        max_file: int = 1,
        compressed: bool = False,
        indexed: bool = False,
        mode: int = 0o640,
    ) -> None:
        self.path = path
        self.max_size = max_size
        self.max_file = max_file
        self._compressed = compressed
        self._indexed = indexed
        self._mode = mode
        self._index: TimeIndexWriter | None = None
        self.fd = self._open()
        self.size = os.fstat(self.fd).st_size

    def _open(self, flags: int = 0) -> int:
        return os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | flags, self._mode)

    def _replace(self, fd: int) -> None:
        os.close(self.fd)
        self.fd = fd
        self.size = os.fstat(fd).st_size
        self._index = None

    def _moved(self) -> bool:
        """Whether the file has another name by now, or none."""
        try:
            return not os.path.samestat(os.stat(self.path), os.fstat(self.fd))
        except FileNotFoundError:
            return True

    def resume(self, offset: int | None) -> tuple[int, bool]:
        """Take over from a writer that died: how many bytes of its queue behind `offset` are in the file
        already, and whether it had begun to rotate, which is done then. offset: None when none has died.
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

    def append(self, data: bytes, latest: int = 0) -> int:
        """Append as much as goes and belongs in this file; returns how much. OSError when nothing does.

        latest: no time in the data or before it is later.
        """
        if self.max_size and len(data) > (room := max(0, self.max_size - self.size)):
            data = data[: data.find(b"\n", max(0, room - 1)) + 1] or data
        count = os.write(self.fd, data)
        self._wrote(count, latest)
        return count

    def _wrote(self, count: int, latest: int) -> None:
        size = os.lseek(self.fd, 0, os.SEEK_CUR)  # others may have cut it
        if self._indexed:
            if self._index is None:
                self._index = TimeIndexWriter(self.path, os.fstat(self.fd).st_ino, size - count)
            self._index.wrote(count, size, latest)
        self.size = size

    def rotate(self) -> None:
        """Begin a new file; OSError, and then it may be tried again."""
        with self._names_locked():
            if not self._moved():
                self._move_up()
            self._replace(self._open(os.O_TRUNC))

    @contextlib.contextmanager
    def _names_locked(self) -> Iterator[int]:
        """A writer that was let go may still put a compressed file in its place. The folder's descriptor."""
        fd = os.open(os.path.dirname(self.path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)

    def _name(self, number: int) -> str:
        return f"{self.path}.{number}" if number else self.path

    def _move_up(self) -> None:
        taken = [
            any(os.path.exists(self._name(at) + kind) for kind in ("", ".gz")) for at in range(self.max_file)
        ]
        free = next((at for at in range(1, self.max_file) if not taken[at]), self.max_file - 1)
        if not free:  # one file. Readers may stand in it, so that it is replaced rather than cut.
            os.unlink(self.path)
        for at in range(free, 0, -1):
            for kind in _VARIANTS:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(self._name(at) + kind)
            for kind in _VARIANTS:
                with contextlib.suppress(FileNotFoundError):
                    os.rename(self._name(at - 1) + kind, self._name(at) + kind)
        crashpoint("writer.rotate.moved")

    def follow(self, fd: int) -> None:
        """The writer, another process, has begun a new file and sends its descriptor."""
        self._replace(fd)

    def close(self) -> None:
        """Close the descriptor."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    # Compression

    def begin_compression(self) -> Compression | None:
        """Compress the oldest file that is not yet, if there is one and that is wanted."""
        if not self._compressed:
            return None
        for at in range(self.max_file - 1, 0, -1):
            try:
                source = os.open(self._name(at), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                return Compression(self, source)
            except OSError:  # no such files there, or no memory: it stays as it is
                os.close(source)
                return None
        return None

    def put_compressed(self, source: int, target: int) -> None:
        """Put a compressed file, which has no name yet, in the place of its source; OSError."""
        wanted = os.fstat(source)
        with self._names_locked() as folder:
            for at in range(1, self.max_file):
                name = self._name(at)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.stat(name), wanted):
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(f"{name}.gz")
                        # A folder's descriptor makes Python call linkat(2), which can follow the link.
                        os.link(f"/proc/self/fd/{target}", f"{name}.gz", src_dir_fd=folder)
                        crashpoint("writer.compress.linked")
                        os.unlink(name)
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(name + SUFFIX)
                        return


class Compression:
    """A child that compresses a file; OSError when it cannot begin. Takes the source."""

    def __init__(self, log: LogFile, source: int) -> None:
        self._log = log
        self._source = source
        folder = os.path.dirname(log.path)
        self._target = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o640)
        try:
            target = self._target
            self.pid = fork_child(lambda: compress(source, target), keep=(source, target))
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            os.close(self._target)
            raise

    def finish(self) -> bool:
        """Wait for the child, and put what it made in its place. False when that cannot be: the file stays as
        it is, and is tried again after the next rotation.
        """
        _, status = os.waitpid(self.pid, 0)
        try:
            if status == 0:
                self._log.put_compressed(self._source, self._target)
            return status == 0
        except OSError:
            return False
        finally:
            os.close(self.pidfd)
            os.close(self._target)
            os.close(self._source)


class FramedFile(LogFile):
    """A file of gzip members (see `container_log.members`), to which runs from a queue are appended."""

    _start: int | None = None  # where the text of the next member begins

    def _replace(self, fd: int) -> None:
        super()._replace(fd)
        self._start = None

    @property
    def full(self) -> bool:
        """Whether the next member belongs in a new file."""
        return bool(self.max_size) and self.size >= self.max_size

    def resume(self, offset: int | None) -> tuple[int, bool]:
        """As in LogFile. A torn member of the writer that died is cut off."""
        _, rotated = super().resume(offset)
        if offset is None or rotated:
            return 0, rotated
        done, at = 0, offset
        while at < self.size:
            member = describe(os.pread(self.fd, 1 << 16, at))
            if member is None or at + member.size > self.size:
                os.ftruncate(self.fd, at)
                break
            done += member.text + members.RUN_SIZE * len(member.runs)
            at += member.size
        self.size = os.fstat(self.fd).st_size
        self._start = None
        return done, False

    def _begin(self) -> int:
        """Where the text of the next member begins."""
        if self._start is None:
            file = MemberFile(os.dup(self.fd))
            try:
                self._start = file.tail(0)[1]
            finally:
                file.close()
        return self._start

    def append(self, data: bytes, latest: int = 0) -> int:
        """Append the whole runs of a queue, as many as fit into one member; returns their bytes."""
        most = min(_MEMBER, max(1 << 16, self.max_size // 8)) if self.max_size else _MEMBER
        runs: list[members.Piece] = []
        texts: list[bytes] = []
        size = lines = 0
        for run, text in queued_runs(data):
            if (runs and size + len(text) > most) or len(runs) == members.MOST_RUNS:
                break
            runs.append(run)
            texts.append(text)
            size += len(text)
            lines += lines_of(run, text)
        start = self._begin()
        # What fills the queue faster than it can be compressed is compressed when it is rotated.
        level = 0 if len(data) > _MEMBER and size > _MEMBER // 2 else 1
        newest = max(run.time for run in runs)
        member = pack(b"".join(texts), runs, start=start, latest=newest, lines=lines, level=level)
        before = os.fstat(self.fd).st_size
        count = os.write(self.fd, member)
        if count < len(member):
            os.ftruncate(self.fd, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._start = start + size
        self._wrote(count, latest)
        return size + members.RUN_SIZE * len(runs)

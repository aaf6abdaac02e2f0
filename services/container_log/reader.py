"""Reading a container's log, from the beginning or the end, on and on, across rotation.

The writer rotates by renaming: `path` is the newest file, `path.1` the one before, and so on.

A position is "inode:mark:offset": the file, something of its first bytes (inodes are used again), and where
the next record begins.
"""

from __future__ import annotations

import os
import struct
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from container_log.json_file import JsonFile
from container_log.member_file import MemberFile
from container_log.members import SIGNATURE
from container_log.run import Damage, Run
from container_log.time_index import TimeIndex
from container_log.times import nanoseconds, with_all_digits

LogFile = JsonFile | MemberFile
_FRAME = struct.Struct(">BxxxI")


@dataclass(frozen=True)
class LogOptions:
    """What of a log is wanted.

    `tail` counts records from the end, None for all; times in nanoseconds since 1970, 0 for none.
    """

    stdout: bool = True
    stderr: bool = True
    timestamps: bool = False
    details: bool = False
    #: Frames with Docker's 8-byte header: a byte for the stream, three of 0, four of length, big-endian.
    #: Several lines may share a frame.
    multiplexed: bool = True
    tail: int | None = None
    since: int = 0
    until: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LogOptions:
        return cls(**document)


class Format:
    """Makes of entries what a client gets."""

    def __init__(self, options: LogOptions) -> None:
        self._options = options
        self._simple = not (options.since or options.until or options.details or options.timestamps)
        self.done = False
        """No entry that is still to come can be wanted."""

    def of(self, entries: list[Run | Damage]) -> bytes:
        """The wanted ones, and a line of stderr for each gap in the log."""
        out: list[bytes] = []
        skipped = 0
        for entry in entries:
            if isinstance(entry, Damage):
                skipped += entry.size
                continue
            if skipped:
                self._put(_notice(skipped), "stderr", out)
                skipped = 0
            text = entry.text if self._simple else self._checked(entry)
            if self.done:
                return b"".join(out)
            self._put(text, entry.stream, out)
        if skipped:
            self._put(_notice(skipped), "stderr", out)
        return b"".join(out)

    def _checked(self, run: Run) -> bytes:
        """The run's text with what stands before each line; empty when its time is not wanted."""
        options = self._options
        if options.since or options.until:
            try:
                at = nanoseconds(run.time)
            except ValueError:
                return b""
            if at < options.since:
                return b""
            if options.until and at > options.until:
                self.done = True
                return b""
        before = b""
        if options.timestamps:
            before = with_all_digits(run.time).encode() + b" "
        if options.details:
            before += _details(run.attrs) + b" "
        if not before:
            return run.text
        last = len(run.text) - 1
        if run.text.find(b"\n", 0, max(last, 0)) < 0:
            return before + run.text
        return before + run.text[:last].replace(b"\n", b"\n" + before) + run.text[last:]

    def _put(self, text: bytes, stream: str, out: list[bytes]) -> None:
        stdout = stream == "stdout"
        if not text or not (self._options.stdout if stdout else self._options.stderr):
            return
        if self._options.multiplexed:
            out.append(_FRAME.pack(1 if stdout else 2, len(text)))
        out.append(text)


def _notice(size: int) -> bytes:
    return b"%d bytes of the log are damaged here and were skipped\n" % size


def _details(attrs: Mapping[str, str] | None) -> bytes:
    quote = urllib.parse.quote_plus
    return ",".join(
        f"{quote(key)}={quote(str(value))}" for key, value in sorted((attrs or {}).items())
    ).encode()


def open_file(fd: int, driver: str) -> LogFile:
    """A reader of the file, which it takes. driver: that wrote it; its rotated files may be compressed."""
    if driver == "local" or os.pread(fd, len(SIGNATURE), 0) == SIGNATURE:
        return MemberFile(fd)
    return JsonFile(fd)


def same_file(one: LogFile, other: LogFile) -> bool:
    """Whether they are one file, or one has been compressed to the other. Inodes are used again."""
    # One that was opened when it had too few bytes for a mark may have them by now.
    one.refresh_mark()
    other.refresh_mark()
    if other.mark:
        one.refresh_mark()
    return (one.inode, one.mark) == (other.inode, other.mark)


def log_files(path: Path) -> list[Path]:
    """The files of a log that there are now, the oldest first, `path` last even where it is not there."""
    older: dict[int, Path] = {}
    for name in path.parent.glob(f"{path.name}.*"):
        number = name.name[len(path.name) + 1 :].removesuffix(".gz")
        # Of a file and its compressed copy either will do.
        if number.isdecimal() and (int(number) not in older or name.suffix != ".gz"):
            older[int(number)] = name
    return [older[number] for number in sorted(older, reverse=True)] + [path]


def _newest_first(path: Path) -> Iterator[Path]:
    """The names of a log's files, and behind them those that a rotation has made meanwhile."""
    names = log_files(path)
    yield from reversed(names)
    while len(more := log_files(path)) > len(names):
        yield from reversed(more[: len(more) - len(names)])
        names = more


def up_to(path: Path, driver: str, options: LogOptions, fd: int, size: int) -> Iterator[bytes]:
    """All that a log holds up to a place in its newest file, formatted. fd: of that file, taken; size: bytes
    of it.
    """
    form = Format(options)
    last = open_file(fd, driver)
    files = [last]
    met = False
    # From the newest on: a rotation may come in between, so that a file is met twice, but none is missed.
    for name in _newest_first(path):
        try:
            file = open_file(os.open(name, os.O_RDONLY | os.O_CLOEXEC), driver)
        except FileNotFoundError:
            continue
        met = met or same_file(file, last)  # what comes before it in this order is newer
        if not met or any(same_file(file, other) for other in files):
            file.close()
        else:
            files.append(file)
    try:
        for file in reversed(files):
            limit = size if file is last else None
            offset, more = 0, True
            while more:
                entries, after = file.read(offset, limit)
                more, offset = after > offset, after
                yield form.of(entries)
            if file is not last and (torn := file.torn(offset)):
                yield form.of([Damage(torn)])
    finally:
        for file in files:
            file.close()


class LogReader:
    """One reader. `read` gives the next bytes for the client. driver: json-file or local."""

    def __init__(
        self, path: Path, options: LogOptions, position: str = "", driver: str = "json-file"
    ) -> None:
        self._path = path
        self._driver = driver
        self._since = options.since
        self._format = Format(options)
        self._file: LogFile | None = None
        self._index: TimeIndex | None = None
        self.bytes_read = 0
        """Of files that are closed; for those who measure."""
        self._offset = 0
        if position:
            identity, _, offset = position.rpartition(":")
            self._offset = int(offset)
            self._reopen(identity)
        elif options.tail is not None:
            self._seek_tail(options.tail)
        else:
            self._open_oldest()

    @property
    def done(self) -> bool:
        """No record that is still to come can be wanted."""
        return self._format.done

    @property
    def position(self) -> str:
        """Where to go on, in another process too; empty while there is no log."""
        file = self._file
        return f"{file.inode}:{file.mark}:{self._offset}" if file is not None else ""

    def read(self) -> tuple[bytes, bool]:
        """The next records, formatted, and whether the log's end is reached for now.

        The position is behind them.
        """
        if self._file is None:
            self._open_oldest()
            if self._file is None:
                return b"", True
        if self._index is not None:
            self._skip(self._file, self._index)
        entries, after = self._file.read(self._offset)
        if after > self._offset:
            self._offset = after
            return self._format.of(entries), False
        # At the end of the file, perhaps behind a torn record: it is whole in a moment, or never will be.
        if self._file.cut(self._offset):
            self._offset = 0  # Emptied in place.
            return b"", False
        return self._next_file()

    def _skip(self, file: LogFile, index: TimeIndex) -> None:
        """Leave out what is older than all that is wanted."""
        at = file.place(self._offset)
        further = index.skip(at, file.size, self._since)
        if further > at:
            self._offset = file.skip_to(further, self._offset)

    @property
    def torn(self) -> int:
        """Bytes behind the position that are no whole record: one that is being written, or damage."""
        return self._file.torn(self._offset) if self._file is not None else 0

    def damage(self, size: int) -> bytes:
        """What a client is told of so many bytes that cannot be read."""
        return self._format.of([Damage(size)])

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self.bytes_read += self._file.bytes_read + (self._index.bytes_read if self._index else 0)
            self._file.close()
            self._file = None

    # Files

    def _open(self, path: Path) -> LogFile | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        self.close()
        self._file = open_file(fd, self._driver)
        self._index = TimeIndex(str(path), self._file.inode) if self._since else None
        if isinstance(self._file, MemberFile):
            self._file.since = self._since
        return self._file

    def _open_oldest(self) -> None:
        for path in log_files(self._path):
            if self._open(path):
                self._offset = 0
                return

    def _reopen(self, identity: str) -> None:
        """Open the file of a given position; when it has been rotated away, the oldest there is."""
        inode, mark = (int(part) for part in identity.split(":"))
        for path in log_files(self._path):
            # A file that was too short for a mark when the position was taken is known by its inode alone.
            file = self._open(path)
            if file is not None and file.inode == inode and mark in (0, file.mark):
                return
        self.close()
        self._open_oldest()

    def _next_file(self) -> tuple[bytes, bool]:
        """At the open file's end: go on with the file that came after it. True when it is the newest."""
        assert self._file is not None
        self._file.refresh_mark()
        files = log_files(self._path)
        which = next((at for at in reversed(range(len(files))) if self._is_open(files[at])), -1)
        if which == len(files) - 1 or not self._path.exists():
            return b"", True
        # What was written between our last look and the rename.
        if self._file.read(self._offset)[1] > self._offset:
            return b"", False
        torn = self._file.torn(self._offset)
        if not self._open(files[which + 1]):
            return b"", True
        self._offset = 0
        return self.damage(torn) if torn else b"", False

    def _is_open(self, path: Path) -> bool:
        """Whether the open file has this name now."""
        assert self._file is not None
        try:
            if os.path.samestat(os.stat(path), os.fstat(self._file.fd)):
                return True
            other = open_file(os.open(path, os.O_RDONLY | os.O_CLOEXEC), self._driver)
        except FileNotFoundError:
            return False
        try:
            return same_file(self._file, other)
        finally:
            other.close()

    def _seek_tail(self, count: int) -> None:
        """Stand `count` records before the end of the log."""
        for path in reversed(log_files(self._path)):
            file = self._open(path)
            if file is None:
                continue
            found, self._offset = file.tail(count)
            count -= found
            if count <= 0:
                return

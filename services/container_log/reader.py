"""Reading a container's log, from the beginning or the end, on and on, across rotation.

The writer rotates by renaming: `path` is the newest file, `path.1` the one before, and so on.

A position is "inode:mark:offset": the file, something of its first bytes (inodes are used again), and where
the next record begins.
"""

from __future__ import annotations

import os
import struct
import urllib.parse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from container_log.json_file import JsonFile
from container_log.run import Damage, Run
from container_log.times import nanoseconds, with_all_digits

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


class LogReader:
    """One reader. `read` gives the next bytes for the client; `close` when done."""

    def __init__(self, path: Path, options: LogOptions, position: str = "") -> None:
        self._path = path
        self._format = Format(options)
        self._file: JsonFile | None = None
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
        entries, after = self._file.read(self._offset)
        if after > self._offset:
            self._offset = after
            return self._format.of(entries), False
        # At the end of the file, perhaps behind a torn record: it is whole in a moment, or never will be.
        if self._file.size < self._offset:
            self._offset = 0  # Emptied in place.
            return b"", False
        return self._next_file()

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
            self._file.close()
            self._file = None

    # Files

    def _files(self) -> list[Path]:
        """The log's files, the oldest first."""
        older = []
        for path in self._path.parent.glob(f"{self._path.name}.*"):
            number = path.name[len(self._path.name) + 1 :]
            if number.isdecimal():
                older.append((-int(number), path))
        return [path for _, path in sorted(older)] + [self._path]

    def _open(self, path: Path) -> JsonFile | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        self.close()
        self._file = JsonFile(fd)
        return self._file

    def _open_oldest(self) -> None:
        for path in self._files():
            if self._open(path):
                self._offset = 0
                return

    def _reopen(self, identity: str) -> None:
        """Open the file of a given position; when it has been rotated away, the oldest there is."""
        inode, mark = (int(part) for part in identity.split(":"))
        for path in self._files():
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
        inode = self._file.inode
        files = self._files()
        inodes = [_inode(path) for path in files]
        if inodes[-1] == inode or inodes[-1] is None:
            return b"", True
        # What was written between our last look and the rename.
        if self._file.read(self._offset)[1] > self._offset:
            return b"", False
        torn = self._file.torn(self._offset)
        following = inodes.index(inode) + 1 if inode in inodes else 0
        if not self._open(files[following]):
            return b"", True
        self._offset = 0
        return self.damage(torn) if torn else b"", False

    def _seek_tail(self, count: int) -> None:
        """Stand `count` records before the end of the log."""
        for path in reversed(self._files()):
            file = self._open(path)
            if file is None:
                continue
            found, self._offset = file.tail(count)
            count -= found
            if count <= 0:
                return


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None

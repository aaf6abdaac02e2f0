"""Reading a container's json-file log, from the beginning or the end, on and on, across rotation.

A record is one line: {"log": "text\n", "stream": "stdout", "attrs": {…}, "time": RFC 3339}. The writer
rotates by renaming: `path` is the newest file, `path.1` the one before, and so on.

A position is "inode:mark:offset": the file, something of its first bytes (inodes are used again), and where
the next record begins.
"""

from __future__ import annotations

import json
import os
import re
import struct
import urllib.parse
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

#: Bytes of one file that `read` looks at in one call.
CHUNK = 64 * 1024
_MARK_BYTES = 64
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)\Z")
#: The common record: nothing escaped but the line's end, no attributes. Anything else goes through the JSON
#: parser.
_PLAIN = rb'\{"log":"([^"\\\x00-\x1f]*)(\\n)?","stream":"(stdout|stderr)","time":"([^"\\\x00-\x1f]+)"\}'
_PLAIN_LINES = re.compile(_PLAIN + rb"\n")
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
    multiplexed: bool = True
    tail: int | None = None
    since: int = 0
    until: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> LogOptions:
        return cls(**document)


def nanoseconds(rfc3339: str) -> int:
    """An RFC 3339 time in nanoseconds since 1970. ValueError when it is none."""
    found = _TIME.match(rfc3339)
    if found is None:
        raise ValueError(f"{rfc3339!r} is not an RFC 3339 time")
    whole = datetime.fromisoformat(found[1] + ("+00:00" if found[3] == "Z" else found[3]))
    return (whole - _EPOCH) // timedelta(seconds=1) * 1_000_000_000 + int((found[2] or "0").ljust(9, "0"))


def _fixed(rfc3339: str) -> str:
    """The time with all nine digits of fraction, as `timestamps` shows it."""
    found = _TIME.match(rfc3339)
    if found is None:
        return rfc3339
    return f"{found[1]}.{(found[2] or '').ljust(9, '0')}{found[3]}"


@dataclass(frozen=True, slots=True)
class Record:
    text: bytes
    stream: str
    time: str
    attrs: Mapping[str, str] | None = None


def parse(line: bytes) -> Record | None:
    """The record of one line, None for a torn one. One that is whole behind a torn beginning is found."""
    try:
        found = json.loads(line)
        return Record(
            str(found["log"]).encode("utf-8", "surrogatepass"),
            str(found.get("stream", "stdout")),
            str(found["time"]),
            found.get("attrs"),
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        begin = line.rfind(b'{"log":', 1)
        return parse(line[begin:]) if begin > 0 else None


class JsonLog:
    """One reader. `read` gives the next bytes for the client; `close` when done."""

    def __init__(self, path: Path, options: LogOptions, position: str = "") -> None:
        self._path = path
        self._options = options
        self._fd = -1
        self._file = ""  # inode and mark of the open file
        self._offset = 0
        #: No record that is still to come can be wanted.
        self.done = False
        if position:
            self._file, _, offset = position.rpartition(":")
            self._offset = int(offset)
            self._reopen()
        elif options.tail is not None:
            self._seek_tail(options.tail)
        else:
            self._open_oldest()

    @property
    def position(self) -> str:
        return f"{self._file}:{self._offset}" if self._fd >= 0 else ""

    def read(self) -> tuple[bytes, bool]:
        """The next records, formatted, and whether the log's end is reached for now.

        The position is behind them.
        """
        if self._fd < 0:
            self._open_oldest()
            if self._fd < 0:
                return b"", True
        data = os.pread(self._fd, CHUNK, self._offset)
        end = data.rfind(b"\n") + 1
        if end == 0 and len(data) == CHUNK:
            data = self._long_line(data)
            end = data.rfind(b"\n") + 1
        if end == 0:
            # At the end of the file, perhaps behind a torn record: it is whole in a moment, or never will be.
            if os.fstat(self._fd).st_size < self._offset:
                self._offset = 0  # Emptied in place.
                return b"", False
            return b"", not self._next_file()
        self._offset += end
        return self._format(data[:end]), False

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _format(self, data: bytes) -> bytes:
        """The wanted records among whole lines, as the client gets them."""
        out: list[bytes] = []
        options = self._options
        simple = not (options.since or options.until or options.details or options.timestamps)
        place = 0
        # Most logs are all plain records: those are found by one scan instead of a parse of each line.
        for found in _PLAIN_LINES.finditer(data):
            if found.start() != place:
                self._format_slowly(data[place : found.start()], out)
            place = found.end()
            text, newline, stream, time = found.groups()
            if newline:
                text += b"\n"
            if simple:
                self._put(text, stream == b"stdout", out)
            else:
                self._put_checked(Record(text, stream.decode(), time.decode("ascii", "replace")), out)
            if self.done:
                break
        else:
            self._format_slowly(data[place:], out)
        return b"".join(out)

    def _format_slowly(self, data: bytes, out: list[bytes]) -> None:
        for line in data.split(b"\n"):
            record = parse(line) if line and not self.done else None
            if record is not None:
                self._put_checked(record, out)

    def _put_checked(self, record: Record, out: list[bytes]) -> None:
        options = self._options
        if options.since or options.until:
            try:
                at = nanoseconds(record.time)
            except ValueError:
                return
            if at < options.since:
                return
            if options.until and at > options.until:
                self.done = True
                return
        text = record.text
        if options.details:
            text = _details(record.attrs) + b" " + text
        if options.timestamps:
            text = _fixed(record.time).encode() + b" " + text
        self._put(text, record.stream == "stdout", out)

    def _put(self, text: bytes, stdout: bool, out: list[bytes]) -> None:
        options = self._options
        if not (options.stdout if stdout else options.stderr):
            return
        if options.multiplexed:
            out.append(_FRAME.pack(1 if stdout else 2, len(text)))
        out.append(text)

    def _long_line(self, data: bytes) -> bytes:
        """A record longer than a chunk, to its end."""
        parts = [data]
        at = self._offset + len(data)
        while more := os.pread(self._fd, CHUNK, at):
            parts.append(more)
            at += len(more)
            if b"\n" in more:
                break
        return b"".join(parts)

    # -- files

    def _files(self) -> list[Path]:
        """The log's files, the oldest first."""
        older = []
        for path in self._path.parent.glob(f"{self._path.name}.*"):
            number = path.name[len(self._path.name) + 1 :]
            if number.isdecimal():
                older.append((-int(number), path))
        return [path for _, path in sorted(older)] + [self._path]

    def _open(self, path: Path) -> bool:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        self.close()
        self._fd, self._file = fd, _identity(fd)
        return True

    def _open_oldest(self) -> None:
        for path in self._files():
            if self._open(path):
                self._offset = 0
                return

    def _reopen(self) -> None:
        """Open the file of a given position; when it has been rotated away, the oldest there is."""
        inode, _, mark = self._file.partition(":")
        for path in self._files():
            # A file that was too short for a mark when the position was taken is known by its inode alone.
            if self._open(path):
                found = self._file.partition(":")
                if found[0] == inode and mark in ("0", found[2]):
                    return
        self.close()
        self._open_oldest()

    def _next_file(self) -> bool:
        """At the open file's end: go on with the file that came after it. False when it is the newest."""
        if self._file.endswith(":0"):
            self._file = _identity(self._fd)
        inode = os.fstat(self._fd).st_ino
        files = self._files()
        inodes = [_inode(path) for path in files]
        if inodes[-1] == inode or inodes[-1] is None:
            return False
        # What was written between our last look and the rename.
        if os.fstat(self._fd).st_size > self._offset and b"\n" in os.pread(self._fd, CHUNK, self._offset):
            return True
        following = inodes.index(inode) + 1 if inode in inodes else 0
        if not self._open(files[following]):
            return False
        self._offset = 0
        return True

    def _seek_tail(self, count: int) -> None:
        """Stand `count` records before the end of the log."""
        for path in reversed(self._files()):
            if not self._open(path):
                continue
            size = os.fstat(self._fd).st_size
            found, self._offset = _tail(self._fd, size, count)
            count -= found
            if count <= 0:
                return


def _tail(fd: int, size: int, count: int) -> tuple[int, int]:
    """How many of the last `count` whole lines the first `size` bytes hold, and where the first of them
    begins.
    """
    end = size
    while end > 0:
        start = max(0, end - CHUNK)
        cut = os.pread(fd, end - start, start).rfind(b"\n") + 1
        if cut:
            end = start + cut
            break
        end = start
    if count <= 0:
        return 0, end
    found, at = 0, end
    while at > 0:
        start = max(0, at - CHUNK)
        block = os.pread(fd, at - start, start)
        place = len(block)
        while (place := block.rfind(b"\n", 0, place)) >= 0:
            # The end of the last line itself is not the beginning of a wanted one.
            if start + place + 1 != end:
                found += 1
                if found == count:
                    return found, start + place + 1
        at = start
    return found + (1 if end > 0 else 0), 0


def _identity(fd: int) -> str:
    """Inode and a sum of the first bytes; 0 while there are too few."""
    mark = os.pread(fd, _MARK_BYTES, 0)
    return f"{os.fstat(fd).st_ino}:{zlib.crc32(mark) if len(mark) == _MARK_BYTES else 0}"


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def _details(attrs: Mapping[str, str] | None) -> bytes:
    quote = urllib.parse.quote_plus
    return ",".join(
        f"{quote(key)}={quote(str(value))}" for key, value in sorted((attrs or {}).items())
    ).encode()

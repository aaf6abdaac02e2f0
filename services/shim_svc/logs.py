"""Docker's json-file log, written by the shim itself.

One JSON object a line: {"log":"text\\n","stream":"stdout","time":"2006-01-02T15:04:05.999999999Z"}, escaped
as Go's encoder escapes for HTML. A line of more than 16 KiB is cut into pieces of that size, the pieces
without the newline, all with the time of the first. With a size limit the files are path, path.1, path.2 …,
newest first. Source: what moby's json-file driver writes.

Writing never waits and never fails: what the disk refuses is dropped and counted. A line that was written in
part is completed first when there is room again, so that no line is torn.
"""

from __future__ import annotations

import logging
import os
import re
import time

log = logging.getLogger(__name__)

PIECE = 16 * 1024  # bytes of one log entry at most
STREAMS = ("stdout", "stderr")

_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_SURROGATES = re.compile("[\udc80-\udcff]")
_WARN_EVERY = 60.0  # seconds


def escape(data: bytes) -> bytes:
    """Escape text for a JSON string; newlines are left alone. Bytes that are not UTF-8 become \\ufffd
    each.
    """
    data = (
        data.replace(b"\\", b"\\\\")
        .replace(b'"', b'\\"')
        .replace(b"\r", b"\\r")
        .replace(b"\t", b"\\u0009")
        .replace(b"<", b"\\u003c")
        .replace(b">", b"\\u003e")
        .replace(b"&", b"\\u0026")
    )
    data = _CONTROLS.sub(lambda found: b"\\u%04x" % found.group()[0], data)
    if not data.isascii():
        text = data.decode("utf-8", "surrogateescape")
        if _SURROGATES.search(text):
            text = _SURROGATES.sub(r"\\ufffd", text)
        data = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").encode()
    return data


def timestamp(ns: int) -> bytes:
    """RFC3339Nano in UTC as Go prints it: no trailing zeros. ns: nanoseconds since 1970."""
    seconds, rest = divmod(ns, 1_000_000_000)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    fraction = f".{rest:09}".rstrip("0") if rest else ""
    return f"{text}{fraction}Z".encode()


class _Line:
    """The unfinished line of one stream."""

    __slots__ = ("first_at", "pending")

    def __init__(self) -> None:
        self.pending = b""
        self.first_at = b""  # time of the first piece, while pieces of this line have been written


class JsonFileLog:
    """The log of one container's init process.

    max_size: bytes after which the file is rotated, 0 for never. max_file: how many files there are at most.
    """

    def __init__(self, path: str, *, max_size: int = 0, max_file: int = 1) -> None:
        self.path = path
        self.generation = 0
        """How often this writer has rotated; a reader that stands in an older file finds the next by it."""
        self.dropped_lines = 0
        self._max_size = max_size
        self._max_file = max_file
        self._fd = -1
        self._torn = b""
        self._warned = 0.0
        self._lines = {stream: _Line() for stream in STREAMS}
        self.size = 0
        self._open()

    def _open(self, flags: int = 0) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | flags, 0o640)
        self.size = os.fstat(self._fd).st_size

    def unfinished(self, stream: str) -> bytes:
        """What has come of a line that is not in the file yet."""
        return self._lines[stream].pending

    def write(self, stream: str, data: bytes) -> None:
        """Take output of the process; whole lines go to the file at once, the rest waits for its newline."""
        line = self._lines[stream]
        data = line.pending + data if line.pending else data
        cut = data.rfind(b"\n") + 1
        whole, line.pending = data[:cut], data[cut:]
        now = timestamp(time.time_ns())
        out = b""
        if whole:
            lines = whole[:-1].split(b"\n")
            if line.first_at or (len(whole) > PIECE and max(map(len, lines)) >= PIECE):
                out = self._long_lines(line, stream, lines, now)
            else:
                between = b'\\n","stream":"%s","time":"%s"}\n' % (stream.encode(), now)
                text = escape(whole[:-1])
                out = b'{"log":"' + text.replace(b"\n", between + b'{"log":"') + between
        pieces = b""
        while len(line.pending) >= PIECE:
            pieces += self._piece(line, stream, now)
        if out or pieces:
            self._append(out + pieces)

    def _piece(self, line: _Line, stream: str, now: bytes) -> bytes:
        """The entry of the first 16 KiB of an unfinished line."""
        line.first_at = line.first_at or now
        part, line.pending = line.pending[:PIECE], line.pending[PIECE:]
        return b'{"log":"%s","stream":"%s","time":"%s"}\n' % (escape(part), stream.encode(), line.first_at)

    def _long_lines(self, line: _Line, stream: str, lines: list[bytes], now: bytes) -> bytes:
        """Entries of whole lines of which some are longer than one piece, or end a line that has begun."""
        rest, out = line.pending, []
        for text in lines:
            line.pending = text
            while len(line.pending) >= PIECE:
                out.append(self._piece(line, stream, now))
            at = line.first_at or now
            out.append(
                b'{"log":"%s\\n","stream":"%s","time":"%s"}\n' % (escape(line.pending), stream.encode(), at)
            )
            line.first_at = b""
        line.pending = rest
        return b"".join(out)

    def finish(self, stream: str) -> None:
        """The stream has ended: write what is left of its last line, without a newline."""
        line = self._lines[stream]
        if line.pending:
            self._append(self._piece(line, stream, timestamp(time.time_ns())))
        line.first_at = b""

    def _append(self, entries: bytes) -> None:
        """Append whole lines. With a limit, each file ends with the line that reaches it."""
        while self._max_size and len(entries) > (room := max(0, self._max_size - self.size)):
            cut = entries.find(b"\n", max(0, room - 1)) + 1 if room else 0
            if cut == len(entries):
                break
            if cut:
                self._append_here(entries[:cut])
                entries = entries[cut:]
            if not self._rotate_now(entries):
                return
        self._append_here(entries)

    def _rotate_now(self, entries: bytes) -> bool:
        """Rotate; False when that failed, and `entries` are dropped for it."""
        try:
            self._rotate()
        except OSError as error:
            self._drop(entries, error)
            return False
        self._torn = b""  # its line ends in the file that is full
        return True

    def _append_here(self, entries: bytes) -> None:
        try:
            if self._torn:
                self._torn = self._torn[self._write(self._torn) :]
                if self._torn:
                    raise OSError("no room for the rest of a line")
            if self._fd < 0:
                self._open()
            done = self._write(entries)
        except OSError as error:
            self._drop(entries, error)
            return
        if done < len(entries):
            # Keep the rest of the line that is in the file in part, drop the ones behind it.
            end = entries.rfind(b"\n", 0, done) + 1
            if end < done:
                end = entries.index(b"\n", done) + 1
                self._torn = entries[done:end]
            if end < len(entries):
                self._drop(entries[end:], None)

    def _write(self, data: bytes) -> int:
        """Write until everything or nothing more goes; returns how much did. OSError when nothing does."""
        done = 0
        view = memoryview(data)
        while done < len(data):
            try:
                count = os.write(self._fd, view[done:])
            except OSError:
                if done:
                    break
                raise
            done += count
            self.size += count
        return done

    def _drop(self, entries: bytes, error: OSError | None) -> None:
        self.dropped_lines += entries.count(b"\n")
        now = time.monotonic()
        if now - self._warned > _WARN_EVERY or not self._warned:
            self._warned = now
            log.warning("log %s: %s; %d lines dropped so far", self.path, error or "full", self.dropped_lines)

    def _rotate(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if self._max_file > 1:
            for number in range(self._max_file - 1, 0, -1):
                source = self.path if number == 1 else f"{self.path}.{number - 1}"
                try:
                    os.rename(source, f"{self.path}.{number}")
                except FileNotFoundError:
                    continue
        else:
            # Readers may stand in the file, so that it is replaced rather than cut.
            os.unlink(self.path)
        self.generation += 1
        self._open(os.O_TRUNC)

    def file_of(self, generation: int) -> str:
        """The name that the file of `generation` has now, whether it still exists or not."""
        behind = self.generation - generation
        return self.path if behind == 0 else f"{self.path}.{behind}"

    @property
    def oldest(self) -> int:
        """The oldest generation that may exist."""
        return self.generation - (self._max_file - 1)

    def close(self) -> None:
        """Finish both streams and close the file."""
        for stream in STREAMS:
            self.finish(stream)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

"""Docker's json-file log, written by the shim itself.

One JSON object a line: {"log":"text\\n","stream":"stdout","time":"2006-01-02T15:04:05.999999999Z"}, escaped
as Go's encoder escapes for HTML. A line of more than 16 KiB is cut into pieces of that size, the pieces
without the newline, all with the time of the first. With a size limit the files are path, path.1, path.2 …,
newest first. Source: what moby's json-file driver writes.

Writing never waits and never fails (see disk_writer): what the disk does not take in time is dropped whole
lines at a time and counted, and an entry of stderr says so where they are missing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import errdefs

from shim_svc.bundle import Spec
from shim_svc.disk_writer import DiskWriter
from shim_svc.log_file import LogFile

PIECE = 16 * 1024  # bytes of one log entry at most
STREAMS = ("stdout", "stderr")

_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]")
_SURROGATES = re.compile("[\udc80-\udcff]")


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


class Entries:
    """Makes log entries out of the output of a process."""

    def __init__(self) -> None:
        self._lines = {stream: _Line() for stream in STREAMS}

    def unfinished(self, stream: str) -> bytes:
        """What has come of a line that is in no entry yet."""
        return self._lines[stream].pending

    def of(self, stream: str, data: bytes) -> bytes:
        """The entries of the lines that this output completes; the rest waits for its newline."""
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
        return out + pieces

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

    def last(self, stream: str) -> bytes:
        """The stream has ended: the entry of what is left of its last line, without a newline."""
        line = self._lines[stream]
        entry = self._piece(line, stream, timestamp(time.time_ns())) if line.pending else b""
        line.first_at = b""
        return entry


def missing(lines: int) -> bytes:
    """The entry that stands where lines were dropped."""
    text = b"%d lines of the log are missing here: the disk did not take them in time" % lines
    return b'{"log":"%s\\n","stream":"stderr","time":"%s"}\n' % (text, timestamp(time.time_ns()))


class JsonFileLog:
    """The log of one container's init process; OSError when the file cannot be opened.

    max_size: bytes after which the file is rotated, 0 for never. max_file: how many files there are at most.
    """

    def __init__(self, path: str, *, max_size: int = 0, max_file: int = 1) -> None:
        self._entries = Entries()
        self.writer = DiskWriter(LogFile(path, max_size=max_size, max_file=max_file), notice=missing)
        self.unfinished: Callable[[str], bytes] = self._entries.unfinished

    def write(self, stream: str, data: bytes) -> bool:
        """Take output of the process; False when no more should come until the writer has room."""
        entries = self._entries.of(stream, data)
        return self.writer.append(entries) if entries else True

    def finish(self, stream: str) -> None:
        """The stream has ended: write what is left of its last line."""
        entry = self._entries.last(stream)
        if entry:
            self.writer.append(entry)

    def close(self) -> None:
        """Finish both streams and close the file."""
        for stream in STREAMS:
            self.finish(stream)
        self.writer.close()


def open_log(spec: Spec) -> JsonFileLog | None:
    """The log that the annotations ask for, None for none; Internal when its file cannot be opened."""
    if spec.log_driver != "json-file":
        return None
    try:
        return JsonFileLog(spec.log_path, max_size=spec.log_max_size, max_file=spec.log_max_file)
    except OSError as error:
        raise errdefs.Internal(f"failed to open log {spec.log_path}: {error.strerror}") from error

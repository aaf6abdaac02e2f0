"""Making log entries out of what a process says: whole lines together, long lines in pieces.

A line of more than 16 KiB is cut into pieces of that size, the pieces without the newline, all with the time
of the first, as Docker does.
"""

from __future__ import annotations

import time
from typing import Protocol

from container_log.members import LAST_PART, PART, WHOLE, Piece, lines_of, pack_run, queued_runs
from container_log.run import PIECE, STREAMS, Damage, Run
from container_log.times import timestamp


class Encoder(Protocol):
    """How entries are put into bytes."""

    def encode(self, stream: str, text: bytes, time: int, part: int) -> bytes:
        """A run of lines, or a piece of one. time: nanoseconds since 1970; part: as in `members`."""

    def lines(self, data: bytes) -> int:
        """How many entries there are in such bytes."""

    def entries(self, data: bytes) -> list[Run | Damage]:
        """Such bytes, read again."""


class RunEncoder:
    """Runs as they are, each behind its description."""

    def encode(self, stream: str, text: bytes, time: int, part: int) -> bytes:
        """Description and text."""
        return pack_run(Piece(time, len(text), stream, part)) + text

    def lines(self, data: bytes) -> int:
        """How many entries these are."""
        return sum(lines_of(run, text) for run, text in queued_runs(data))

    def entries(self, data: bytes) -> list[Run | Damage]:
        """The runs."""
        return [Run(text, run.stream, timestamp(run.time).decode()) for run, text in queued_runs(data)]


class _Line:
    """The unfinished line of one stream."""

    __slots__ = ("first_at", "pending")

    def __init__(self) -> None:
        self.pending = b""
        self.first_at = 0  # time of the first piece, while pieces of this line have been written


class Entries:
    """Makes log entries out of the output of a process."""

    def __init__(self, encoder: Encoder) -> None:
        self._lines = {stream: _Line() for stream in STREAMS}
        self._encode = encoder.encode
        self.latest = 0
        """The latest time of any entry so far."""

    def unfinished(self, stream: str) -> bytes:
        """What has come of a line that is in no entry yet."""
        return self._lines[stream].pending

    def of(self, stream: str, data: bytes) -> bytes:
        """The entries of the lines that this output completes; the rest waits for its newline."""
        line = self._lines[stream]
        data = line.pending + data if line.pending else data
        cut = data.rfind(b"\n") + 1
        whole, line.pending = data[:cut], data[cut:]
        now = self._now()
        out = b""
        if whole:
            if line.first_at or (len(whole) > PIECE and max(map(len, whole.split(b"\n"))) >= PIECE):
                out = self._long_lines(line, stream, whole[:-1].split(b"\n"), now)
            else:
                out = self._encode(stream, whole, now, WHOLE)
        while len(line.pending) >= PIECE:
            out += self._piece(line, stream, now)
        return out

    def _now(self) -> int:
        now = time.time_ns()
        self.latest = max(self.latest, now)
        return now

    def _piece(self, line: _Line, stream: str, now: int) -> bytes:
        """The entry of the first 16 KiB of an unfinished line."""
        line.first_at = line.first_at or now
        part, line.pending = line.pending[:PIECE], line.pending[PIECE:]
        return self._encode(stream, part, line.first_at, PART)

    def _long_lines(self, line: _Line, stream: str, lines: list[bytes], now: int) -> bytes:
        """Entries of whole lines of which some are longer than one piece, or end a line that has begun."""
        rest, out = line.pending, []
        for text in lines:
            line.pending = text
            while len(line.pending) >= PIECE:
                out.append(self._piece(line, stream, now))
            part = LAST_PART if line.first_at else WHOLE
            out.append(self._encode(stream, line.pending + b"\n", line.first_at or now, part))
            line.first_at = 0
        line.pending = rest
        return b"".join(out)

    def last(self, stream: str) -> bytes:
        """The stream has ended: the entry of what is left of its last line, without a newline."""
        line = self._lines[stream]
        entry = self._piece(line, stream, self._now()) if line.pending else b""
        line.first_at = 0
        return entry

    def missing(self, lines: int) -> bytes:
        """The entry that stands where lines were dropped."""
        text = b"%d lines of the log are missing here: the disk did not take them in time\n" % lines
        return self._encode("stderr", text, self._now(), WHOLE)

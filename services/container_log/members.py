"""The framed format: a row of gzip members (RFC 1952), each with a checked description of itself.

`zcat` prints what the container said. A member's extra field has one subfield, "BL": its size, the numbers
of bytes and lines in it, where it stands in the whole text, the latest time, and for each run of lines its
time, length and stream; a CRC-32 over that. gzip's own CRC-32 covers the text. A torn or damaged member is
left out, for the next one is found by its first ten bytes.

It is the file format of the driver `local`, and what rotated files are compressed to.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

RUNS, JSON_LINES = 0, 1
"""Kinds of text: the container's own, with runs; the lines of a json-file log."""
SIGNATURE = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff"
MOST_RUNS = 4000  # an extra field holds 65535 bytes

_EXTRA = struct.Struct("<H2sH")  # its length, the subfield's name, the subfield's length
_FIXED = struct.Struct("<BBHIIIQQQI")  # …, CRC
_CRC = struct.Struct("<I")
_RUN = struct.Struct("<QIBB")
RUN_SIZE = _RUN.size
_TRAILER = struct.Struct("<II")
_BEFORE_FIXED = len(SIGNATURE) + _EXTRA.size
SMALLEST = _BEFORE_FIXED + _FIXED.size + 2 + _TRAILER.size
_VERSION = 1
_STREAMS = ("stdout", "stderr")


@dataclass(frozen=True, slots=True)
class Piece:
    """One run as it is described. time: nanoseconds since 1970. part: see `part_of_line`."""

    time: int
    length: int
    stream: str
    part: int = 0


@dataclass(frozen=True, slots=True)
class Member:
    """A member's description. size: bytes in the file; text: bytes of text, which begins at `start` of the
    whole text; origin: the inode of the file that this was compressed from, 0 for none.
    """

    kind: int
    size: int
    text: int
    lines: int
    start: int
    latest: int
    origin: int
    runs: tuple[Piece, ...]
    body: int  # where the compressed text begins

    @property
    def end(self) -> int:
        """Where its text ends in the whole text."""
        return self.start + self.text


def pack(
    text: bytes,
    runs: Sequence[Piece],
    *,
    kind: int = RUNS,
    start: int,
    latest: int,
    lines: int,
    origin: int = 0,
    level: int = 1,
) -> bytes:
    """One member. level: of zlib's compression, 0 for none."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = compressor.compress(text) + compressor.flush()
    table = b"".join(pack_run(run) for run in runs)
    length = _FIXED.size + len(table)
    size = _BEFORE_FIXED + length + len(body) + _TRAILER.size
    fixed = _FIXED.pack(_VERSION, kind, 0, size, len(text), lines, start, latest, origin, 0)[: -_CRC.size]
    return b"".join(
        (
            SIGNATURE,
            _EXTRA.pack(length + 4, b"BL", length),
            fixed,
            _CRC.pack(zlib.crc32(table, zlib.crc32(fixed))),
            table,
            body,
            _TRAILER.pack(zlib.crc32(text), len(text)),
        )
    )


def describe(data: bytes, at: int = 0) -> Member | None:
    """The description of the member that begins there, None when none does or it is not whole."""
    fixed_at = at + _BEFORE_FIXED
    table_at = fixed_at + _FIXED.size
    if not data.startswith(SIGNATURE, at) or table_at > len(data):
        return None
    extra, name, length = _EXTRA.unpack_from(data, at + len(SIGNATURE))
    end = fixed_at + length
    if name != b"BL" or extra != length + 4 or length < _FIXED.size or end > len(data):
        return None
    version, kind, _, size, text, lines, start, latest, origin, crc = _FIXED.unpack_from(data, fixed_at)
    table = data[table_at:end]
    if version != _VERSION or zlib.crc32(table, zlib.crc32(data[fixed_at : table_at - 4])) != crc:
        return None
    runs = tuple(
        Piece(time, count, _STREAMS[number & 1], part)
        for time, count, number, part in _RUN.iter_unpack(table)
    )
    return Member(kind, size, text, lines, start, latest, origin, runs, end - at)


def unpack(data: bytes, at: int, member: Member) -> bytes | None:
    """The text of a member that is whole in `data`; None when it is damaged."""
    end = at + member.size
    crc, length = _TRAILER.unpack_from(data, end - _TRAILER.size)
    try:
        text = zlib.decompress(
            data[at + member.body : end - _TRAILER.size], -zlib.MAX_WBITS, member.text or 1
        )
    except zlib.error:
        return None
    if length != len(text) or length != member.text or zlib.crc32(text) != crc:
        return None
    return text


# Runs by themselves, on their way to a file

WHOLE, PART, LAST_PART = 0, 1, 2
"""Whole lines; a piece of a line, without its end; the end of a line of which pieces came before."""


def pack_run(run: Piece) -> bytes:
    """What stands before a run's text in a queue, and in a member's table."""
    return _RUN.pack(run.time, run.length, _STREAMS.index(run.stream), run.part)


def unpack_run(data: bytes, at: int) -> Piece | None:
    """The description at `at`; None when it or its text is not whole."""
    if at + RUN_SIZE > len(data):
        return None
    time, length, number, part = _RUN.unpack_from(data, at)
    if at + RUN_SIZE + length > len(data):
        return None
    return Piece(time, length, _STREAMS[number & 1], part)


def queued_runs(data: bytes) -> list[tuple[Piece, bytes]]:
    """The whole runs of a queue, each with its text."""
    found, at = [], 0
    while (run := unpack_run(data, at)) is not None:
        at += RUN_SIZE
        found.append((run, data[at : at + run.length]))
        at += run.length
    return found


def lines_of(run: Piece, text: bytes) -> int:
    """How many entries a run counts for."""
    return text.count(b"\n") if run.part == WHOLE else 1

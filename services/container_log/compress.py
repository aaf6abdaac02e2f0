"""Compressing a complete log file: json-file's lines into gzip members, those of `local` into larger ones."""

from __future__ import annotations

import os
import re

from container_log import members
from container_log.member_file import MemberFile
from container_log.members import JSON_LINES, SIGNATURE, Piece, describe, pack, unpack
from container_log.times import nanoseconds

_TEXT = 1 << 20  # bytes of text in one member
_LEVEL = 6
_TIMES = re.compile(rb',"time":"([^"\\]*)"')


def compress(source: int, target: int) -> int:
    """Write what is in one file to another, compressed, and sync it; returns 0. OSError.

    Positions in the log hold in both (see `member_file`).
    """
    if os.pread(source, len(SIGNATURE), 0) == SIGNATURE:
        _merge(source, target)
    else:
        _pack_lines(source, target)
    os.fsync(target)
    return 0


def _write(target: int, data: bytes) -> None:
    while data:
        data = data[os.write(target, data) :]


def _pack_lines(source: int, target: int) -> None:
    inode, at = os.fstat(source).st_ino, 0
    while data := os.pread(source, _TEXT, at):
        end = data.rfind(b"\n") + 1
        if not end or len(data) < _TEXT:
            end = len(data)  # the last of it, or a record longer than all
        text = data[:end]
        lines = text.count(b"\n")
        member = pack(
            text, (), kind=JSON_LINES, start=at, latest=_latest(text), lines=lines, origin=inode, level=_LEVEL
        )
        _write(target, member)
        at += end


def _latest(text: bytes) -> int:
    """The latest of the times of these lines; the highest number there is when they cannot be read."""
    try:
        return max(nanoseconds(time.decode()) for time in set(_TIMES.findall(text)))
    except ValueError:
        return (1 << 64) - 1


def _merge(source: int, target: int) -> None:
    file = MemberFile(os.dup(source))
    inode, size = file.inode, file.size
    file.close()
    texts: list[bytes] = []
    runs: list[Piece] = []
    start = latest = lines = at = 0

    def flush() -> None:
        if texts:
            text = b"".join(texts)
            member = pack(text, runs, start=start, latest=latest, lines=lines, origin=inode, level=_LEVEL)
            _write(target, member)

    while at < size:
        head = os.pread(source, 1 << 16, at)
        member = describe(head)
        text = None
        if member is not None and at + member.size <= size:
            text = unpack(os.pread(source, member.size, at), 0, member)
        if member is None or text is None:
            # Damage is kept as it is: the readers of the log are to say so.
            flush()
            texts, runs, latest, lines = [], [], 0, 0
            end = _next(source, at + 1, size)
            _write(target, os.pread(source, end - at, at))
            at = end
            continue
        if texts and (
            len(runs) + len(member.runs) > members.MOST_RUNS or member.start - start + len(text) > _TEXT
        ):
            flush()
            texts, runs, latest, lines = [], [], 0, 0
        if not texts:
            start = member.start
        texts.append(text)
        runs += member.runs
        latest, lines = max(latest, member.latest), lines + member.lines
        at += member.size
    flush()


def _next(source: int, at: int, size: int) -> int:
    """Where the next member begins, the end when there is none."""
    while at < size:
        data = os.pread(source, 1 << 20, at)
        place = data.find(SIGNATURE)
        if place >= 0 and describe(os.pread(source, 1 << 16, at + place)) is not None:
            return at + place
        at += place + 1 if place >= 0 else max(1, len(data) - len(SIGNATURE))
    return size

"""What a log is read as: runs of lines that one stream said at one time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PIECE = 16 * 1024
"""Bytes of one log entry at most: a longer line is several, all but the last without a newline."""
STREAMS = ("stdout", "stderr")


@dataclass(frozen=True, slots=True)
class Run:
    """text: whole lines, or one piece of a line. time: RFC 3339."""

    text: bytes
    stream: str
    time: str
    attrs: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of the log that are no entry."""

    size: int

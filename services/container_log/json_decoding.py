"""Docker's json-file format, read: one JSON object a line.

Lines that came with one read of the container's output share their stream and time, so that all between
their texts is the same: such a run is read by a few searches over the whole of it, not line by line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from container_log.run import Damage, Run

_HEAD = b'{"log":"'
_TAIL = b'","stream":"'
#: The common record: nothing escaped but the line's end, no attributes. Anything else goes through the JSON
#: parser.
_PLAIN = rb'\{"log":"([^"\\\x00-\x1f]*)(\\n)?","stream":"(stdout|stderr)","time":"([^"\\\x00-\x1f]+)"\}'
_PLAIN_LINES = re.compile(_PLAIN + rb"\n")
_NARROW, _WIDE = 4 * 1024, 1 << 20  # bytes in which a run is looked for, growing while it fills them
_STRETCH = 8 * 1024  # bytes that are read line by line before a run is looked for again


def decode(data: bytes) -> Iterator[Run | Damage]:
    """The entries of whole lines, in their order, and what is damaged between them."""
    at, size, window = 0, len(data), _NARROW
    while at < size:
        found = _run(data, at, min(size, at + window))
        if found is None:
            end = data.find(b"\n", min(at + _STRETCH, size - 1)) + 1 or size
            yield from _lines(data[at:end])
            window = _NARROW
        else:
            run, end, filled = found
            yield run
            window = min(window * 4, _WIDE) if filled else _NARROW
        at = end


def _run(data: bytes, at: int, limit: int) -> tuple[Run, int, bool] | None:
    """The run of two and more lines that begins at `at`: it, its end, whether it may go on behind `limit`."""
    first = data.find(b"\n", at, limit)
    tail = data.rfind(_TAIL, at, first) if first >= 0 else -1
    if tail < 0 or not data.startswith(_HEAD, at) or data[tail - 2 : tail] != b"\\n":
        return None
    suffix = data[tail - 2 : first + 1]
    second = data.find(b"\n", first + 1, limit)
    if second < 0 or not data.endswith(suffix, first + 1, second + 1):
        return None
    last = data.rfind(suffix, first, limit)
    end = last + len(suffix)
    text = data[at + len(_HEAD) : last].replace(suffix + _HEAD, b"\n")
    filled = True
    # Quotes within a text are escaped: what looks like an entry's end is the end of another run's entry.
    stray = text.find(_TAIL)
    if stray >= 0:
        filled = False
        text = text[: max(0, text.rfind(b"\n", 0, stray))]
        lines = text.count(b"\n") + 1
        end = at + len(text) - (lines - 1) + lines * (len(_HEAD) + len(suffix))
    try:
        if b"\\" in text:
            whole = json.loads(b'"%s"' % text.replace(b"\n", b"\\n")).encode("utf-8", "surrogatepass")
        elif b'"' in text:
            return None
        else:
            whole = text
        common = json.loads(_HEAD + suffix[2:])
        return _entry(common, whole + b"\n"), end, filled
    except (ValueError, TypeError, KeyError):
        return None


def _lines(data: bytes) -> Iterator[Run | Damage]:
    place = 0
    for found in _PLAIN_LINES.finditer(data):
        if found.start() != place:
            yield from _odd_lines(data[place : found.start()])
        place = found.end()
        text, newline, stream, time = found.groups()
        yield Run(text + b"\n" if newline else text, stream.decode(), time.decode("ascii", "replace"))
    yield from _odd_lines(data[place:])


def _odd_lines(data: bytes) -> Iterator[Run | Damage]:
    for line in _split(data):
        yield from _line(line)


def _split(data: bytes) -> list[bytes]:
    """Lines with their newlines; unlike splitlines, by newlines only."""
    lines = [line + b"\n" for line in data.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return [line for line in lines if line]


def _line(line: bytes) -> Iterator[Run | Damage]:
    """The entry of one line; one that is whole behind a torn beginning is found."""
    try:
        document = json.loads(line)
        yield _entry(document, str(document["log"]).encode("utf-8", "surrogatepass"))
    except (ValueError, TypeError, KeyError, AttributeError):
        begin = line.rfind(_HEAD, 1)
        if begin > 0:
            yield Damage(begin)
            yield from _line(line[begin:])
        else:
            yield Damage(len(line))


def _entry(document: Any, text: bytes) -> Run:
    return Run(text, str(document.get("stream", "stdout")), str(document["time"]), document.get("attrs"))

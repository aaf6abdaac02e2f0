"""Reading a container's log back from journald (`--log-driver journald`)."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from container_log.reader import Format, LogOptions
from container_log.run import Damage, Run
from container_log.times import timestamp
from systemd import journal

_MOST = 512  # entries of one read
_SYNC = "/run/systemd/journal/io.systemd.journal"
_SYNC_WAIT = 2.0
#: Fields of every entry: what is left carries the container's labels and environment.
_KNOWN = frozenset(
    (
        *("MESSAGE", "MESSAGE_ID", "PRIORITY", "CODE_FILE", "CODE_LINE", "CODE_FUNC", "ERRNO"),
        *("SYSLOG_FACILITY", "SYSLOG_IDENTIFIER", "SYSLOG_PID", "SYSLOG_TIMESTAMP", "SYSLOG_RAW"),
        *("CONTAINER_NAME", "CONTAINER_ID", "CONTAINER_ID_FULL", "CONTAINER_TAG", "IMAGE_NAME"),
        *("CONTAINER_PARTIAL_MESSAGE", "CONTAINER_PARTIAL_ID", "CONTAINER_PARTIAL_ORDINAL"),
        *("CONTAINER_PARTIAL_LAST", "CONTAINER_LOG_EPOCH", "CONTAINER_LOG_ORDINAL"),
    )
)


def synchronise() -> None:
    """Wait until journald has stored what it was sent; blocks, but not for long. Where it does not answer,
    nothing.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(_SYNC_WAIT)
        sock.connect(_SYNC)
        sock.sendall(b'{"method":"io.systemd.Journal.Synchronize"}\0')
        while not (data := sock.recv(4096)).endswith(b"\0") and data:
            pass


class JournaldReader:
    """As `container_log.reader.LogReader`; a position is a cursor of the journal. path: a folder of journal
    files, the host's by default.
    """

    torn = 0

    def __init__(
        self, container: str, options: LogOptions, position: str = "", *, path: str | None = None
    ) -> None:
        self._format = Format(options)
        self._journal = journal.Reader(path=path, converters={"MESSAGE": _bytes})
        self._journal.add_match(CONTAINER_ID_FULL=container)
        self.position = position
        self._held: Mapping[str, Any] = {}
        if position:
            self._journal.seek_cursor(position)
            self._journal.get_next()  # the one that was read
        elif options.tail is not None:
            self._journal.seek_tail()
            # So many back, or the first there is; the next read begins behind it.
            entry = self._journal.get_previous(options.tail or 1)
            self._held = entry if options.tail else {}
        elif options.since:
            self._journal.seek_realtime(options.since // 1000 / 1_000_000)
        else:
            self._journal.seek_head()

    @property
    def done(self) -> bool:
        """No entry that is still to come can be wanted."""
        return self._format.done

    def read(self) -> tuple[bytes, bool]:
        """The next entries, formatted, and whether the end is reached for now."""
        self._journal.process()  # files that have come or gone
        found: list[Run | Damage] = []
        while len(found) < _MOST and (fields := self._held or self._journal.get_next()):
            self._held = {}
            found.append(_run(fields))
            self.position = fields["__CURSOR"]
        return self._format.of(found), not found

    def damage(self, size: int) -> bytes:
        """Journald says nothing of damage."""
        return b""

    def close(self) -> None:
        """Close the journal's files."""
        self._journal.close()


def _bytes(value: bytes) -> bytes:
    return value


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _run(fields: Mapping[str, Any]) -> Run:
    text = fields.get("MESSAGE", b"")
    whole = text if isinstance(text, bytes) else str(text).encode()
    part = _text(fields.get("CONTAINER_PARTIAL_MESSAGE", "")) == "true"
    if not part or _text(fields.get("CONTAINER_PARTIAL_LAST", "")) == "true":
        whole += b"\n"
    time = _text(fields.get("SYSLOG_TIMESTAMP", ""))
    if not time:
        at: datetime = fields["__REALTIME_TIMESTAMP"]
        time = timestamp(int(at.timestamp() * 1_000_000) * 1000).decode()
    stream = "stderr" if _text(fields.get("PRIORITY", "6")) == "3" else "stdout"
    attrs = {
        name: _text(value)
        for name, value in fields.items()
        if name not in _KNOWN and not name.startswith("_")
    }
    return Run(whole, stream, time, attrs)

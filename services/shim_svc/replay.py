"""Reading the json-file log from its beginning, for a client that asks for what has been (logs=1)."""

from __future__ import annotations

import json
import os

from shim_svc.logs import JsonFileLog

_CHUNK = 64 * 1024


class LogCursor:
    """A position in a log that is being written, files that have been rotated away included."""

    def __init__(self, log: JsonFileLog) -> None:
        self._log = log
        self._generation = log.oldest
        self._fd = -1
        self._rest = b""

    def read(self) -> list[tuple[str, bytes]] | None:
        """The next entries as (stream, output); None when the cursor has caught up with the file's end."""
        while True:
            if self._fd < 0 and not self._open():
                return None
            data = os.read(self._fd, _CHUNK)
            if data:
                lines = (self._rest + data).split(b"\n")
                self._rest = lines.pop()
                entries = [entry for line in lines if (entry := _entry(line)) is not None]
                if entries:
                    return entries
                continue
            if self._generation == self._log.generation:
                return None
            self.close()
            self._generation += 1
            self._rest = b""

    def _open(self) -> bool:
        """Open the file of the wanted generation, or of the next one that exists."""
        while self._generation <= self._log.generation:
            try:
                self._fd = os.open(self._log.file_of(self._generation), os.O_RDONLY | os.O_CLOEXEC)
                return True
            except FileNotFoundError:
                self._generation += 1
        self._generation = self._log.generation
        return False

    def close(self) -> None:
        """Close the file; `read` opens it from its beginning again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _entry(line: bytes) -> tuple[str, bytes] | None:
    """One line of the log; None for one that is damaged."""
    try:
        entry = json.loads(line)
        return str(entry["stream"]), str(entry["log"]).encode(errors="replace")
    except (ValueError, KeyError, TypeError):
        return None

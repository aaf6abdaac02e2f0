"""Reading the json-file log from its beginning, for a client that asks for what has been (logs=1)."""

from __future__ import annotations

import json
import os

from shim_svc.disk_writer import DiskWriter

_CHUNK = 64 * 1024
_DELETED = 16  # files that are held for a slow reader though the log has none of their names any more


class LogCursor:
    """A position in a log that is being written: files that have been rotated away, the file, and what is
    still on its way there.
    """

    def __init__(self, writer: DiskWriter) -> None:
        assert writer.file is not None
        self._writer = writer
        self._most = writer.file.max_file + _DELETED
        self._fds = [*writer.file.older(), os.dup(writer.file.fd)]
        self._offset = 0  # in the first of them
        self._rest = b""
        writer.on_rotation.append(self._rotated)

    def _rotated(self) -> None:
        """The last of the files is complete, and there is a new one."""
        assert self._writer.file is not None
        self._fds.append(os.dup(self._writer.file.fd))
        if len(self._fds) > self._most:
            os.close(self._fds.pop(1))  # the one that is being read is read to its end

    def read(self) -> list[tuple[str, bytes]] | None:
        """The next entries as (stream, output); None at the end of the file, and then `rest` is to follow."""
        while True:
            data = os.pread(self._fds[0], _CHUNK, self._offset)
            self._offset += len(data)
            if not data:
                if len(self._fds) == 1:
                    return None
                os.close(self._fds.pop(0))
                self._offset, self._rest = 0, b""
            elif entries := self._take(data):
                return entries

    def rest(self) -> list[tuple[str, bytes]]:
        """The entries that are still on their way to the file."""
        return self._take(self._writer.queued_behind(self._offset))

    def _take(self, data: bytes) -> list[tuple[str, bytes]]:
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        return [entry for line in lines if (entry := _entry(line)) is not None]

    def close(self) -> None:
        """Close the files; nothing can be read any more."""
        if self._fds:
            self._writer.on_rotation.remove(self._rotated)
        while self._fds:
            os.close(self._fds.pop())


def _entry(line: bytes) -> tuple[str, bytes] | None:
    """One line of the log; None for one that is damaged."""
    try:
        entry = json.loads(line)
        return str(entry["stream"]), str(entry["log"]).encode(errors="replace")
    except (ValueError, KeyError, TypeError):
        return None

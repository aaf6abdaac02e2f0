"""Log records of a shim to its standard error, without ever waiting for the reader.

Standard error may be journald's socket, a pipe or a file, shared with other processes, so that its
O_NONBLOCK flag must not be touched: a socket is written with MSG_DONTWAIT, anything else through a
description of our own.
"""

from __future__ import annotations

import logging
import os
import socket
import stat


class JournalHandler(logging.Handler):
    """Writes one line per record, or drops it and counts when the reader is slow or gone."""

    def __init__(self, fd: int = 2, *, identifier: str) -> None:
        super().__init__()
        self.dropped = 0
        self._sock: socket.socket | None = None
        self._fd = -1
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            self._sock = socket.socket(fileno=os.dup(fd))
        else:
            flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
            try:
                self._fd = os.open(f"/proc/self/fd/{fd}", flags)
            except OSError:  # not to be opened for writing again
                self._fd = os.open("/dev/null", flags)
        self.setFormatter(logging.Formatter(f"%(levelname)s {identifier}: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        data = (self.format(record) + "\n").encode(errors="replace")
        try:
            if self._sock is not None:
                self._sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            else:
                os.write(self._fd, data)
        except OSError:
            self.dropped += 1


def log_to(fd: int, *, identifier: str, debug: bool) -> None:
    """Send this process's log records to `fd`, in place of where they went."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    root.addHandler(JournalHandler(fd, identifier=identifier))
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)

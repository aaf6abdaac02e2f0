"""Log records of the nursery and its shims to standard error, without ever waiting for the reader.

Standard error may be journald's socket, a pipe or a file, shared with other processes, so that its
O_NONBLOCK flag must not be touched: a socket is written with MSG_DONTWAIT, anything else through a
description of our own.
"""

from __future__ import annotations

import logging
import os
import socket
import stat


class Journal(logging.Handler):
    """Writes one line per record, or drops it and counts when the reader is slow or gone.

    identifier: who the records are from; changed by a shim, which inherits its nursery's handler.
    """

    def __init__(self, fd: int, identifier: str) -> None:
        super().__init__()
        self.identifier = identifier
        self.dropped = 0
        self._sock: socket.socket | None = None
        if stat.S_ISSOCK(os.fstat(fd).st_mode):
            self._sock = socket.socket(fileno=os.dup(fd))
            self.fd = self._sock.fileno()
            """The descriptor that a child has to keep open."""
        else:
            flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC
            try:
                self.fd = os.open(f"/proc/self/fd/{fd}", flags)
            except OSError:  # not to be opened for writing again
                self.fd = os.open("/dev/null", flags)
        self.setFormatter(logging.Formatter("%(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, if that goes at once."""
        data = f"{self.identifier}: {self.format(record)}\n".encode(errors="replace")
        try:
            if self._sock is not None:
                self._sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            else:
                os.write(self.fd, data)
        except OSError:
            self.dropped += 1


def log_to(fd: int, identifier: str) -> Journal:
    """Send all log records of this process to `fd` from now on."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    journal = Journal(fd, identifier)
    root.addHandler(journal)
    root.setLevel(logging.INFO)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    return journal

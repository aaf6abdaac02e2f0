"""The runtime's log: one line per record, in the two formats of logrus that callers parse.

containerd reads the last record of level `error` from the JSON file to tell why a command failed.
"""

from __future__ import annotations

import os
import time

from errdefs import InvalidArgument

from runc_bin.document import quote, render
from runc_bin.output import emit


class Log:
    """Where records go: a file, opened at once and appended to, or standard error."""

    def __init__(self, path: str, form: str, *, debug: bool) -> None:
        if form not in ("", "text", "json"):
            raise InvalidArgument(f"invalid log-format: {form}")
        self._json = form == "json"
        self._debug = debug
        self._path = path
        self._fd = 2
        if path:
            flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o644)

    def write(self, level: str, message: str) -> None:
        """Write one record; `level` is logrus's word. Debug records only when asked for."""
        if level == "debug" and not self._debug:
            return
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._json:
            line = render({"level": level, "msg": message, "time": now}, compact=True)
        else:
            line = f"time={quote(now)} level={level} msg={quote(message)}"
        os.write(self._fd, (line + "\n").encode(errors="surrogateescape"))

    def warn(self, message: str) -> None:
        """Write a record of level `warning`."""
        self.write("warning", message)

    def fatal(self, message: str) -> None:
        """Write the error that ends the command, also to standard error when the log is a file."""
        self.write("error", message)
        if self._fd != 2:
            emit(message + "\n", 2)

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._fd != 2:
            os.close(self._fd)
            self._fd = 2

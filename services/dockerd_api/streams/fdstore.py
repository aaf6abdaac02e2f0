"""This process's side of the service manager's descriptor store (docs/contracts.md, Service manager).

A message to the manager is in its queue when `keep` returns, the descriptors with it: the kernel holds them
there, and the manager reads the queue before it looks after a main process that has ended. So what was kept
before a reply is passed to the next process whenever this one is killed, and no answer of the manager is
waited for: that would be a round trip on each reply.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence

from systemd import daemon

log = logging.getLogger(__name__)

#: The names of all passed descriptors are one string of the next process's environment, at most 128 KiB
#: (execve(2)).
_MOST_NAME_BYTES = 100 * 1024


class FdStore:
    """What the manager keeps for this process. `passed` are the descriptors that it passed, by name."""

    def __init__(self, passed: Mapping[str, Sequence[int]] | None = None) -> None:
        self._enabled = bool(os.environ.get("NOTIFY_SOCKET"))
        self._names: dict[str, int] = {}
        self._name_bytes = 0
        self._full = False
        self.passed: dict[str, list[int]] = {}
        for name, fds in (passed or {}).items():
            if name == "connstate" or name.startswith(("stream-", "conn-")):
                self.passed[name] = list(fds)
                self._count(name, len(fds))

    def keep(self, name: str, fds: Sequence[int]) -> bool:
        """Have the manager keep copies under `name`; false when there is none, or no room."""
        if not self._enabled:
            return False
        if self._name_bytes + len(fds) * (len(name) + 1) > _MOST_NAME_BYTES:
            if not self._full:
                log.warning("the descriptor store is full; further connections end when this process does")
            self._full = True
            return False
        try:
            kept = bool(daemon.notify(f"FDSTORE=1\nFDNAME={name}", fds=list(fds)))
        except OSError as error:
            log.warning("the service manager did not take %s: %s", name, error)
            return False
        if kept:
            self._count(name, len(fds))
        return kept

    def forget(self, name: str) -> None:
        """Have the manager close what it keeps under `name`."""
        if name not in self._names:
            return
        self.ended(name)
        try:
            daemon.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
        except OSError as error:
            log.warning("the service manager was not told to close %s: %s", name, error)

    def ended(self, name: str) -> None:
        """The manager closes it by itself: a socket that was shut down hangs up."""
        self._name_bytes -= self._names.pop(name, 0) * (len(name) + 1)
        self._full = False

    def _count(self, name: str, fds: int) -> None:
        self._names[name] = self._names.get(name, 0) + fds
        self._name_bytes += fds * (len(name) + 1)

"""The service manager's protocol, as far as the nursery needs it: sd_notify(3) and sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

_FIRST = 3


def listen_fds(environ: MutableMapping[str, str]) -> dict[str, list[int]]:
    """Descriptors that the service manager passed, by name; the variables are taken out of `environ`.

    Empty when there are none, or when they were meant for another process. Each is closed on exec from now
    on.
    """
    pid = environ.pop("LISTEN_PID", "")
    count = environ.pop("LISTEN_FDS", "0")
    names = environ.pop("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[int]] = {}
    if pid != str(os.getpid()):
        return found
    for index in range(int(count)):
        os.set_inheritable(_FIRST + index, False)
        name = names[index] if index < len(names) else "unknown"
        found.setdefault(name, []).append(_FIRST + index)
    return found


class Notifier:
    """Sends states to $NOTIFY_SOCKET; does nothing where there is none, or where it does not answer."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        usec = environ.pop("WATCHDOG_USEC", "")
        pid = environ.pop("WATCHDOG_PID", "")
        wanted = usec.isdigit() and pid in ("", str(os.getpid()))
        self.watchdog: float = int(usec) / 1e6 if wanted else 0.0
        """Seconds within which the manager wants to hear WATCHDOG=1; 0 when it does not."""

    def send(self, *states: str) -> None:
        """Send assignments such as READY=1."""
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            try:
                sock.setblocking(False)
                sock.sendto("\n".join(states).encode(), self._address)
            except OSError:
                return  # a service manager that is gone or busy must not hold us up

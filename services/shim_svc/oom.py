"""Noticing that processes of the container were killed for memory."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from runc_bin.libcontainer.cgroups.oom import OomEvents, watch_v1, watch_v2

from shim_svc.bundle import read_file

log = logging.getLogger(__name__)

_ROOT = "/sys/fs/cgroup"


def watch(pid: int) -> OomEvents | None:
    """Events of the memory cgroup that process `pid` is in; None where there is none of its own."""
    try:
        text = os.fsdecode(read_file(f"/proc/{pid}/cgroup"))
        lines = [line.split(":", 2) for line in text.splitlines()]
        for _, controllers, path in lines:
            if "memory" in controllers.split(",") and path != "/":
                return watch_v1(f"{_ROOT}/memory{path}")
        for number, controllers, path in lines:
            if (
                number == "0"
                and not controllers
                and path != "/"
                and os.path.exists(f"{_ROOT}{path}/memory.events")
            ):
                return watch_v2(_ROOT + path)
    except OSError as error:
        log.warning("out-of-memory events of process %d: %s", pid, error)
    return None


class OomWatch:
    """Counts memory kills of one task's container; `killed` is called for each time that the count rises."""

    def __init__(self, pid: int, killed: Callable[[], None]) -> None:
        self._events = watch(pid)
        self._killed = killed
        self._kills = 0
        if self._events is not None:
            asyncio.get_running_loop().add_reader(self._events.fileno(), self.check)

    @property
    def seen(self) -> bool:
        """Whether any process was killed for memory."""
        return self._kills > 0

    def check(self) -> None:
        """Look at the count now; also called when the kernel reports an event."""
        if self._events is None:
            return
        kills = self._events.kills()
        if kills is None:
            self.close()
        elif kills > self._kills:
            self._kills = kills
            self._killed()

    def close(self) -> None:
        """Stop watching."""
        if self._events is not None:
            asyncio.get_running_loop().remove_reader(self._events.fileno())
            self._events.close()
            self._events = None

"""One process of a container as the shim keeps it: init, or one exec. A closed list of states."""

from __future__ import annotations

import asyncio
import re
from enum import Enum

import errdefs

from shim_svc.attach import Attachments
from shim_svc.reaper import Exit
from shim_svc.stdio import ProcessIO, Stdio

_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-]+[A-Za-z0-9]+)*\Z")
_LONGEST = 128


class Status(Enum):
    """Where a process is in its life; the values are containerd's words."""

    CREATING = "creating"
    CREATED = "created"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    DELETED = "deleted"


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.CREATING: frozenset({Status.CREATED, Status.DELETED}),
    Status.CREATED: frozenset({Status.STARTING, Status.STOPPED, Status.DELETED}),
    Status.STARTING: frozenset({Status.RUNNING, Status.CREATED, Status.STOPPED}),
    Status.RUNNING: frozenset({Status.PAUSED, Status.STOPPED}),
    Status.PAUSED: frozenset({Status.RUNNING, Status.STOPPED}),
    Status.STOPPED: frozenset({Status.DELETED}),
    Status.DELETED: frozenset(),
}


def check_identifier(what: str, text: str) -> None:
    """InvalidArgument unless `text` can be a file name and a word of a command line."""
    if len(text) > _LONGEST or not _IDENTIFIER.match(text):
        raise errdefs.InvalidArgument(f"{what} {text!r} is not an identifier")


class Process:
    """exec_id is empty for init. `exit` is set, and `exited` after it, when the process is over."""

    def __init__(self, exec_id: str, stdio: Stdio, fields: tuple[str, str, str]) -> None:
        self.exec_id = exec_id
        self.stdio = stdio
        self.fields = fields
        """stdin, stdout and stderr as they were asked for."""
        self.status = Status.CREATING
        self.pid = 0
        self.io: ProcessIO | None = None
        self.attachments: Attachments | None = None
        self.exit: Exit | None = None
        self.exited = asyncio.Event()
        self.size: tuple[int, int] | None = None

    def become(self, status: Status) -> None:
        """Change the state; Internal for a transition that there is none of."""
        if status not in TRANSITIONS[self.status]:
            raise errdefs.Internal(f"invalid state transition {self.status.value} to {status.value}")
        self.status = status

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self.status in (Status.STARTING, Status.RUNNING, Status.PAUSED)

    def need(self, action: str, *allowed: Status) -> None:
        """FailedPrecondition unless the process is in one of these states."""
        if self.status not in allowed:
            raise errdefs.FailedPrecondition(f"cannot {action} a {self.status.value} process")

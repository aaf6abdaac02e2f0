"""The durable record of how a container's init process ended: `<container-dir>/exit.json`.

It is written as exit.json.new, synced, and renamed, before anyone is told. The sync makes the file durable
under one of the two names (a power cut may undo the rename), so that one sync is enough: readers of records
after an unclean boot use `read`, which knows both.
"""

from __future__ import annotations

import calendar
import errno
import json
import os
import time
from dataclasses import dataclass

from linux.crashpoints import crashpoint

from shim_svc.bundle import read_file

NAME = "exit.json"
_NEW = NAME + ".new"


@dataclass(frozen=True)
class ExitRecord:
    """Times are RFC 3339 with nanoseconds, UTC. `run` counts the container's tasks, 0 first."""

    container_id: str
    pid: int
    exit_status: int
    exited_at: str
    started_at: str
    oom_killed: bool
    run: int


def timestamp(ns: int) -> str:
    """RFC 3339 with nine digits, UTC; empty for 0. ns: nanoseconds since 1970."""
    if not ns:
        return ""
    seconds, rest = divmod(ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09}Z"


def parse_timestamp(text: str) -> int:
    """The nanoseconds since 1970 that `timestamp` made the text of."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    return calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S")) * 1_000_000_000 + int(fraction or 0)


def encode(record: ExitRecord) -> bytes:
    """The record as it is in the file."""
    return json.dumps(vars(record)).encode()


def write(folder: str, data: bytes) -> None:
    """Make an encoded record durable; OSError when the disk refuses it."""
    fd = os.open(f"{folder}/{_NEW}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        if os.write(fd, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(fd)
    finally:
        os.close(fd)
    crashpoint("writer.record.synced")
    os.rename(f"{folder}/{_NEW}", f"{folder}/{NAME}")


def read(folder: str) -> ExitRecord | None:
    """The latest whole record of the container, or None."""
    found: list[ExitRecord] = []
    for name in (NAME, _NEW):
        try:
            found.append(ExitRecord(**json.loads(read_file(f"{folder}/{name}").decode())))
        except (OSError, ValueError, TypeError):
            continue  # absent, or cut off by the crash that the other one survived
    return max(found, key=lambda record: record.run, default=None)

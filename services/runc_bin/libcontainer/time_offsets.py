"""A time namespace of the container's own, with its clocks set off against the host's: time_namespaces(7)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from errdefs import FailedPrecondition, InvalidArgument
from linux import syscalls

from runc_bin.libcontainer.failures import step
from runc_bin.libcontainer.fields import get, number
from runc_bin.libcontainer.spec import Namespace

_CLOCKS = ("monotonic", "boottime")
_OFFSETS = "/proc/self/timens_offsets"
_SECONDS = 2**63 - 1


def read(section: Mapping[str, Any], namespace: Namespace | None) -> dict[str, tuple[int, int]]:
    """The checked `linux.timeOffsets`: clock to (seconds, nanoseconds).

    InvalidArgument as for every field, and for offsets without a namespace to set them in;
    FailedPrecondition on a kernel without time namespaces.
    """
    items = get(section, "timeOffsets", dict, {}, "linux.")
    given = section.get("timeOffsets") is not None
    if namespace is None:
        raise InvalidArgument(
            "linux.timeOffsets: time namespace offsets specified, "
            "but time namespace isn't enabled in the config"
        )
    if not os.path.exists(_OFFSETS):
        raise FailedPrecondition("time namespaces aren't enabled in the kernel")
    if given and namespace.path:
        raise InvalidArgument(
            "linux.timeOffsets: time namespace enabled, but both namespace path and time offsets specified"
            " -- you may only provide one"
        )
    found = {}
    for clock in items:
        if clock not in _CLOCKS:
            raise InvalidArgument(f"linux.timeOffsets: there is no clock {clock!r} to set off")
        offset, where = get(items, clock, dict, {}, "linux.timeOffsets."), f"linux.timeOffsets.{clock}."
        seconds = number(offset, "secs", where, -_SECONDS, _SECONDS)
        found[clock] = (seconds, number(offset, "nanosecs", where, 0, 999_999_999))
    return found


def open_own() -> int:
    """A descriptor to write this process's offsets by.

    Who opens it needs the rights, not who writes: user namespaces that are entered in between do no harm.
    """
    return os.open(_OFFSETS, os.O_WRONLY | os.O_CLOEXEC)


def make(fd: int, offsets: Mapping[str, tuple[int, int]]) -> None:
    """Make a time namespace for this process's children; `fd` is from `open_own`, and is closed."""
    with step("failed to update timens_offsets"):
        try:
            syscalls.unshare(syscalls.CLONE_NEWTIME)
            if offsets:
                lines = [f"{clock} {seconds} {rest}\n" for clock, (seconds, rest) in offsets.items()]
                os.write(fd, "".join(lines).encode())
        finally:
            os.close(fd)


def enter(offsets: Mapping[str, tuple[int, int]]) -> None:
    """Make a time namespace and go into it, for which this process must have one thread."""
    make(open_own(), offsets)
    fd = os.open("/proc/self/ns/time_for_children", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(fd, syscalls.CLONE_NEWTIME)
    finally:
        os.close(fd)

"""`update`: new limits for a container that runs."""

from __future__ import annotations

import re
import sys
from typing import Any

from errdefs import FailedPrecondition, InvalidArgument

from runc_bin.cli import Context
from runc_bin.libcontainer import container, fields, state
from runc_bin.libcontainer.cgroups import resources as limits
from runc_bin.log import Log

# flag → (section, field) of linux.resources
_NUMBERS = {
    "cpu-period": ("cpu", "period"),
    "cpu-quota": ("cpu", "quota"),
    "cpu-burst": ("cpu", "burst"),
    "cpu-share": ("cpu", "shares"),
    "cpu-rt-period": ("cpu", "realtimePeriod"),
    "cpu-rt-runtime": ("cpu", "realtimeRuntime"),
    "cpu-idle": ("cpu", "idle"),
    "blkio-weight": ("blockIO", "weight"),
    "pids-limit": ("pids", "limit"),
}
_TEXTS = {"cpuset-cpus": ("cpu", "cpus"), "cpuset-mems": ("cpu", "mems")}
_SIZES = {
    "memory": ("memory", "limit"),
    "memory-swap": ("memory", "swap"),
    "memory-reservation": ("memory", "reservation"),
    "kernel-memory": ("memory", "kernel"),
    "kernel-memory-tcp": ("memory", "kernelTCP"),
}
_RDT = {
    "l3-cache-schema": "Intel RDT/CAT: l3 cache schema is not enabled",
    "mem-bw-schema": "Intel RDT/MBA: memory bandwidth schema is not enabled",
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)(?:i?b)?", re.IGNORECASE | re.ASCII)


def parse_size(flag: str, text: str) -> int:
    """Bytes of a size as Docker's units have it: `64m` and `64MiB` are binary, -1 stands for no limit."""
    if text == "-1":
        return -1
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidArgument(f"invalid value for {flag}: invalid size: '{text}'")
    number, unit = match.groups()
    return int(float(number) * 1024 ** " kmgtp".index(unit.lower() or " "))


def _parse_number(flag: str, text: str) -> int:
    if not re.fullmatch(r"[+-]?\d+", text, re.ASCII):
        raise InvalidArgument(f"invalid value for {flag}: {text!r} is not a whole number")
    return int(text)


def from_flags(context: Context) -> dict[str, dict[str, Any]]:
    """The `linux.resources` object that the flags describe; InvalidArgument for a value that is none."""
    found: dict[str, dict[str, Any]] = {}
    for flag, (section, field) in (_NUMBERS | _TEXTS | _SIZES).items():
        if not (text := context.text(flag)):
            continue
        value: int | str = text
        if flag in _NUMBERS:
            value = _parse_number(flag, text)
        elif flag in _SIZES:
            value = parse_size(flag, text)
        found.setdefault(section, {})[field] = value
    return found


def _resources(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise InvalidArgument("resources must be an object")
    return document


def run(context: Context, log: Log) -> int:
    record = state.load_state(context.root, context.args[0])
    source = context.text("resources")
    if source:
        path = f"/proc/self/fd/{sys.stdin.fileno()}" if source == "-" else source
        resources = fields.load_json(path, _resources, f"open {source}: no such file or directory")
    else:
        resources = from_flags(context)
    for flag, message in _RDT.items():
        if context.text(flag):
            raise FailedPrecondition(message)
    if container.status(context.root, record) == "stopped":
        raise FailedPrecondition(container.NOT_RUNNING)
    for note in limits.ignored(resources):
        log.write("warning", note)
    container.manager_of(record).update(resources)
    return 0

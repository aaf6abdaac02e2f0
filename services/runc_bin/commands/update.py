"""`update`: new limits for a container that runs."""

from __future__ import annotations

import sys
from typing import Any

from errdefs import FailedPrecondition, InvalidArgument

from runc_bin.cli import Context
from runc_bin.libcontainer import container, fields, state
from runc_bin.log import Log


def _resources(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise InvalidArgument("resources must be an object")
    return document


def run(context: Context, _log: Log) -> int:
    source = context.text("resources")
    if not source:
        raise InvalidArgument("update needs --resources")
    path = f"/proc/self/fd/{sys.stdin.fileno()}" if source == "-" else source
    resources = fields.load_json(path, _resources, f"open {source}: no such file or directory")
    record = state.load_state(context.root, context.args[0])
    if container.status(context.root, record) == "stopped":
        raise FailedPrecondition(container.NOT_RUNNING)
    container.manager_of(record).update(resources)
    return 0

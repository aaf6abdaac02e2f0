"""`start`."""

from __future__ import annotations

from runc_bin.cli import Context
from runc_bin.libcontainer import container, state
from runc_bin.log import Log


def run(context: Context, log: Log) -> int:
    container.start(context.root, state.load_state(context.root, context.args[0]), warn=log.warn)
    return 0

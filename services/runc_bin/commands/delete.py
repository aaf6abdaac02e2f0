"""`delete`."""

from __future__ import annotations

from runc_bin.cli import Context
from runc_bin.libcontainer import container
from runc_bin.log import Log


def run(context: Context, log: Log) -> int:
    container.delete(context.root, context.args[0], force=context.given("force"), warn=log.warn)
    return 0

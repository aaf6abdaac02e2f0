"""`state`."""

from __future__ import annotations

from typing import Any

from runc_bin.cli import Context
from runc_bin.document import render_indented
from runc_bin.libcontainer import container
from runc_bin.libcontainer.state import State, load_state
from runc_bin.log import Log
from runc_bin.output import emit


def describe(root: str, record: State) -> dict[str, Any]:
    """The object that `state` and `list` print."""
    status = container.status(root, record)
    return {
        "ociVersion": record.oci_version,
        "id": record.id,
        "pid": 0 if status == "stopped" else record.init_process_pid,
        "status": status,
        "bundle": record.bundle,
        "rootfs": record.rootfs,
        "created": record.created,
        **({"annotations": dict(record.annotations)} if record.annotations else {}),
        "owner": "",
    }


def run(context: Context, _log: Log) -> int:
    document = describe(context.root, load_state(context.root, context.args[0]))
    emit(render_indented(document, 2))
    return 0

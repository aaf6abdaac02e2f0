"""`ps`: the container's processes, as numbers or by the host's ps(1)."""

from __future__ import annotations

import json

from errdefs import Internal, InvalidArgument

from runc_bin.cli import Context
from runc_bin.libcontainer import container, state
from runc_bin.log import Log
from runc_bin.output import emit


def run(context: Context, _log: Log) -> int:
    form = context.text("format")
    if form not in ("table", "json"):
        raise InvalidArgument("invalid format option")
    pids = container.manager_of(state.load_state(context.root, context.args[0])).pids()
    if form == "json":
        emit(json.dumps(pids or None) + "\n")
        return 0
    import subprocess

    arguments = context.args[1:] or ["-ef"]
    done = subprocess.run(["ps", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Internal(f"exit status {done.returncode}: {done.stdout}{done.stderr}")
    title, *lines = done.stdout.splitlines()
    columns = title.split()
    if "PID" not in columns:
        raise InvalidArgument("couldn't find PID field in ps output")
    column = columns.index("PID")
    wanted = {str(pid) for pid in pids}
    kept = [line for line in lines if (line.split()[column : column + 1] or [""])[0] in wanted]
    emit("\n".join([title, *kept]) + "\n")
    return 0

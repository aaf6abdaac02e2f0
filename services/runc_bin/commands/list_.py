"""`list`."""

from __future__ import annotations

import os

from errdefs import BuoyError, InvalidArgument, NotFound

from runc_bin.cli import Context, default_root
from runc_bin.commands.state import describe
from runc_bin.document import render
from runc_bin.libcontainer.state import load_state
from runc_bin.log import Log
from runc_bin.output import emit


def run(context: Context, log: Log) -> int:
    form = context.text("format")
    if form not in ("table", "json"):
        raise InvalidArgument("invalid format option")
    root = context.root
    try:
        names = sorted(
            entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("@")
        )
    except FileNotFoundError:
        if root != default_root():
            raise NotFound(f"open {root}: no such file or directory") from None
        names = []
    found = []
    for name in names:
        try:
            item = describe(root, load_state(root, name))
        except BuoyError as error:
            log.write("warning", f"load container {name}: {error.message}")
            continue
        item["owner"] = _owner(os.stat(os.path.join(root, name)).st_uid)
        found.append(item)
    if context.given("quiet"):
        emit("".join(f"{item['id']}\n" for item in found))
    elif form == "json":
        emit(render(found or None) + "\n")
    else:
        rows = [("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")]
        rows += [(i["id"], str(i["pid"]), i["status"], i["bundle"], i["created"], i["owner"]) for i in found]
        widths = [max(12, *(len(row[column]) + 3 for row in rows)) for column in range(5)]
        for row in rows:
            line = "".join(cell.ljust(width) for cell, width in zip(row[:5], widths, strict=True))
            emit(line + row[5] + "\n")
    return 0


def _owner(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"

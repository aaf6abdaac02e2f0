"""`spec`."""

from __future__ import annotations

import os

from errdefs import AlreadyExists

from runc_bin.cli import Context
from runc_bin.document import render_indented
from runc_bin.libcontainer import spec_document
from runc_bin.log import Log


def run(context: Context, _log: Log) -> int:
    document = spec_document.default()
    if context.given("rootless"):
        document = spec_document.rootless(document, os.geteuid(), os.getegid())
    path = os.path.join(context.text("bundle") or ".", "config.json")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except FileExistsError:
        raise AlreadyExists("File config.json exists. Remove it first") from None
    with os.fdopen(fd, "w") as file:
        file.write(render_indented(document, "\t"))
    return 0

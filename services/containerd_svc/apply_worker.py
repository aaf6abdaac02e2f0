"""`python -m containerd_svc.apply_worker`: unpack one layer in a process of its own.

Reads one JSON object from standard input, {"blob", "target", "lower", "overlay", "sync"}, and writes one to
standard output: {"digest", "size", "unpacked", "made"} of the uncompressed stream, or {"error": "archive" |
"disk", "message"}. "made" are folders that the archive did not name, null when they are very many. With
{"adopt": [folders], "target", "lower"} it gives such folders their attributes (layer.adopt). It is a process
so that it can chroot, and so that hashing and unpacking leave the daemon's interpreter alone.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from linux import syscalls

from containerd_svc.layer import Unpacker, adopt
from containerd_svc.syncfs import sync_file_system
from containerd_svc.tarstream import BadArchive, Stream, decompressed

_PR_SET_PDEATHSIG = 1
_MOST_MADE = 4096
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOMEM)


def main() -> int:
    """Exit status 0 whenever an answer was written."""
    syscalls.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody would wait for the answer
    request = json.load(sys.stdin)
    os.umask(0)
    try:
        answer = _adopt(request) if "adopt" in request else _apply(request)
    except BadArchive as error:
        answer = {"error": "archive", "message": str(error)}
    except OSError as error:
        kind = "disk" if error.errno in _DISK else "failed"
        answer = {"error": kind, "message": str(error)}
    json.dump(answer, sys.stdout)
    return 0


def _apply(request: dict[str, Any]) -> dict[str, Any]:
    # Everything from outside is opened before the chroot; nothing is imported or looked up after it.
    lower = _opened(request["lower"])
    with open(request["blob"], "rb", buffering=0) as file:
        stream = Stream(decompressed(file))
        _enter(request["target"])
        unpacker = Unpacker(overlay=request["overlay"], lower=lower)
        unpacker.unpack(stream)
    if request["sync"]:
        sync_file_system("/")
    made = list(unpacker.made) if len(unpacker.made) <= _MOST_MADE else None
    return {"digest": stream.digest, "size": stream.position, "unpacked": unpacker.size, "made": made}


def _adopt(request: dict[str, Any]) -> dict[str, Any]:
    lower = _opened(request["lower"])
    _enter(request["target"])
    adopt(request["adopt"], lower)
    return {}


def _opened(paths: Sequence[str]) -> list[int]:
    return [os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) for path in paths]


def _enter(target: str) -> None:
    os.chdir(target)
    os.chroot(".")


if __name__ == "__main__":
    sys.exit(main())

"""`python -m dockerd_api.engine.export_worker`: write a file tree as a tar in a process of its own.

Reads one JSON object from standard input, {"layers", "place"}: the folders of the tree's layers, the topmost
first, and an empty folder to mount at. Writes the archive to standard output; exit status 1 and a line on
standard error when it cannot. It is a process so that it can have mounts that nobody else sees, and chroot.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import sys

from linux import layer_view, syscalls
from storage.tree_tar import Changed, TreeTar

_PR_SET_PDEATHSIG = 1
_BUFFER = 1024 * 1024
_ROOT = "/tree"


def main() -> int:
    """The exit status."""
    syscalls.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody would read the archive
    request = json.load(sys.stdin)
    try:
        layer_view.enter(request["place"], {"tree": request["layers"]})
        with open(1, "wb", buffering=_BUFFER, closefd=False) as out:
            tar = TreeTar(_ROOT, out, pad=True)
            _write(tar, "")
            tar.end()
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _write(tar: TreeTar, folder: str) -> None:
    """All that is below the folder, in the order of names. What a running container takes away meanwhile is
    left out.
    """
    pending = [folder]
    while pending:
        path = pending.pop()
        try:
            facts = os.lstat(f"{_ROOT}/{path}")
            if path:
                tar.entry(path, facts)
            below = sorted(os.listdir(f"{_ROOT}/{path}")) if stat.S_ISDIR(facts.st_mode) else []
        except (FileNotFoundError, NotADirectoryError, Changed):
            continue
        pending += [f"{path}/{name}" if path else name for name in reversed(below)]


if __name__ == "__main__":
    sys.exit(main())

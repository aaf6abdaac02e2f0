"""`python -m containerd_svc.diff_worker`: make one layer in a process of its own.

Reads one JSON object from standard input, {"lower", "upper", "place", "compression", "latest", "answer"}:
the folders of both trees' layers, the topmost first; an empty folder to mount at; "", "gzip" or "zstd"; the
newest time in seconds or null; the descriptor that takes the answer. Writes the layer to standard output, and
at the end {"digest", "size"} of the uncompressed stream, or {"error": "failed", "message"}, to `answer`. It
is a process so that it can have mounts that nobody else sees, and chroot.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
from typing import Any, BinaryIO, cast

import zstandard
from isal import igzip
from linux import layer_view, syscalls

from containerd_svc import changes
from containerd_svc.pack import Packer

_PR_SET_PDEATHSIG = 1
_BUFFER = 1024 * 1024
_GZIP_LEVEL = 2  # of isal's 0 to 3: within a few per cent of zlib's default size


class _Plain:
    """No compression."""

    def __init__(self, out: BinaryIO) -> None:
        self.write = out.write

    def close(self) -> None:
        """Nothing is held back."""


class _Digested:
    """Passes on what is written, and keeps digest and size of it."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.size += len(data)
        return self._out.write(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._hash.hexdigest()}"


def main() -> int:
    """Exit status 0 whenever an answer was written."""
    syscalls.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody would read the layer
    request = json.load(sys.stdin)
    try:
        answer = _make(request)
    except OSError as error:
        answer = {"error": "failed", "message": str(error)}
    os.write(request["answer"], json.dumps(answer).encode())
    return 0


def _make(request: dict[str, Any]) -> dict[str, Any]:
    lower, upper = request["lower"], request["upper"]
    trees = {"lower": lower, "upper": upper}
    if lower and upper[1:] == lower:
        trees["top"] = upper[:1]
    layer_view.enter(request["place"], trees)
    root, found = "/upper", None
    if "top" in trees:
        with contextlib.suppress(changes.NotPlain):
            root, found = "/top", changes.of_upper("/top")
    with open(1, "wb", buffering=_BUFFER, closefd=False) as out:
        squeezed = _compressor(out, request["compression"])
        plain = _Digested(squeezed)
        Packer(root, cast(BinaryIO, plain), latest=request["latest"]).pack(
            changes.of_trees("/lower", "/upper") if found is None else found
        )
        squeezed.close()
    return {"digest": plain.digest, "size": plain.size}


def _compressor(out: BinaryIO, kind: str) -> BinaryIO:
    if kind == "gzip":
        return cast(BinaryIO, igzip.IGzipFile("", "wb", _GZIP_LEVEL, out, mtime=0))  # type: ignore[no-untyped-call]
    if kind == "zstd":
        return cast(BinaryIO, zstandard.ZstdCompressor().stream_writer(out, closefd=False))
    return cast(BinaryIO, _Plain(out))


if __name__ == "__main__":
    sys.exit(main())

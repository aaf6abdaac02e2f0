"""Hostile images: the busybox tree with entries put in or replaced; and the host's Python for probes."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from tests.support.busybox import busybox_rootfs_tar
from tests.support.engine import Engine

Entry = tuple[tarfile.TarInfo, bytes]

_TREES = [path for path in ("/usr", "/lib", "/lib64", sys.base_prefix) if os.path.isdir(path)]
# Options of `docker run` that give a container of any image the host's Python and its libraries, read-only.
WITH_PYTHON = tuple(word for path in dict.fromkeys(_TREES) for word in ("-v", f"{path}:{path}:ro"))
PYTHON = os.path.realpath(sys.executable)


def _entry(name: str, kind: bytes, mode: int, data: bytes = b"", link: str = "") -> Entry:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size, info.linkname = kind, mode, len(data), link
    return info, data


def file(name: str, data: bytes | str, mode: int = 0o644, uid: int = 0, gid: int = 0) -> Entry:
    entry = _entry(name, tarfile.REGTYPE, mode, data.encode() if isinstance(data, str) else data)
    entry[0].uid, entry[0].gid = uid, gid
    return entry


def link(name: str, target: str) -> Entry:
    return _entry(name, tarfile.SYMTYPE, 0o777, link=target)


def folder(name: str, mode: int = 0o755) -> Entry:
    return _entry(name, tarfile.DIRTYPE, mode)


def make(engine: Engine, tag: str, entries: Sequence[Entry], changes: Sequence[str] = ()) -> None:
    """Import busybox's tree with `entries` (theirs are left out) as the image `tag`; `changes` are lines of a
    Dockerfile.
    """
    plain, hostile = Path(engine.state, f"{tag}.plain"), Path(engine.state, f"{tag}.tar")
    busybox_rootfs_tar(plain)
    names = {info.name for info, _ in entries}
    with tarfile.open(plain) as before, tarfile.open(hostile, "w", format=tarfile.PAX_FORMAT) as archive:
        for member in before:
            if member.name not in names:
                archive.addfile(member, before.extractfile(member) if member.isreg() else None)
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    engine.out("import", *(word for line in changes for word in ("--change", line)), str(hostile), tag)
    plain.unlink()
    hostile.unlink()

"""Write changes of a tree as a layer's tar: OCI image-spec layer.md, in the pax format.

The tree may be a running container's, which changes it meanwhile: it must be mounted without devices, and lie
below the root folder of this process, so that no link leads out of it.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterable
from typing import BinaryIO

from containerd_svc.changes import Change

_CHUNK = 1024 * 1024
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_CAPABILITY = "security.capability"
_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


class Packer:
    """One layer of the tree at `root`, written to `out`. `latest` is the newest time, in seconds, that an
    entry may have; None for no such limit.
    """

    def __init__(self, root: str, out: BinaryIO, *, latest: int | None = None) -> None:
        self._root = root
        self._out = out
        self._latest = latest
        self._folders: set[str] = set()
        self._links: dict[tuple[int, int], str] = {}

    def pack(self, changes: Iterable[Change]) -> None:
        """Write them all and the end of the archive. Raises OSError, also for a file that shrinks."""
        for change in changes:
            self._parents(change.path)
            if change.facts is None:
                self._mark(_beside(change.path, _WHITEOUT + os.path.basename(change.path)))
                continue
            self._entry(change.path, change.facts)
            if change.opaque:
                self._mark(f"{change.path}/{_OPAQUE}")
        self._out.write(bytes(2 * tarfile.BLOCKSIZE))

    def _parents(self, path: str) -> None:
        """A layer has the folders of all that is in it, so that each is unpacked as it is."""
        folder = os.path.dirname(path)
        if folder and folder not in self._folders:
            self._parents(folder)
            self._entry(folder, os.lstat(f"{self._root}/{folder}"))

    def _entry(self, path: str, facts: os.stat_result) -> None:
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode))
        if kind is None:
            return  # a socket, which lives only as long as its process
        member = tarfile.TarInfo(path)
        member.type, member.mode = kind, stat.S_IMODE(facts.st_mode)
        member.uid, member.gid = facts.st_uid, facts.st_gid
        self._extend(member, facts.st_mtime_ns, f"{self._root}/{path}")
        if kind == tarfile.DIRTYPE:
            self._folders.add(path)
        elif kind == tarfile.SYMTYPE:
            member.linkname = os.readlink(f"{self._root}/{path}")
        elif kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            member.devmajor, member.devminor = os.major(facts.st_rdev), os.minor(facts.st_rdev)
        elif kind == tarfile.REGTYPE:
            first = self._links.setdefault((facts.st_dev, facts.st_ino), path)
            if facts.st_nlink > 1 and first != path:
                member.type, member.linkname = tarfile.LNKTYPE, first
            else:
                self._file(path, member)
                return
        self._header(member)

    def _file(self, path: str, member: tarfile.TarInfo) -> None:
        name = f"{self._root}/{path}"
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb", buffering=0) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise OSError(f"{path} changed its kind while it was read")
            member.size = left = facts.st_size
            self._header(member)
            while left:
                data = file.read(min(left, _CHUNK))
                if not data:
                    raise OSError(f"{path} shrank while it was read")
                self._out.write(data)
                left -= len(data)
        self._out.write(bytes(-member.size % tarfile.BLOCKSIZE))

    def _mark(self, path: str) -> None:
        """An empty file whose name deletes (layer.md, "Whiteouts")."""
        member = tarfile.TarInfo(path)
        member.mode = 0
        self._header(member)

    def _extend(self, member: tarfile.TarInfo, modified: int, path: str) -> None:
        """The time, in nanoseconds since 1970, and the extended attributes."""
        headers = {}
        for key in os.listxattr(path, follow_symlinks=False):
            if key == _CAPABILITY or (key.startswith("user.") and not key.startswith("user.overlay.")):
                value = os.getxattr(path, key, follow_symlinks=False)
                headers[f"SCHILY.xattr.{key}"] = value.decode(errors="surrogateescape")
        seconds, nanoseconds = divmod(max(modified, 0), 10**9)
        if self._latest is not None and seconds >= self._latest:
            seconds, nanoseconds = self._latest, 0
        member.mtime = seconds
        if nanoseconds:
            headers["mtime"] = f"{seconds}.{nanoseconds:09d}"
        member.pax_headers = headers

    def _header(self, member: tarfile.TarInfo) -> None:
        self._out.write(member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))


def _beside(path: str, name: str) -> str:
    return os.path.join(os.path.dirname(path), name)

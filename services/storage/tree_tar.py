"""Write entries of a file tree as a tar in the pax format, with devices, links and extended attributes.

The tree may be a running container's, which changes it meanwhile: it must be mounted without devices, and lie
below the root folder of this process, so that no link leads out of it.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from typing import BinaryIO

_CHUNK = 1024 * 1024
_CAPABILITY = "security.capability"
_KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


class Changed(OSError):
    """What was to be written is something else by now; nothing of it is in the archive."""


class TreeTar:
    """The archive `out` of the tree at `root`. `latest` is the newest time, in seconds, that an entry may
    have; None for no such limit. With `pad` a file that shrinks while it is read is filled up with zeros.
    """

    def __init__(self, root: str, out: BinaryIO, *, latest: int | None = None, pad: bool = False) -> None:
        self._root = root
        self._out = out
        self._latest = latest
        self._pad = pad
        self._links: dict[tuple[int, int], str] = {}

    def entry(self, path: str, facts: os.stat_result) -> None:
        """Write what `path`, without a leading slash, is; a socket lives only as long as its process, and is
        left out.

        Raises FileNotFoundError, NotADirectoryError or Changed while nothing of it is written; OSError, also
        for a file that shrinks.
        """
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode))
        if kind is None:
            return
        member = tarfile.TarInfo(path)
        member.type, member.mode = kind, stat.S_IMODE(facts.st_mode)
        member.uid, member.gid = facts.st_uid, facts.st_gid
        self._extend(member, facts.st_mtime_ns, f"{self._root}/{path}")
        if kind == tarfile.SYMTYPE:
            member.linkname = os.readlink(f"{self._root}/{path}")
        elif kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            member.devmajor, member.devminor = os.major(facts.st_rdev), os.minor(facts.st_rdev)
        elif kind == tarfile.REGTYPE:
            node = (facts.st_dev, facts.st_ino)
            if facts.st_nlink > 1 and node in self._links:
                member.type, member.linkname = tarfile.LNKTYPE, self._links[node]
            else:
                self._file(path, member)
                self._links[node] = path
                return
        self._header(member)

    def empty(self, path: str) -> None:
        """Write an empty file that nobody may read."""
        member = tarfile.TarInfo(path)
        member.mode = 0
        self._header(member)

    def end(self) -> None:
        """Write the end of the archive."""
        self._out.write(bytes(2 * tarfile.BLOCKSIZE))

    def _file(self, path: str, member: tarfile.TarInfo) -> None:
        name = f"{self._root}/{path}"
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket or a device now
                raise Changed(f"{path} changed its kind while it was read") from None
            raise
        with open(descriptor, "rb", buffering=0) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise Changed(f"{path} changed its kind while it was read")
            member.size = left = facts.st_size
            self._header(member)
            while left:
                data = file.read(min(left, _CHUNK))
                if not data and not self._pad:
                    raise OSError(f"{path} shrank while it was read")
                data = data or bytes(min(left, _CHUNK))
                self._out.write(data)
                left -= len(data)
        self._out.write(bytes(-member.size % tarfile.BLOCKSIZE))

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

"""Unpack a layer's tar into the root folder of this process, which must be chrooted into it.

The chroot is what keeps a hostile archive inside: `..`, absolute names and links of any kind cannot lead out
of it, and there is no /proc in it. Within it names are resolved here, link by link, so that missing parents
can be made with the attributes that they have in the layers below. Rules of layers: OCI image-spec layer.md;
how they map to overlayfs: the kernel's overlayfs.rst.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import stat
import tarfile
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from typing import cast

from linux import syscalls

from containerd_svc.tarstream import BadArchive, Stream, members

_WHITEOUT = ".wh."
_WHITEOUT_META = ".wh..wh."
_OPAQUE = ".wh..wh..opq"
_XATTR = "SCHILY.xattr."
_OPAQUE_XATTR = "trusted.overlay.opaque"
_LINKS = 255  # symbolic links in one name, as Go's filepath has it
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_LAST_MOMENT = 2**63 - 1


class Unpacker:
    """One layer on its way into `/`. `lower` are descriptors of the folders of the layers below, nearest
    first.

    With `overlay`, deletions become overlayfs's marks; else they delete what is there, unless this layer
    brought it. When the layers below are not there yet, `made` names the folders that were made without an
    entry of their own: `adopt` gives them their attributes later.
    """

    def __init__(self, *, overlay: bool, lower: Sequence[int] = ()) -> None:
        self._overlay = overlay
        self._lower = lower
        self.made: dict[str, None] = {}  # in their order
        self._parents: dict[str, str] = {}  # resolved name of folders that are known to exist
        self._unpacked: set[str] = set()
        self._folders: list[tuple[str, int, int]] = []
        self.size = 0  # bytes of regular files

    def unpack(self, stream: Stream) -> None:
        """Unpack all of it and read the stream to its end. Raises BadArchive, and OSError of the disk."""
        for member in members(stream):
            try:
                self._unpack(member, stream)
            except (ValueError, OverflowError, UnicodeError) as error:
                if isinstance(error, BadArchive):
                    raise
                raise BadArchive(f"invalid entry {member.name[:200]!r}: {error}") from error
        # A folder's own time last: making entries in it changes it.
        for path, accessed, modified in reversed(self._folders):
            try:
                os.utime(path, ns=(accessed, modified), follow_symlinks=False)
            except FileNotFoundError:
                continue
        stream.drain()

    def _unpack(self, member: tarfile.TarInfo, stream: Stream) -> None:
        name = _inside(member.name)
        if name == "/":
            return
        folder, base = posixpath.split(name)
        folder = self._folder(folder)
        path = posixpath.join(folder, base)
        if base.startswith(_WHITEOUT):
            self._whiteout(folder, base, member)
            return
        opaque = self._make_way(path, member)
        if member.isdir():
            self._make_folder(path, opaque)
        elif member.type in _REGULAR or member.type == tarfile.GNUTYPE_SPARSE:
            self._make_file(path, member, stream)
            return
        elif member.islnk():
            self._make_hard_link(path, member)
            return
        elif member.issym():
            os.symlink(member.linkname, path)
        elif member.ischr() or member.isblk() or member.isfifo():
            self._make_node(path, member)
        else:
            raise BadArchive(f"unhandled tar header type {member.type!r} of {name}")
        self._finish(path, member)

    def _finish(self, path: str, member: tarfile.TarInfo) -> None:
        """Owner, attributes, mode, times; in this order, since a change of owner clears setuid and
        capabilities.
        """
        os.chown(path, member.uid, member.gid, follow_symlinks=False)
        for key, value in _xattrs(member):
            _set_xattr(path, key, value)
        if not member.issym():
            os.chmod(path, member.mode & 0o7777)
        accessed, modified = _times(member)
        os.utime(path, ns=(accessed, modified), follow_symlinks=False)
        if member.isdir():
            self._folders.append((path, accessed, modified))
            self.made.pop(path, None)
        self._unpacked.add(path)

    def _make_folder(self, path: str, opaque: bool) -> None:
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            return
        if opaque:
            os.setxattr(path, _OPAQUE_XATTR, b"y", follow_symlinks=False)

    def _make_file(self, path: str, member: tarfile.TarInfo, stream: Stream) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            if member.issparse():
                self._write_sparse(descriptor, member, stream)
            else:
                for data in stream.chunks(member.size):
                    _write(descriptor, data)
            self.size += member.size
            os.fchown(descriptor, member.uid, member.gid)
            for key, value in _xattrs(member):
                _set_xattr(descriptor, key, value)
            os.fchmod(descriptor, member.mode & 0o7777)
            os.utime(descriptor, ns=_times(member))
        finally:
            os.close(descriptor)
        self._unpacked.add(path)

    def _write_sparse(self, descriptor: int, member: tarfile.TarInfo, stream: Stream) -> None:
        """The pieces at their offsets; what lies between stays a hole."""
        pieces = cast(list[tuple[int, int]], member.sparse)
        for offset, size in pieces:
            if offset < 0 or size < 0 or offset + size > member.size:
                raise BadArchive("archive/tar: invalid sparse file")
            os.lseek(descriptor, offset, os.SEEK_SET)
            for data in stream.chunks(size):
                _write(descriptor, data)
        os.ftruncate(descriptor, member.size)

    def _make_hard_link(self, path: str, member: tarfile.TarInfo) -> None:
        folder, base = posixpath.split(_inside(member.linkname))
        target = posixpath.join(self._resolve(folder), base)
        try:
            os.link(target, path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise BadArchive(f"invalid hard link {member.name!r} -> {member.linkname!r}") from error
        self._unpacked.add(path)

    def _make_node(self, path: str, member: tarfile.TarInfo) -> None:
        kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK if member.isblk() else stat.S_IFIFO
        device = 0
        if kind != stat.S_IFIFO:
            if not (0 <= member.devmajor < 2**12 and 0 <= member.devminor < 2**20):
                raise BadArchive(
                    f"device number {member.devmajor}:{member.devminor} for {member.name!r} out of range"
                )
            device = os.makedev(member.devmajor, member.devminor)
        os.mknod(path, kind | 0o600, device)

    def _whiteout(self, folder: str, base: str, member: tarfile.TarInfo) -> None:
        if base == _OPAQUE:
            if self._overlay:
                os.setxattr(folder, _OPAQUE_XATTR, b"y", follow_symlinks=False)
            else:
                self._empty(folder)
            return
        if base.startswith(_WHITEOUT_META):
            return  # bookkeeping of aufs, which nothing reads
        hidden = base.removeprefix(_WHITEOUT)
        if hidden in ("", ".", ".."):
            raise BadArchive(f"invalid whiteout {member.name!r}")
        path = posixpath.join(folder, hidden)
        if path in self._unpacked:
            return  # a whiteout speaks of the layers below, never of its own
        self._remove(path)
        if self._overlay:
            os.mknod(path, stat.S_IFCHR, 0)
            os.chown(path, member.uid, member.gid, follow_symlinks=False)

    def _empty(self, folder: str) -> None:
        """Remove what is below, but for what this layer brought."""
        with os.scandir(folder) as entries:
            found = list(entries)
        for entry in found:
            if entry.path not in self._unpacked and entry.path not in self.made:
                self._remove(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                self._empty(entry.path)

    def _make_way(self, path: str, member: tarfile.TarInfo) -> bool:
        """Remove what is at `path`, unless both are folders. True when it was a whiteout, which hides what
        lies below also of the folder that takes its place.
        """
        try:
            facts = os.lstat(path)
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(facts.st_mode) and member.isdir():
            return False
        self._remove(path)
        return self._overlay and stat.S_ISCHR(facts.st_mode) and facts.st_rdev == 0

    def _remove(self, path: str) -> None:
        self._parents.clear()
        try:
            facts = os.lstat(path)
            if stat.S_ISDIR(facts.st_mode):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        except FileNotFoundError:
            return

    def _folder(self, name: str) -> str:
        """The resolved name of a folder, made when missing."""
        known = self._parents.get(name)
        if known is None:
            known = self._resolve(name)
            self._make_parents(known)
            self._parents[name] = known
        return known

    def _resolve(self, name: str) -> str:
        """The name with its symbolic links followed, also where they point at nothing yet."""
        waiting = [part for part in name.split("/") if part][::-1]
        resolved = "/"
        links = 0
        while waiting:
            part = waiting.pop()
            if part == ".":
                continue
            if part == "..":
                resolved = posixpath.dirname(resolved)
                continue
            path = posixpath.join(resolved, part)
            try:
                target = os.readlink(path)
            except FileNotFoundError:
                resolved = path
                continue
            except OSError:  # no link (EINVAL), or below a file (ENOTDIR), which making it will tell
                resolved = path
                continue
            links += 1
            if links > _LINKS:
                raise BadArchive(f"too many links in {name!r}")
            if target.startswith("/"):
                resolved = "/"
            waiting += [piece for piece in target.split("/") if piece][::-1]
        return resolved

    def _make_parents(self, path: str) -> None:
        try:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                return
        except FileNotFoundError:
            pass
        except NotADirectoryError as error:
            raise BadArchive(f"{path!r} lies below a file") from error
        else:
            facts = os.lstat(path)
            if not (self._overlay and stat.S_ISCHR(facts.st_mode) and facts.st_rdev == 0):
                raise BadArchive(f"{path!r} is not a folder")
            # Deleted and made again in one layer: what lies below stays hidden.
            self._remove(path)
            self._make_parents(posixpath.dirname(path))
            os.mkdir(path, 0o755)
            os.setxattr(path, _OPAQUE_XATTR, b"y", follow_symlinks=False)
            return
        self._make_parents(posixpath.dirname(path))
        os.mkdir(path, 0o755)
        os.chmod(path, 0o755)
        times = _copy_attributes(path, self._lower)
        if times is not None:
            self._folders.append((path, *times))
        self.made[path] = None


def adopt(folders: Sequence[str], lower: Sequence[int]) -> None:
    """Give folders below `/` the attributes that they have in the layers below, as if these had been there
    when they were made."""
    for path in folders:
        try:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                continue
        except (FileNotFoundError, NotADirectoryError):
            continue  # this layer took it away again
        times = _copy_attributes(path, lower)
        if times is not None:
            os.utime(path, ns=times, follow_symlinks=False)


def _copy_attributes(path: str, lower: Sequence[int]) -> tuple[int, int] | None:
    """Give a folder the owner, mode and attributes that it has in the nearest layer below; its times
    there (access and modification, in nanoseconds), or None where no layer has it."""
    for root in lower:
        try:
            below = syscalls.openat2(
                root,
                path.lstrip("/"),
                os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC,
                resolve=syscalls.RESOLVE_IN_ROOT,
            )
        except FileNotFoundError:
            continue
        except OSError:  # replaced by something that is no folder
            return None
        try:
            facts = os.fstat(below)
            os.chown(path, facts.st_uid, facts.st_gid, follow_symlinks=False)
            for key in os.listxattr(below):
                if not key.startswith("trusted."):
                    _set_xattr(path, key, os.getxattr(below, key))
            os.chmod(path, stat.S_IMODE(facts.st_mode))
            return facts.st_atime_ns, facts.st_mtime_ns
        finally:
            os.close(below)
    return None


def _inside(name: str) -> str:
    """The name below the root, cleaned. Raises BadArchive for one that points outside."""
    cleaned = posixpath.normpath(name.lstrip("/") or ".")
    if cleaned == ".." or cleaned.startswith("../"):
        raise BadArchive(f"{name[:200]!r} is outside of the archive's root")
    return posixpath.join("/", cleaned) if cleaned != "." else "/"


def _xattrs(member: tarfile.TarInfo) -> list[tuple[str, bytes]]:
    return [
        (key.removeprefix(_XATTR), value.encode("utf-8", "surrogateescape"))
        for key, value in member.pax_headers.items()
        if key.startswith(_XATTR)
    ]


def _set_xattr(where: str | int, key: str, value: bytes) -> None:
    """Set it, or leave it where the file system has none of its kind. An archive may not speak overlayfs's
    own language (trusted.*, user.overlay.*), which could point into other layers.
    """
    if key.startswith(("trusted.", "user.overlay.")):
        return
    try:
        if isinstance(where, int):
            os.setxattr(where, key, value)
        else:
            os.setxattr(where, key, value, follow_symlinks=False)
    except OSError as error:
        # EPERM: user.* on a link or device (xattr(7)); ENOTSUP: the file system or its options.
        if error.errno not in (1, 95):
            raise BadArchive(f"cannot set attribute {key[:100]!r}: {error.strerror}") from error


def _times(member: tarfile.TarInfo) -> tuple[int, int]:
    """Access and modification in nanoseconds; a time that no clock has becomes 1970."""
    modified = _moment(member.pax_headers.get("mtime"), member.mtime)
    accessed = _moment(member.pax_headers.get("atime"), 0)
    return max(accessed, modified), modified


def _moment(text: str | None, default: float) -> int:
    try:
        value = int(Decimal(text) * 10**9) if text else int(default) * 10**9
    except (InvalidOperation, OverflowError, ValueError):
        return 0
    return value if 0 <= value <= _LAST_MOMENT else 0


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]

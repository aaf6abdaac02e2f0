"""The content of a directory copied into the tmpfs that is about to cover it (option `tmpcopyup`)."""

from __future__ import annotations

import errno
import os
import stat

from runc_bin import contexts

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 20


def copy_up(source: int, destination: int, *, keep_mode: bool) -> None:
    """Copy what lies in the directory `source` into `destination` (descriptors; O_PATH will do).

    Modes, owners, times, links, devices and extended attributes are kept, also those of the directory
    itself, but for its mode when `keep_mode`.
    """
    with contexts.ExitStack() as stack:
        inner = os.open(".", _DIRECTORY, dir_fd=source)
        stack.callback(os.close, inner)
        outer = os.open(".", _DIRECTORY, dir_fd=destination)
        stack.callback(os.close, outer)
        mode = stat.S_IMODE(os.fstat(outer).st_mode)
        _Copy(outer).directory(inner, outer, "")
        if keep_mode:
            os.fchmod(outer, mode)


class _Copy:
    """One copy into `top`, which nobody else sees yet, so that paths below it are safe.

    `_linked` has the first copy of each inode that has several names.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._linked: dict[tuple[int, int], str] = {}

    def directory(self, source: int, destination: int, path: str) -> None:
        with os.scandir(source) as entries:
            names = [entry.name for entry in entries]
        for name in names:
            info = os.stat(name, dir_fd=source, follow_symlinks=False)
            here = f"{path}{name}"
            if stat.S_ISDIR(info.st_mode):
                self._subdirectory(source, destination, name, here)
                continue
            known = self._linked.setdefault((info.st_dev, info.st_ino), here) if info.st_nlink > 1 else here
            if known != here:
                os.link(known, name, src_dir_fd=self._top, dst_dir_fd=destination, follow_symlinks=False)
            else:
                _copy_entry(source, destination, name, info)
        _copy_facts(source, destination)

    def _subdirectory(self, source: int, destination: int, name: str, path: str) -> None:
        os.mkdir(name, 0o700, dir_fd=destination)
        with contexts.ExitStack() as stack:
            inner = os.open(name, _DIRECTORY, dir_fd=source)
            stack.callback(os.close, inner)
            outer = os.open(name, _DIRECTORY, dir_fd=destination)
            stack.callback(os.close, outer)
            self.directory(inner, outer, f"{path}/")


def _copy_entry(source: int, destination: int, name: str, info: os.stat_result) -> None:
    """Copy what is no directory."""
    if stat.S_ISREG(info.st_mode):
        reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=source)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            writer = os.open(name, flags, 0o600, dir_fd=destination)
            try:
                while os.sendfile(writer, reader, None, _CHUNK):
                    pass
                _copy_facts(reader, writer)
            finally:
                os.close(writer)
        finally:
            os.close(reader)
        return
    if stat.S_ISLNK(info.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=destination)
    else:
        os.mknod(name, info.st_mode, info.st_rdev, dir_fd=destination)
    os.chown(name, info.st_uid, info.st_gid, dir_fd=destination, follow_symlinks=False)
    times = (info.st_atime_ns, info.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=destination, follow_symlinks=False)


def _copy_facts(source: int, destination: int) -> None:
    """Owner, mode, extended attributes and times, from descriptor to descriptor."""
    info = os.fstat(source)
    os.fchown(destination, info.st_uid, info.st_gid)
    os.fchmod(destination, stat.S_IMODE(info.st_mode))
    for name in os.listxattr(source):
        try:
            os.setxattr(destination, name, os.getxattr(source, name))
        except OSError as error:
            # A tmpfs does not take every kind: tmpfs(5), "Extended attributes".
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise
    os.utime(destination, ns=(info.st_atime_ns, info.st_mtime_ns))

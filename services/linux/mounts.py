"""Names of the kernel's mount calls, and what a mount table says.

Flags and attributes keep the kernel's names (include/uapi/linux/mount.h). The functions make detached
mounts and attach them by descriptor, so that no path is resolved twice: fsopen(2), open_tree(2),
move_mount(2), mount_setattr(2), Linux 5.12 on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

from linux.syscalls import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_RECURSIVE,
    fsconfig,
    fsmount,
    fsopen,
    mount,
    mount_setattr,
    move_mount,
    open_tree,
    umount2,
)

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_UNBINDABLE = 1 << 17
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_I_VERSION = 1 << 23
MS_STRICTATIME = 1 << 24
MS_LAZYTIME = 1 << 25

MNT_DETACH = 2

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_ATIME = 0x70
MOUNT_ATTR_RELATIME = 0x0
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_NODIRATIME = 0x80
MOUNT_ATTR_IDMAP = 0x100000
MOUNT_ATTR_NOSYMFOLLOW = 0x200000

FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40

PROC_SUPER_MAGIC = 0x9FA0
CGROUP2_SUPER_MAGIC = 0x63677270
TMPFS_MAGIC = 0x01021994
DEVPTS_SUPER_MAGIC = 0x1CD1


def new_mount(
    fstype: str, source: str, options: Iterable[tuple[str, str | None]] = (), attributes: int = 0
) -> int:
    """A detached mount of a new file system, as a descriptor.

    `options` are the file system's own, a value of None meaning a bare word; `attributes` are MOUNT_ATTR_*.
    A refusal is an OSError whose text is the kernel's own message where it gives one (fsopen(2), "message
    retrieval").
    """
    context = fsopen(fstype)
    try:
        try:
            if source:
                fsconfig(context, FSCONFIG_SET_STRING, "source", source)
            for key, value in options:
                if value is None:
                    fsconfig(context, FSCONFIG_SET_FLAG, key)
                else:
                    fsconfig(context, FSCONFIG_SET_STRING, key, value)
            fsconfig(context, FSCONFIG_CMD_CREATE)
        except OSError as error:
            raise OSError(error.errno, _message(context) or error.strerror) from None
        return fsmount(context, 1, attributes)
    finally:
        os.close(context)


def _message(context: int) -> str:
    """The first error line that the kernel left on a file system context; empty when there is none."""
    while True:
        try:
            line = os.read(context, 4096).decode(errors="replace").strip()
        except OSError:
            return ""
        if line.startswith("e "):
            return line[2:]


def new_classic_mount(fstype: str, source: str, flags: int, data: str, place: int) -> int:
    """What `new_mount` does, by mount(2), for what fsconfig(2) cannot say: MS_* flags and the data string.

    mount(2) attaches at once. So that nobody else sees it there, that is done in a file system of ours, which
    lies for that time on the directory `place` of this mount namespace and hides nothing from descriptors.
    """
    cover = new_mount("tmpfs", "tmpfs", [("mode", "700")])
    try:
        attach(cover, place)
        base = f"/proc/self/fd/{cover}"
        try:
            os.mkdir("new", dir_fd=cover)
            mount(source, f"{base}/new", fstype, flags, data)
            return clone_mount("new", dir_fd=cover)
        finally:
            umount2(base, MNT_DETACH)
    finally:
        os.close(cover)


def clone_mount(path: str | bytes, *, dir_fd: int = AT_FDCWD, recursive: bool = False) -> int:
    """A detached copy of the mount (with `recursive`, the tree) at a path, or at `dir_fd` itself when
    `path` is empty.
    """
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC
    if recursive:
        flags |= AT_RECURSIVE
    if not path:
        flags |= AT_EMPTY_PATH
    return open_tree(dir_fd, path, flags)


def attach(mount_fd: int, target_fd: int, name: str = "") -> None:
    """Attach a detached mount on the object that `target_fd` (O_PATH will do) refers to, or on the one with
    that name below it.
    """
    move_mount(mount_fd, "", target_fd, name, MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH)


def change(
    mount_fd: int, *, set_: int = 0, clear: int = 0, propagation: int = 0, recursive: bool = False
) -> None:
    """Change attributes (MOUNT_ATTR_*) or propagation (MS_SHARED, …) of the mount behind a descriptor."""
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    mount_setattr(mount_fd, "", flags, set_=set_, clear=clear, propagation=propagation)


def map_ids(mount_fd: int, user_namespace: int, *, recursive: bool) -> None:
    """Show a detached mount's (with `recursive`, the tree's) owners as a user namespace maps them."""
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    mount_setattr(mount_fd, "", flags, set_=MOUNT_ATTR_IDMAP, userns=user_namespace)


def remount(mount_fd: int, flags: int, data: str) -> None:
    """Give the file system and the mount behind a descriptor these MS_* flags and options; mount(2)."""
    mount("none", f"/proc/self/fd/{mount_fd}", "", flags | MS_REMOUNT, data)


def mount_id(fd: int) -> int:
    """The id of the mount that a descriptor lies on, as in mountinfo; proc_pid_fdinfo(5)."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        fields = dict(line.split(b":", 1) for line in file.read().splitlines())
    return int(fields[b"mnt_id"])


def on_initial_root() -> bool:
    """Whether `/` is the file system that the kernel unpacks its initial ramdisk in."""
    return any(point.target == "/" and point.fstype == "rootfs" for point in mount_table())


class MountPoint:
    """One line of /proc/<pid>/mountinfo; see proc_pid_mountinfo(5)."""

    def __init__(
        self,
        mount_id: int,
        parent_id: int,
        device: str,
        root: str,
        target: str,
        options: str,
        fields: tuple[str, ...],
        fstype: str,
        source: str,
        super_options: str,
    ) -> None:
        self.mount_id = mount_id
        self.parent_id = parent_id
        self.device = device
        self.root = root
        self.target = target
        self.options = options
        self.fields = fields
        self.fstype = fstype
        self.source = source
        self.super_options = super_options


def _unescape(text: str) -> str:
    if "\\" not in text:
        return text
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text


def parse_mountinfo(lines: Iterable[str]) -> Iterator[MountPoint]:
    """The mounts that lines of a mountinfo file name, in the file's order."""
    for line in lines:
        left, _, right = line.rstrip("\n").partition(" - ")
        words: Sequence[str] = left.split(" ")
        fstype, source, super_options = (*right.split(" ", 2), "", "")[:3]
        yield MountPoint(
            int(words[0]),
            int(words[1]),
            words[2],
            _unescape(words[3]),
            _unescape(words[4]),
            words[5],
            tuple(words[6:]),
            fstype,
            _unescape(source),
            super_options,
        )


def mount_table(pid: int | str = "self") -> list[MountPoint]:
    """The mount table that process `pid` sees."""
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return list(parse_mountinfo(file))

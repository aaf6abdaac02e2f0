"""The files in /proc by which a thread tells the kernel's security modules what it wants to become."""

from __future__ import annotations

import os

from errdefs import Internal
from linux import syscalls

_PROC_SUPER_MAGIC = 0x9FA0
_PROC_ROOT_INODE = 1
_RESOLVE = syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_BENEATH


def write(names: tuple[str, ...], value: str) -> None:
    """Write to the first of these files below this thread's /proc/…/attr that is there.

    It is called with the container's own /proc, where an image can have put other things than procfs
    (CVE-2019-16884) or bound one procfs file over another (CVE-2023-28642). So /proc must be the root of a
    procfs, and the way below it may lead over no mount and no link. The kernel takes the writer's own files
    only. Internal when /proc is something else, OSError for what the kernel says.
    """
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if syscalls.filesystem_type(proc) != _PROC_SUPER_MAGIC or os.fstat(proc).st_ino != _PROC_ROOT_INODE:
            raise Internal("/proc is not procfs")
        # read, not followed: it may be the host's /proc, where we have another number
        descriptor = _open(proc, f"{os.readlink('thread-self', dir_fd=proc)}/attr", names)
    finally:
        os.close(proc)
    try:
        os.write(descriptor, value.encode(errors="surrogateescape"))
    finally:
        os.close(descriptor)


def _open(proc: int, folder: str, names: tuple[str, ...]) -> int:
    for name in names[:-1]:
        try:
            return syscalls.openat2(proc, f"{folder}/{name}", os.O_WRONLY, resolve=_RESOLVE)
        except FileNotFoundError:
            continue
    return syscalls.openat2(proc, f"{folder}/{names[-1]}", os.O_WRONLY, resolve=_RESOLVE)

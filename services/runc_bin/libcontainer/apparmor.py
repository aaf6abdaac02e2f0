"""The AppArmor profile of a container's program."""

from __future__ import annotations

import os

from errdefs import Internal
from linux import syscalls
from linux.apparmor import enabled

__all__ = ["apply_exec", "enabled"]

_PROC_SUPER_MAGIC = 0x9FA0
_PROC_ROOT_INODE = 1


def apply_exec(profile: str) -> None:
    """Let the next execve(2) of this thread switch to `profile`; nothing happens for an empty name.

    It is called with the container's own /proc, where an image can have put other things than procfs
    (CVE-2019-16884) or bound one procfs file over another (CVE-2023-28642). So /proc must be the root of a
    procfs, and the way below it may lead over no mount and no link. Internal says why it failed.
    """
    if not profile:
        return
    try:
        proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if (
                syscalls.filesystem_type(proc) != _PROC_SUPER_MAGIC
                or os.fstat(proc).st_ino != _PROC_ROOT_INODE
            ):
                raise Internal("apparmor failed to apply profile: /proc is not procfs")
            descriptor = _open_attribute(proc)
        finally:
            os.close(proc)
        try:
            os.write(descriptor, f"exec {profile}".encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise Internal(
            f"apparmor failed to apply profile: {(error.strerror or str(error)).lower()}"
        ) from error


def _open_attribute(proc: int) -> int:
    task = f"{os.getpid()}/task/{os.getpid()}/attr"
    resolve = syscalls.RESOLVE_NO_XDEV | syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_BENEATH
    try:
        # its own folder since Linux 5.8; `attr/exec` belongs to whichever module came first
        return syscalls.openat2(proc, f"{task}/apparmor/exec", os.O_WRONLY, resolve=resolve)
    except FileNotFoundError:
        return syscalls.openat2(proc, f"{task}/exec", os.O_WRONLY, resolve=resolve)

"""Kernel parameters of the container's namespaces: proc_sys(5)."""

from __future__ import annotations

import os
from collections.abc import Mapping

from linux import syscalls
from linux.mounts import PROC_SUPER_MAGIC
from linux.syscalls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_XDEV

from runc_bin.libcontainer.failures import step


def write(proc_fd: int, values: Mapping[str, str]) -> None:
    """Write each value below `proc_fd`, a procfs: nothing mounted over a part of it is entered
    (CVE-2025-52881).
    """
    if not values:
        return
    resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_XDEV
    for name, value in values.items():
        path = "sys/" + name.translate(str.maketrans("./", "/."))
        with step(f"failed to write sysctl {name}"):
            fd = syscalls.openat2(proc_fd, path, os.O_WRONLY, resolve=resolve)
            try:
                if syscalls.filesystem_type(fd) != PROC_SUPER_MAGIC:
                    raise OSError(22, "not on a procfs")
                os.write(fd, value.encode())
            finally:
                os.close(fd)

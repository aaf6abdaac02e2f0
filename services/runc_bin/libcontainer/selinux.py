"""The SELinux label of a container's program and of its session keyring. Loaded only where there is one."""

from __future__ import annotations

import os

from linux import syscalls

from runc_bin.libcontainer import attributes
from runc_bin.libcontainer.failures import step

_MOUNT = "/sys/fs/selinux"
_MAGIC = 0xF97CFF8C  # include/uapi/linux/magic.h


def enabled() -> bool:
    """Whether the host runs with SELinux and a policy; without one every label is that of the kernel."""
    try:
        if syscalls.filesystem_type(_MOUNT) != _MAGIC or os.statvfs(_MOUNT).f_flag & os.ST_RDONLY:
            return False
        with open("/proc/self/attr/current", "rb") as file:
            return file.read().rstrip(b"\0\n") != b"kernel"
    except OSError:
        return False


def apply_exec(label: str) -> None:
    """Let the next execve(2) of this thread switch to `label`; errors as `attributes.write`."""
    with step(f"unable to set the SELinux label {label!r}: write `/proc/thread-self/attr/exec`"):
        attributes.write(("exec",), label)


def label_keys(label: str) -> None:
    """Have the keyrings that this thread makes from now on labelled; empty: as the policy has it."""
    with step(f"unable to set the SELinux label {label!r}: write `/proc/thread-self/attr/keycreate`"):
        attributes.write(("keycreate",), label)

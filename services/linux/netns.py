"""Network namespaces kept by a bind mount, as ip-netns(8) keeps them.

`enter` changes the calling process: it is for short children and single-threaded helpers only.
"""

from __future__ import annotations

import contextlib
import os

from linux.mounts import MNT_DETACH, MS_BIND
from linux.syscalls import CLONE_NEWNET, mount, setns, umount2, unshare


def create(path: str) -> None:
    """Make a new network namespace and bind it at `path`, which must not exist; FileExistsError when it
    does.

    The caller's own namespace is the same before and after. Its thread must be the only one that may see
    the difference.
    """
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_CLOEXEC, 0o444))
        try:
            unshare(CLONE_NEWNET)
            try:
                mount("/proc/thread-self/ns/net", path, "", MS_BIND)
            finally:
                setns(own, CLONE_NEWNET)
        except BaseException:
            os.unlink(path)
            raise
    finally:
        os.close(own)


def enter(path: str) -> None:
    """Join the network namespace at `path`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(fd, CLONE_NEWNET)
    finally:
        os.close(fd)


def delete(path: str) -> None:
    """Take the binding at `path` away (idempotent); the namespace ends with its last user."""
    with contextlib.suppress(OSError):
        umount2(path, MNT_DETACH)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)

"""SELinux labels of a container's mounts: "Mount Label" of the runtime spec's config-linux.md, and mount(8),
"context=".
"""

from __future__ import annotations

import os

from errdefs import InvalidArgument

_XATTR = "security.selinux"

# The kernel gives proc and sysfs labels of its own, and takes none for the queues' file system; the cgroup
# file systems have those of the host.
_UNLABELLED = ("proc", "sysfs", "mqueue", "cgroup", "cgroup2")


def check(label: str) -> None:
    """InvalidArgument for what cannot stand in a mount's data."""
    if any(not char.isprintable() or char in '"\\' for char in label):
        raise InvalidArgument(f"linux.mountLabel {label!r} is not an SELinux label")


def words(kind: str, label: str) -> list[tuple[str, str | None]]:
    """What a new file system of that type is to be told, for a label or none (empty)."""
    return [("context", label)] if label and kind not in _UNLABELLED else []


def label_root(kind: str, made: int, label: str) -> None:
    """Give the root of a new file system the label, where that type takes it in no other way."""
    if label and kind == "mqueue":
        os.setxattr(f"/proc/self/fd/{made}", _XATTR, label.encode())

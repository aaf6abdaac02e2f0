"""Handing things down the v2 tree: controllers to a container's cgroup, and the cgroup to its user.

Source: Documentation/admin-guide/cgroup-v2.rst, "Enabling and Disabling" and "Delegation"; runtime-spec,
config-linux.md "Cgroup ownership".
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from errdefs import InvalidArgument

from runc_bin import contexts

from . import files, hierarchy

_DELEGATED = ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads")


def ancestors(directory: str) -> list[str]:
    """Directories from the root of the hierarchy to the parent of `directory`.

    InvalidArgument for a path that is in no v2 tree.
    """
    for root in (hierarchy.HYBRID_MOUNT, hierarchy.MOUNT):
        if directory.startswith(root + "/"):
            break
    else:
        raise InvalidArgument(f"invalid cgroup path {directory}")
    found = [root]
    for part in directory[len(root) + 1 :].split("/")[:-1]:
        found.append(f"{found[-1]}/{part}")
    return found


def enable_controllers(directory: str, only: Iterable[str] | None = None) -> None:
    """Pass every controller (or `only` some) down to `directory`, writing only where one is missing.

    Usually all is in place but for a new parent, so the parent is looked at first. A systemd service's own
    cgroup is never written: with controllers handed to its children it could take no process any more, and
    the service's next start would fail with EBUSY. What a limit then lacks is said when it is set.
    """
    above = ancestors(directory)
    wanted = set(files.read(above[0] + "/cgroup.controllers").split())
    if only is not None:
        wanted &= set(only)
    if not wanted - set(files.read(above[-1] + "/cgroup.subtree_control").split()):
        return
    for parent in above:
        if parent.endswith(".service"):
            continue
        missing = wanted - set(files.read(parent + "/cgroup.subtree_control").split())
        if not missing:
            continue
        control = parent + "/cgroup.subtree_control"
        try:
            files.write(control, " ".join(f"+{name}" for name in sorted(missing)))
        except OSError:
            # one controller that cannot be had (not delegated, real-time processes) spoils the whole line
            for name in sorted(missing):
                with contexts.suppress(OSError):
                    files.write(control, f"+{name}")


def give(directory: str, uid: int) -> None:
    """Make `uid` the owner of the cgroup and of the files that its user may write; the limits stay ours.

    A caller who has no power over the host may be unable to: then all stays theirs.
    """
    try:
        names = files.read("/sys/kernel/cgroup/delegate").split()
    except FileNotFoundError:  # of Linux 4.15
        names = list(_DELEGATED)
    try:
        os.chown(directory, uid, -1)
        for name in names:
            with contexts.suppress(FileNotFoundError):  # memory.reclaim and others come with a controller
                os.chown(f"{directory}/{name}", uid, -1)
    except PermissionError:
        if not hierarchy.no_power():
            raise

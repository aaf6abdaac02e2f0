"""Does a bind mount's source have the propagation that the mount asks for? (moby daemon/oci_linux.go)

A mount can share with the host, or follow it, only where the host's mount is shared itself
(mount_namespaces(7)).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import errdefs
from linux.mounts import MountPoint, mount_table

from dockerd_api.engine.mounts import Mount

_SHARED, _SLAVE = ("shared", "rshared"), ("slave", "rslave")


def check(planned: Iterable[Mount], data_root: str) -> None:
    """Internal, as in Docker, when a source is not on a mount that can be shared or followed."""
    asked = [mount for mount in planned if mount.kind == "bind" and mount.propagation in _SHARED + _SLAVE]
    if not asked:
        return
    table = mount_table()
    for mount in asked:
        where, fields = _mounted_on(mount.source, table)
        shared = any(field.startswith("shared:") for field in fields)
        follows = any(field.startswith("master:") for field in fields)
        if mount.propagation in _SHARED and not shared:
            raise errdefs.Internal(f"path {mount.source} is mounted on {where} but it is not a shared mount")
        if mount.propagation in _SLAVE and not (shared or follows or _holds(mount.source, data_root)):
            raise errdefs.Internal(
                f"path {mount.source} is mounted on {where} but it is not a shared or slave mount"
            )


def _mounted_on(path: str, table: Iterable[MountPoint]) -> tuple[str, tuple[str, ...]]:
    """Where the mount that a path is on is attached, and its optional fields; of several, the topmost."""
    real = os.path.realpath(path)
    found: tuple[str, tuple[str, ...]] = ("", ())
    for mount in table:
        inside = real == mount.target or real.startswith(mount.target.rstrip("/") + "/")
        if inside and len(mount.target) >= len(found[0]):
            found = mount.target, mount.fields
    return found


def _holds(source: str, data_root: str) -> bool:
    """These follow by default (engine/mounts), so that a host without shared mounts must not be refused."""
    return source.startswith(data_root) or data_root.startswith(source)

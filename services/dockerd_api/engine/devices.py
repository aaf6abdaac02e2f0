"""Device nodes of the host that a container is given."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any

import errdefs

from dockerd_api.engine.spec import Device

# What the runtime makes itself, or what would show the host's (containerd pkg/oci, HostDevices).
_SKIPPED = frozenset(
    ("/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/.lxc", "/dev/.udev", "/dev/.lxd-mounts")
)


def resolve(host_config: Mapping[str, Any]) -> list[Device]:
    """The devices asked for; all of the host's for a privileged container. InvalidArgument for one that is
    missing.
    """
    found: dict[str, Device] = {}
    if host_config["Privileged"]:
        found.update({device.path: device for device in _walk("/dev", "/dev", "rwm")})
    for asked in host_config["Devices"] or []:
        source, target = asked["PathOnHost"], asked["PathInContainer"]
        access = "rwm" if host_config["Privileged"] else asked["CgroupPermissions"]
        try:
            source = os.path.realpath(source, strict=True)
            if stat.S_ISDIR(os.stat(source).st_mode):
                devices = list(_walk(source, target, access))
            else:
                devices = [device for device in [_device(source, target, access)] if device]
        except OSError as error:
            raise _missing(asked["PathOnHost"], os.strerror(error.errno or 0).lower()) from error
        if not devices:
            raise _missing(asked["PathOnHost"], "not a device node")
        found.update({device.path: device for device in devices})
    return list(found.values())


def _missing(path: str, why: str) -> errdefs.BuoyError:
    return errdefs.InvalidArgument(
        f'error gathering device information while adding custom device "{path}": {why}'
    )


def _device(source: str, target: str, access: str) -> Device | None:
    status = os.stat(source, follow_symlinks=False)
    if stat.S_ISCHR(status.st_mode):
        kind = "c"
    elif stat.S_ISBLK(status.st_mode):
        kind = "b"
    else:
        return None
    return Device(
        target,
        kind,
        os.major(status.st_rdev),
        os.minor(status.st_rdev),
        stat.S_IMODE(status.st_mode),
        status.st_uid,
        status.st_gid,
        access,
    )


def _walk(folder: str, target: str, access: str) -> Iterator[Device]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.path in _SKIPPED or entry.path == "/dev/console":
            continue
        inside = f"{target}/{entry.name}"
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, inside, access)
            else:
                device = _device(entry.path, inside, access)
                if device is not None:
                    yield device
        except FileNotFoundError:
            continue  # removed while we looked

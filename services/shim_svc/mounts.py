"""Mounting a task's root file system from the mounts of its create request, and taking it away.

The mounts are containerd's mount records: type, source, target below the root, options as in fstab. They are
applied in order with mount(2); see mount(8) for the options.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence

import errdefs
from linux import mounts as flags
from linux.syscalls import mount, umount2
from pb.containerd.types import Mount
from runc_bin.libcontainer.mount_options import parse

_PAGE = 4096
_MOST_LAYERS_UNMOUNTED = 64


def mount_all(mounts: Sequence[Mount], root: str) -> None:
    """Mount all records below `root`, which is made when missing; undone when one fails
    (errdefs.Internal).
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(root, 0o711)
    try:
        for record in mounts:
            _mount_one(record, root)
    except OSError as error:
        unmount(root)
        raise errdefs.Internal(
            f"failed to mount rootfs component: {record.type or 'bind'} {record.source}: {error.strerror}"
        ) from error


def _mount_one(record: Mount, root: str) -> None:
    target = root
    if record.target:
        # normpath of an absolute path cannot climb above it
        target = root + os.path.normpath("/" + record.target)
    options = parse(record.options)
    data = ",".join(key if value is None else f"{key}={value}" for key, value in options.data)
    source = record.source
    if options.bind or record.type in ("bind", "rbind"):
        recursive = flags.MS_REC if options.flags & flags.MS_REC or record.type == "rbind" else 0
        mount(source, target, "", flags.MS_BIND | recursive)
        extra = options.flags & ~(flags.MS_BIND | flags.MS_REC)
        if extra:
            mount("", target, "", flags.MS_BIND | flags.MS_REMOUNT | extra)
    else:
        if len(data) >= _PAGE and record.type == "overlay":
            _mount_relative(source, target, options.flags, options.data)
        else:
            mount(source, target, record.type, options.flags, data)
    for propagation in options.propagation:
        mount("", target, "", propagation)


def _mount_relative(source: str, target: str, flag_bits: int, data: Sequence[tuple[str, str | None]]) -> None:
    """Mount an overlay whose options do not fit into mount(2)'s one page: name the layers from a common
    folder.
    """
    lower = next((value for key, value in data if key == "lowerdir" and value), "")
    layers = lower.split(":")
    common = os.path.commonpath(layers) if len(layers) > 1 else os.path.dirname(lower)
    short = []
    for key, value in data:
        if key == "lowerdir":
            value = ":".join(os.path.relpath(layer, common) for layer in layers)
        short.append(key if value is None else f"{key}={value}")
    text = ",".join(short)
    if len(text) >= _PAGE:
        raise OSError(errno.E2BIG, f"{len(layers)} layers need more than one page of mount options")
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(common)
        mount(source, target, "overlay", flag_bits, text)
    finally:
        os.fchdir(here)
        os.close(here)


def unmount(root: str) -> None:
    """Unmount whatever is mounted on `root`, however often; what is busy is detached. Nothing there is no
    error.
    """
    for _ in range(_MOST_LAYERS_UNMOUNTED):
        try:
            umount2(root, 0)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                return
            if error.errno != errno.EBUSY:
                raise
            umount2(root, flags.MNT_DETACH)

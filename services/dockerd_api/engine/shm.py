"""/dev/shm that containers share: a tmpfs in the folder of the one that offers it (IpcMode shareable).

It is mounted before the task is created and goes with it (engine/release). One that joined by then holds it
by its own bind mount until it ends, as with Docker.
"""

from __future__ import annotations

import errno
import os

import errdefs
from linux import mounts as m
from linux import syscalls

from dockerd_api.engine.engine import Engine
from dockerd_api.engine.model import Container
from dockerd_api.engine.mounts import plan

_HOST = "/dev/shm"
_FLAGS = m.MS_NOSUID | m.MS_NOEXEC | m.MS_NODEV


def offers(record: Container) -> bool:
    """Whether the container has a /dev/shm that others may join: it is shareable, and nothing else is mounted
    there.
    """
    return record.host_config["IpcMode"] == "shareable" and not any(
        mount.destination == _HOST for mount in plan(record.host_config)
    )


def path(engine: Engine, record: Container) -> str:
    """The folder on the host that is the container's /dev/shm; "" when it has one of its own or none.

    Conflict and InvalidArgument, with Docker's texts, when it joins one that cannot be joined.
    """
    mode = record.host_config["IpcMode"]
    if mode == "host":
        return _HOST
    if offers(record):
        return str(engine.folder(record.id) / "shm")
    if not mode.startswith("container:"):
        return ""
    donor = engine.store.resolve(mode.partition(":")[2])
    failed = f"failed to join IPC namespace: container {donor.id}"
    if not donor.state.alive:
        raise errdefs.Conflict(f"{failed} is not running")
    found = path(engine, donor)
    if not found:
        raise errdefs.InvalidArgument(
            f"{failed}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)"
        )
    return found


def mount(engine: Engine, record: Container) -> None:
    """Mounts the tmpfs of a container that `offers` one. The container's folder exists."""
    target = engine.folder(record.id) / "shm"
    target.mkdir(mode=0o700, exist_ok=True)
    unmount(engine, record.id)
    size = record.host_config["ShmSize"]
    try:
        syscalls.mount("shm", str(target), "tmpfs", _FLAGS, f"mode=1777,size={size}")
    except OSError as error:
        raise errdefs.Internal(f"mounting shm tmpfs: {os.strerror(error.errno or 0).lower()}") from error


def unmount(engine: Engine, container_id: str) -> None:
    """Idempotent."""
    try:
        syscalls.umount2(str(engine.folder(container_id) / "shm"), m.MNT_DETACH)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):
            raise errdefs.Internal(f"unmounting shm tmpfs: {error}") from error

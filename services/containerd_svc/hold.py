"""One daemon per root folder: the lock that a second one is refused by."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import errdefs


def hold(root: Path, state: Path) -> list[int]:
    """Lock both folders for this process, until the returned descriptors are closed; makes them when missing.

    Raises FailedPrecondition that names the process which has one of them (flock(2); the kernel frees it at
    its death).
    """
    held: list[int] = []
    for folder in (root, state):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
            os.close(fd)
            for other in held:
                os.close(other)
            raise errdefs.FailedPrecondition(
                f"{folder} is in use by another containerd-svc, process {holder}"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        held.append(fd)
    return held

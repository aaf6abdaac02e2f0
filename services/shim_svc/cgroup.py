"""A cgroup of its own for each shim, below the nursery's, where the service manager has delegated that one.

Under systemd the nursery's unit has Delegate=yes, which sets an extended attribute on its cgroup
(systemd.resource-control(5)). No controller is enabled here: enabling any in the unit's own cgroup would make
systemd unable to restart the unit.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

_ROOT = "/sys/fs/cgroup"
_PREFIX = "shim-"


def delegated() -> list[str]:
    """Folders of this process's cgroup, in the hierarchies that carry no controllers, that are delegated."""
    return list(_delegated())


def _delegated() -> Iterator[str]:
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        lines = [line.rstrip("\n").split(":", 2) for line in file]
    for number, controllers, path in lines:
        if number == "0":
            candidates = [_ROOT + path, f"{_ROOT}/unified{path}"]
        elif controllers == "name=systemd":
            candidates = [f"{_ROOT}/systemd{path}"]
        else:
            continue
        for folder in candidates:
            for attribute in ("trusted.delegate", "user.delegate"):
                with contextlib.suppress(OSError):
                    if os.getxattr(folder, attribute) == b"1":
                        yield folder
                        break


def _move(folder: str) -> None:
    with open(f"{folder}/cgroup.procs", "w", encoding="ascii") as file:
        file.write("0")


def join_own(parents: Sequence[str], name: str) -> Callable[[], None]:
    """Move this process into a cgroup of its own below `parents`; returns what leaves and removes it again.

    Where nothing is delegated the process stays where it is, and nothing has to be left.
    """
    joined: list[tuple[str, str]] = []
    for parent in parents:
        folder = f"{parent}/{_PREFIX}{name}"
        with contextlib.suppress(OSError):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
            _move(folder)
            joined.append((parent, folder))

    def leave() -> None:
        for parent, folder in joined:
            with contextlib.suppress(OSError):
                _move(parent)
                os.rmdir(folder)

    return leave


def sweep(parents: Sequence[str]) -> None:
    """Remove the cgroups of shims that are gone; those in use refuse."""
    for parent in parents:
        for entry in os.scandir(parent):
            if entry.name.startswith(_PREFIX) and entry.is_dir():
                with contextlib.suppress(OSError):
                    os.rmdir(entry.path)

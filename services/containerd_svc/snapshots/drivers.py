"""What differs between kinds of snapshotters: how a new tree begins and which mounts show it.

A driver never mounts: it returns mount records, and whoever wants the tree applies them (containerd's
core/snapshots). Every snapshot is a folder `snapshots/<number>/` with `fs`, its own files.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from pb.containerd.types import Mount

ACTIVE, VIEW, COMMITTED = "active", "view", "committed"


class Driver(Protocol):
    """One kind of snapshotter. `chain` holds the `fs` folders of the parents, the nearest first."""

    # False: the folder is small and made at once. True: it copies, which is the work of a thread.
    copies: bool
    # True: what is made on nothing can be put on parents when it is committed.
    rebases: bool

    def make(self, folder: Path, kind: str, chain: Sequence[Path]) -> None:
        """Fill the new, empty `folder`."""

    def mounts(self, folder: Path, kind: str, chain: Sequence[Path]) -> list[Mount]:
        """The mounts that show the tree of an active snapshot or a view."""

    def rebase(self, folder: Path, chain: Sequence[Path]) -> None:
        """Put what was made on nothing on `chain`, where the driver `rebases`."""


class Overlay:
    """overlayfs: only what differs from the parents is in `fs`; `work` is the kernel's."""

    copies = False
    rebases = True

    def __init__(self) -> None:
        # index=on would refuse to mount a lower folder that moved or is in use (kernel: overlayfs.rst), as a
        # host may have it by default.
        self._extra = ["index=off"] if os.path.exists("/sys/module/overlay/parameters/index") else []

    def make(self, folder: Path, kind: str, chain: Sequence[Path]) -> None:
        files = folder / "fs"
        files.mkdir(mode=0o755)
        files.chmod(0o755)
        if kind == ACTIVE:
            (folder / "work").mkdir(mode=0o711)
        if chain:
            self.rebase(folder, chain)

    def mounts(self, folder: Path, kind: str, chain: Sequence[Path]) -> list[Mount]:
        if not chain:
            return [_bind(folder / "fs", writable=kind == ACTIVE)]
        options = list(self._extra)
        if kind == ACTIVE:
            options += [f"workdir={folder / 'work'}", f"upperdir={folder / 'fs'}"]
        elif len(chain) == 1:
            return [_bind(chain[0], writable=False)]
        options.append(f"lowerdir={':'.join(map(str, chain))}")
        return [Mount(type="overlay", source="overlay", options=options)]

    def rebase(self, folder: Path, chain: Sequence[Path]) -> None:
        # The root folder of the merged tree is the upper one: it keeps the parent's owner.
        parent = chain[0].stat()
        os.chown(folder / "fs", parent.st_uid, parent.st_gid)


class Native:
    """A full copy of the parent: for file systems that overlayfs cannot lie on."""

    copies = True
    rebases = False

    def make(self, folder: Path, kind: str, chain: Sequence[Path]) -> None:
        files = folder / "fs"
        if not chain:
            files.mkdir(mode=0o755)
            files.chmod(0o755)
        elif kind == ACTIVE:
            _copy_tree(chain[0], files)
        else:
            files.mkdir(mode=0o755)

    def mounts(self, folder: Path, kind: str, chain: Sequence[Path]) -> list[Mount]:
        if kind == VIEW and chain:
            return [_bind(chain[0], writable=False)]
        return [_bind(folder / "fs", writable=kind == ACTIVE)]

    def rebase(self, folder: Path, chain: Sequence[Path]) -> None:
        raise NotImplementedError("a copy of nothing cannot be put on a parent")


DRIVERS: dict[str, type[Driver]] = {"overlayfs": Overlay, "native": Native}


def _bind(source: Path, *, writable: bool) -> Mount:
    return Mount(type="bind", source=str(source), options=["rw" if writable else "ro", "rbind"])


def _copy_tree(source: Path, target: Path) -> None:
    """Copy a tree with owners, modes, times, extended attributes, device nodes and hard links."""
    linked: dict[tuple[int, int], str] = {}

    def copy_file(have: str, make: str) -> str:
        facts = os.lstat(have)
        known = linked.get((facts.st_dev, facts.st_ino))
        if known is not None:
            os.link(known, make, follow_symlinks=False)
            return make
        if facts.st_nlink > 1:
            linked[facts.st_dev, facts.st_ino] = make
        mode = facts.st_mode
        if os.path.islink(have):
            os.symlink(os.readlink(have), make)
        elif os.path.isfile(have):
            shutil.copyfile(have, make)
        else:
            os.mknod(make, mode, facts.st_rdev)
        own(have, make, facts)
        return make

    def own(have: str, make: str, facts: os.stat_result) -> None:
        os.chown(make, facts.st_uid, facts.st_gid, follow_symlinks=False)
        shutil.copystat(have, make, follow_symlinks=False)

    def copy_folder(have: str, make: str) -> None:
        os.mkdir(make, 0o700)
        with os.scandir(have) as entries:
            for entry in entries:
                below = os.path.join(make, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    copy_folder(entry.path, below)
                else:
                    copy_file(entry.path, below)
        own(have, make, os.lstat(have))

    copy_folder(str(source), str(target))

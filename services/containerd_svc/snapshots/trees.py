"""Snapshot folders on disk, apart from their records: sizes and removal. All functions block."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def boot_id() -> str:
    """Which boot of the host this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def usage(files: Path) -> tuple[int, int]:
    """Bytes on disk and number of inodes below `files`; hard links count once. What vanishes meanwhile is
    left out.
    """
    seen: set[tuple[int, int]] = set()
    size = 0
    folders = [str(files)]
    facts = os.lstat(files)
    seen.add((facts.st_dev, facts.st_ino))
    size += facts.st_blocks * 512
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    facts = entry.stat(follow_symlinks=False)
                    if (facts.st_dev, facts.st_ino) in seen:
                        continue
                    seen.add((facts.st_dev, facts.st_ino))
                    size += facts.st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except FileNotFoundError:
            continue
    return size, len(seen)


def remove(folder: Path) -> None:
    """Remove a tree; fine when it is gone. Raises OSError for what cannot go, such as a mount point."""
    shutil.rmtree(folder, onerror=_absent_is_fine)


def _absent_is_fine(
    function: object, path: str, info: tuple[type[BaseException], BaseException, object]
) -> None:
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]

"""Paths that a container must not read (masked) or write (read-only)."""

from __future__ import annotations

import os
from collections.abc import Iterable

from linux import mounts as m

from runc_bin.libcontainer import devices, mount_labels, paths
from runc_bin.libcontainer.failures import step


def _open(root_fd: int, path: str) -> int | None:
    """The object to cover, or None when there is none. Links are followed inside the root."""
    try:
        return paths.open_in_root(root_fd, path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def mask(root_fd: int, masked: Iterable[str], label: str = "") -> None:
    """Cover files with the null device and directories with an empty read-only tmpfs, which gets the SELinux
    label.
    """
    covers: dict[bool, int] = {}
    try:
        for path in dict.fromkeys(os.path.normpath(path) for path in masked):
            with step(f'can\'t mask path "{path}"'):
                target = _open(root_fd, path)
                if target is not None:
                    try:
                        _cover(root_fd, target, covers, label)
                    finally:
                        os.close(target)
    finally:
        for fd in covers.values():
            os.close(fd)


def _cover(root_fd: int, target: int, covers: dict[bool, int], label: str) -> None:
    """Lay a copy of one of the `covers` (made at first use; the key: of a directory) on `target`."""
    directory = paths.is_directory(target)
    if directory not in covers:
        if directory:
            limits = [
                ("ro", None),
                ("nr_blocks", "1"),
                ("nr_inodes", "2"),
                *mount_labels.words("tmpfs", label),
            ]
            covers[True] = m.new_mount("tmpfs", "tmpfs", limits, m.MOUNT_ATTR_RDONLY)
            m.attach(covers[True], target)
            return
        covers[False] = devices.open_null(root_fd)
    _lay(m.clone_mount("", dir_fd=covers[directory]), target)


def _lay(cover: int, target: int) -> None:
    try:
        m.attach(cover, target)
    finally:
        os.close(cover)


def make_read_only(root_fd: int, readonly: Iterable[str]) -> None:
    """Cover each path by itself, read-only; its other flags stay."""
    for path in readonly:
        with step(f'can\'t make "{path}" read-only'):
            target = _open(root_fd, path)
            if target is None:
                continue
            try:
                cover = m.clone_mount("", dir_fd=target, recursive=True)
                m.change(cover, set_=m.MOUNT_ATTR_RDONLY)
                _lay(cover, target)
            finally:
                os.close(target)

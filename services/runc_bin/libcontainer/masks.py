"""Paths that a container must not read (masked) or write (read-only)."""

from __future__ import annotations

import os
from collections.abc import Iterable

from linux import mounts as m

from runc_bin.libcontainer import devices, paths


def _open(root_fd: int, path: str) -> int | None:
    """The object to cover, or None when there is none. Links are followed inside the root."""
    try:
        return paths.open_in_root(root_fd, path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def mask(root_fd: int, masked: Iterable[str]) -> None:
    """Cover files with the null device and directories with an empty read-only tmpfs."""
    null: int | None = None
    empty: int | None = None
    try:
        for path in dict.fromkeys(os.path.normpath(path) for path in masked):
            target = _open(root_fd, path)
            if target is None:
                continue
            try:
                if paths.is_directory(target):
                    if empty is None:
                        limits = [("ro", None), ("nr_blocks", "1"), ("nr_inodes", "2")]
                        empty = m.new_mount("tmpfs", "tmpfs", limits, m.MOUNT_ATTR_RDONLY)
                        m.attach(empty, target)
                        continue
                    cover = m.clone_mount("", dir_fd=empty)
                else:
                    if null is None:
                        null = devices.open_null(root_fd)
                    cover = m.clone_mount("", dir_fd=null)
                try:
                    m.attach(cover, target)
                finally:
                    os.close(cover)
            finally:
                os.close(target)
    finally:
        for fd in (null, empty):
            if fd is not None:
                os.close(fd)


def make_read_only(root_fd: int, readonly: Iterable[str]) -> None:
    """Cover each path by itself, read-only; its other flags stay."""
    for path in readonly:
        target = _open(root_fd, path)
        if target is None:
            continue
        try:
            cover = m.clone_mount("", dir_fd=target, recursive=True)
            try:
                m.change(cover, set_=m.MOUNT_ATTR_RDONLY)
                m.attach(cover, target)
            finally:
                os.close(cover)
        finally:
            os.close(target)

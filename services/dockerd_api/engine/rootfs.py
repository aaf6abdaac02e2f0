"""Reading a few files of a container's root without mounting it, and without following it out of its root.

Before the container runs, its root exists only as mount records: one folder, or layers of an overlay. A
path is looked up in the layers from the top, as overlayfs itself does (whiteouts, opaque folders;
https://docs.kernel.org/filesystems/overlayfs.html). Each layer is entered with openat2 and RESOLVE_BENEATH,
so that no link leads out of it; links are followed here, inside the container's root. While the container
runs, its own root is read through /proc/<pid>/root with RESOLVE_IN_ROOT.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import errdefs
from linux import syscalls

# linux/openat2.h
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH, _RESOLVE_IN_ROOT = 0x02, 0x04, 0x08, 0x10
_MOST_LINKS = 40  # as the kernel, path_resolution(7)


class MountRecord(Protocol):
    """The fields of containerd.types.Mount."""

    type: str
    source: str
    options: list[str]


@dataclass(frozen=True, slots=True)
class _Found:
    layer: int
    path: str
    mode: int


class Rootfs:
    """A container's root that is not mounted. Use as a context manager."""

    def __init__(self, mounts: Sequence[MountRecord]) -> None:
        self._layers: list[int] = []
        try:
            for path in layer_paths(mounts):
                self._layers.append(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except OSError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for layer in self._layers:
            os.close(layer)
        self._layers.clear()

    def kind(self, path: str) -> str:
        """ "folder", "file" (anything else that exists) or "" (missing) of a path, links followed."""
        found = self._find(path)
        if found is None:
            return ""
        return "folder" if stat.S_ISDIR(found.mode) else "file"

    def read(self, path: str, limit: int) -> bytes | None:
        """A regular file's bytes; None when it is missing or no regular file; InvalidArgument beyond the
        limit.
        """
        found = self._find(path)
        if found is None or not stat.S_ISREG(found.mode):
            return None
        resolve = _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS
        return _read_regular(
            syscalls.openat2(found.layer, found.path, os.O_PATH, resolve=resolve), path, limit
        )

    def _find(self, path: str) -> _Found | None:
        pending = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        here: list[tuple[str, list[int]]] = [("", self._layers)]
        links = 0
        while pending:
            part = pending.pop()
            if part == "..":
                if len(here) > 1:
                    here.pop()
                continue
            parent, visible = here[-1]
            child = f"{parent}/{part}" if parent else part
            found, below = _look_up(child, visible)
            if found is None:
                return None
            if stat.S_ISLNK(found.mode):
                links += 1
                if links > _MOST_LINKS:
                    return None
                target = _read_link(found)
                if target.startswith("/"):
                    here = here[:1]
                pending.extend(part for part in reversed(target.split("/")) if part not in ("", "."))
            elif stat.S_ISDIR(found.mode):
                here.append((child, below))
            elif pending:
                return None
            else:
                return found
        return _Found(self._layers[0], here[-1][0], stat.S_IFDIR) if self._layers else None


def read_running(pid: int, path: str, limit: int) -> bytes | None:
    """A regular file's bytes in a running container, by the root of its first process; None when it is
    missing or no regular file; InvalidArgument beyond the limit.
    """
    root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = syscalls.openat2(root, path, os.O_PATH, resolve=_RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise
    finally:
        os.close(root)
    return _read_regular(fd, path, limit)


def layer_paths(mounts: Sequence[MountRecord]) -> list[str]:
    """The folders of the layers, the top first."""
    if len(mounts) != 1:
        raise errdefs.Internal(f"a root of {len(mounts)} mounts cannot be read")
    mount = mounts[0]
    if mount.type != "overlay":
        return [mount.source]
    options = dict(option.split("=", 1) for option in mount.options if "=" in option)
    upper = [options["upperdir"]] if "upperdir" in options else []
    return [*upper, *(path for path in options.get("lowerdir", "").split(":") if path)]


def _look_up(path: str, layers: Sequence[int]) -> tuple[_Found | None, list[int]]:
    """What the path is in the merged view of the layers, and the layers that make up a folder."""
    top: _Found | None = None
    merged: list[int] = []
    for layer in layers:
        try:
            fd = syscalls.openat2(
                layer,
                path,
                os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC,
                resolve=_RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS,
            )
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                continue
            if error.errno in (errno.ELOOP, errno.EXDEV):
                break
            raise
        try:
            status = os.fstat(fd)
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:  # a whiteout
                break
            if not stat.S_ISDIR(status.st_mode):
                if top is None:
                    return _Found(layer, path, status.st_mode), []
                break
            top = top or _Found(layer, path, status.st_mode)
            merged.append(layer)
            if _opaque(fd):
                break
        finally:
            os.close(fd)
    return top, merged


def _opaque(fd: int) -> bool:
    try:
        return os.getxattr(f"/proc/self/fd/{fd}", "trusted.overlay.opaque") == b"y"
    except OSError:
        return False


def _read_link(found: _Found) -> str:
    fd = syscalls.openat2(
        found.layer,
        found.path,
        os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC,
        resolve=_RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS,
    )
    try:
        return os.readlink("", dir_fd=fd)
    finally:
        os.close(fd)


def _read_regular(fd: int, path: str, limit: int) -> bytes | None:
    """What an O_PATH descriptor, which is closed, refers to, if that is a regular file.

    Only then is it opened: to open a fifo could block, to open a device could act on the host.
    """
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        with open(f"/proc/self/fd/{fd}", "rb") as file:
            data = file.read(limit + 1)
    finally:
        os.close(fd)
    if len(data) > limit:
        raise errdefs.InvalidArgument(f"{path} of the container is larger than {limit} bytes")
    return data

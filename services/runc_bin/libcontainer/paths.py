"""Paths inside a container's root, resolved so that no link or `..` of the image leads out of it.

Everything starts from a descriptor of the root and goes through openat2(2) with RESOLVE_IN_ROOT; magic
links (/proc/self/fd/N, /proc/self/exe) are refused. What is returned is a descriptor, never a path, so what
was checked is what is used.
"""

from __future__ import annotations

import errno
import os
import stat

from errdefs import InvalidArgument
from linux import syscalls
from linux.mounts import PROC_SUPER_MAGIC
from linux.syscalls import RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS

_IN_ROOT = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS
DIRECTORY = os.O_PATH | os.O_DIRECTORY
_MOST_LINKS = 40
_MOST_TRIES = 1000


def open_in_root(root_fd: int, path: str, flags: int = os.O_PATH, *, no_links: bool = False) -> int:
    """Open an existing object; FileNotFoundError when there is none. With `no_links`, a link on the way is
    ELOOP.
    """
    resolve = _IN_ROOT | (RESOLVE_NO_SYMLINKS if no_links else 0)
    for _ in range(_MOST_TRIES):
        try:
            return syscalls.openat2(root_fd, path, flags, resolve=resolve)
        except BlockingIOError:  # a rename raced with `..`: openat2(2) asks for another try
            continue
    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), path)


def make_directories(root_fd: int, path: str, mode: int = 0o755, *, no_links: bool = False) -> int:
    """Open a directory, making it and its missing parents (owner root, `mode`).

    A link that leads nowhere is followed inside the root, so that `/var/run -> /run` works in an image
    without /run.
    """
    return open_or_make(root_fd, path, mode, no_links=no_links)[0]


def open_or_make(root_fd: int, path: str, mode: int = 0o755, *, no_links: bool = False) -> tuple[int, bool]:
    """As `make_directories`, and whether the directory was there before."""
    try:
        return open_in_root(root_fd, path, DIRECTORY, no_links=no_links), True
    except FileNotFoundError:
        pass
    # Mostly the last one alone is missing.
    directory, _, name = path.rstrip("/").rpartition("/")
    if name not in ("", ".", ".."):
        try:
            parent = open_in_root(root_fd, directory or "/", DIRECTORY, no_links=no_links)
        except FileNotFoundError:
            return _make(root_fd, path, mode, no_links, 0), False
        try:
            return _make_one(root_fd, parent, name, path, directory, mode, no_links, 0), False
        finally:
            os.close(parent)
    return _make(root_fd, path, mode, no_links, 0), False


def _make(root_fd: int, path: str, mode: int, no_links: bool, depth: int) -> int:
    if depth > _MOST_LINKS:
        raise InvalidArgument(f"too many links in {path!r}")
    parent = os.dup(root_fd)
    done = ""
    for name in path.split("/"):
        if name in ("", "."):
            continue
        here = f"{done}/{name}"
        try:
            child = open_in_root(root_fd, here, DIRECTORY, no_links=no_links)
        except FileNotFoundError:
            try:
                child = _make_one(root_fd, parent, name, here, done, mode, no_links, depth)
            finally:
                os.close(parent)
        except BaseException:
            os.close(parent)
            raise
        else:
            os.close(parent)
        parent, done = child, here
    return parent


def _make_one(
    root_fd: int, parent: int, name: str, here: str, done: str, mode: int, no_links: bool, depth: int
) -> int:
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        target = _link_target(parent, name, done)
        if target is not None:
            return _make(root_fd, target, mode, no_links, depth + 1)
    return open_in_root(root_fd, here, DIRECTORY, no_links=no_links)


def _link_target(parent: int, name: str, directory: str) -> str | None:
    """Where a link in `directory` (of which `parent` is a descriptor) leads, as a path from the root.

    None when it is none any more: another process has just made what was missing. A link of a procfs is
    ELOOP: what it says is not where it leads.
    """
    if syscalls.filesystem_type(parent) == PROC_SUPER_MAGIC:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), f"{directory}/{name}")
    try:
        target = os.readlink(name, dir_fd=parent)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT):
            return None
        raise
    return target if target.startswith("/") else f"{directory}/{target}"


def parent_and_name(root_fd: int, path: str) -> tuple[int, str]:
    """A descriptor of the (made) parent directory, and the last component, which is not followed."""
    directory, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise InvalidArgument(f"{path!r} does not name a file")
    return make_directories(root_fd, directory or "/"), name


def make_file(root_fd: int, path: str, mode: int = 0o644, *, no_links: bool = False) -> int:
    """Open an object, making an empty file when there is none; a link that leads nowhere is followed, as for
    `make_directories`. The descriptor is good as the target of a mount.
    """
    here = path
    for _ in range(_MOST_LINKS):
        try:
            return open_in_root(root_fd, here, no_links=no_links)
        except FileNotFoundError:
            parent, name = parent_and_name(root_fd, here)
        try:
            return os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=parent)
        except FileExistsError:
            here = _link_target(parent, name, here.rstrip("/").rpartition("/")[0]) or here
        finally:
            os.close(parent)
    raise InvalidArgument(f"too many links in {path!r}")


def is_directory(fd: int) -> bool:
    """Whether a descriptor is one of a directory."""
    return stat.S_ISDIR(os.fstat(fd).st_mode)


def same_object(one: int, other: int) -> bool:
    """Whether two descriptors refer to one inode."""
    return os.path.samestat(os.fstat(one), os.fstat(other))

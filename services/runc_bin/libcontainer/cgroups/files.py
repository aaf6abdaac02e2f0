"""Reading and writing of cgroup control files, with errors that name the file.

cgroup files take one value per write(2), and a short read is never partial, so plain open/write/close is
enough and no buffered file object is made on the hot path.
"""

from __future__ import annotations

import errno
import os

from errdefs import BuoyError, Internal, InvalidArgument, NotFound, PermissionDenied

_WRITE = os.O_WRONLY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_CLOEXEC


def write(path: str, value: str) -> None:
    """Write `value` to the control file `path`; OSError as the kernel gives it."""
    fd = os.open(path, _WRITE)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def read(path: str) -> str:
    """The whole text of a control file; OSError as the kernel gives it."""
    fd = os.open(path, _READ)
    try:
        chunk = os.read(fd, 65536)
        if len(chunk) < 4096:
            return chunk.decode()
        parts = [chunk]
        while chunk := os.read(fd, 65536):
            parts.append(chunk)
        return b"".join(parts).decode()
    finally:
        os.close(fd)


def read_number(path: str) -> int:
    """A file that holds one number; `max` is 2^64-1, as in cgroup v1's words for "no limit"."""
    text = read(path).strip()
    return (1 << 64) - 1 if text == "max" else int(text)


def read_table(path: str) -> dict[str, int]:
    """A file of `key number` lines (flat keyed, cgroups(7)). Lines of another form are left out."""
    table: dict[str, int] = {}
    for line in read(path).splitlines():
        key, _, value = line.partition(" ")
        if value.isdigit():
            table[key] = int(value)
    return table


def refused(path: str, value: str, error: OSError) -> BuoyError:
    """The error for a user when the kernel refuses `value` for the control file `path`."""
    message = f'failed to write "{value}": write {path}: {(error.strerror or str(error)).lower()}'
    if error.errno in (errno.EINVAL, errno.ERANGE, errno.ENOSPC):
        return InvalidArgument(message)
    if error.errno in (errno.EPERM, errno.EACCES, errno.EROFS):
        return PermissionDenied(message)
    if error.errno in (errno.ENOENT, errno.ENODEV):
        return NotFound(message)
    return Internal(message)


def set_value(path: str, value: str) -> None:
    """`write`, with the refusal turned into one of our errors."""
    try:
        write(path, value)
    except OSError as error:
        raise refused(path, value, error) from error


def pids_in(directory: str) -> list[int]:
    """The processes directly in one cgroup. A threaded cgroup (v2) is read by its threads."""
    try:
        text = read(directory + "/cgroup.procs")
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        text = read(directory + "/cgroup.threads")
    return [int(line) for line in text.split()]


def pids_below(directory: str) -> list[int]:
    """The processes in a cgroup and all its descendants; empty when it is gone."""
    found: list[int] = []
    try:
        found += pids_in(directory)
        for name in children(directory):
            found += pids_below(f"{directory}/{name}")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise
    return found


def children(directory: str) -> list[str]:
    """Names of the sub-cgroups of a cgroup."""
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]

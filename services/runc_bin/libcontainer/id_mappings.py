"""User and group ids of a container with a user namespace: user_namespaces(7).

A mapping is written once, by the process outside: directly with the privilege to, else by newuidmap(1) and
newgidmap(1), which know what an ordinary user may map (subuid(5)). Loaded only where a user namespace is
asked for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from errdefs import DeadlineExceeded, Internal, InvalidArgument
from linux import fds, signals, syscalls

from runc_bin.libcontainer.failures import reason
from runc_bin.libcontainer.spec import IdMapping, Mount, Namespace, Spec
from runc_bin.record import Record

_MOST_RANGES = 340  # of Linux 4.15: user_namespaces(7)
_IDS = 2**32 - 1  # the largest number is no id
_TOOL_SECONDS = 10.0
_TOOL_OUTPUT = 1000

Ranges = tuple[IdMapping, ...]


class Maps(Record):
    """Both mappings of a user namespace, as the caller sees them."""

    uids: Ranges
    gids: Ranges

    def host_uid(self, uid: int) -> int:
        """The caller's number for a user of the container; InvalidArgument when it has none."""
        return _outside(self.uids, uid, "uid")

    def host_gid(self, gid: int) -> int:
        """The caller's number for a group of the container; InvalidArgument when it has none."""
        return _outside(self.gids, gid, "gid")


def _outside(ranges: Ranges, id: int, what: str) -> int:
    if not ranges:
        raise InvalidArgument(f"user namespaces enabled, but no {what} mappings found")
    for item in ranges:
        if 0 <= id - item.container_id < item.size:
            return item.host_id + id - item.container_id
    raise InvalidArgument(f"user namespaces enabled, but no mapping found for {what} {id}")


def check_given(uids: Ranges, gids: Ranges, namespace: Namespace | None) -> None:
    """Refuse mappings that the spec cannot mean, by what it says alone; InvalidArgument."""
    if namespace is None:
        raise InvalidArgument(
            f"linux.{'uid' if uids else 'gid'}Mappings: "
            "user namespace mappings specified, but user namespace isn't enabled in the config"
        )
    if not namespace.path and not uids and not gids:
        raise InvalidArgument(
            "linux.uidMappings: "
            "user namespaces enabled, but no namespace path to join nor mappings to apply specified"
        )
    check_ranges(uids, "linux.uidMappings")
    check_ranges(gids, "linux.gidMappings")


def check_ranges(ranges: Ranges, field: str) -> None:
    """Refuse a mapping that the kernel would not take; InvalidArgument naming the `field`."""
    if len(ranges) > _MOST_RANGES:
        raise InvalidArgument(f"{field} must not hold more than {_MOST_RANGES} ranges")
    for side in ("container_id", "host_id"):
        end = 0
        for first, size in sorted((getattr(item, side), item.size) for item in ranges):
            if first < end:
                raise InvalidArgument(f"{field}: ranges overlap at {first}")
            end = first + size
            if end > _IDS:
                raise InvalidArgument(f"{field}: a range ends beyond the largest id")


def settle(spec: Spec) -> Maps:
    """The mappings that a container will have, all ids of its spec being checked against them.

    The spec has a user namespace. One that is joined is looked at: what the spec says of it must be so.
    InvalidArgument.
    """
    maps = Maps(spec.uid_mappings, spec.gid_mappings)
    path = spec.namespaces["user"].path
    if path:
        maps = of_namespace(path)
        given = Maps(spec.uid_mappings, spec.gid_mappings)
        if (given.uids or given.gids) and not _same(given, maps):
            raise InvalidArgument(
                "user namespaces enabled, but both namespace path and non-matching mapping specified"
                " -- you may only provide one"
            )
    maps.host_uid(0), maps.host_gid(0)
    process = spec.process
    if process is not None:
        check_user(maps, process.uid, process.gid, process.additional_gids)
    for mount in spec.mounts:
        _check_owner(mount, maps)
    return maps


def check_user(maps: Maps, uid: int, gid: int, additional: Sequence[int]) -> None:
    """Refuse to run as somebody who is not mapped; InvalidArgument."""
    for ranges, id, what in (
        (maps.uids, uid, "uid"),
        (maps.gids, gid, "gid"),
        *((maps.gids, item, "gid") for item in additional),
    ):
        try:
            _outside(ranges, id, what)
        except InvalidArgument:
            message = f"cannot set{what} to unmapped {what} {id} in user namespace"
            raise InvalidArgument(message) from None


def _check_owner(mount: Mount, maps: Maps) -> None:
    """A file system can be given to those users only who exist."""
    if mount.kind == "bind":
        return
    for key, value in mount.options.data:
        if key in ("uid", "gid") and value and value.isascii() and value.isdecimal():
            try:
                (maps.host_uid if key == "uid" else maps.host_gid)(int(value))
            except InvalidArgument as error:
                message = f"cannot specify {key}={value} mount option ({mount.destination}): {error.message}"
                raise InvalidArgument(message) from None


def _same(one: Maps, other: Maps) -> bool:
    return all(
        sorted(a, key=_first) == sorted(b, key=_first)
        for a, b in ((one.uids, other.uids), (one.gids, other.gids))
    )


def _first(item: IdMapping) -> int:
    return item.container_id


def of_process(pid: int) -> Maps:
    """The mappings of the user namespace that a process is in; OSError."""
    return Maps(_read(f"/proc/{pid}/uid_map"), _read(f"/proc/{pid}/gid_map"))


def _read(path: str) -> Ranges:
    with open(path, encoding="ascii") as lines:
        return tuple(IdMapping(*map(int, line.split())) for line in lines)


def of_namespace(path: str) -> Maps:
    """The mappings of the user namespace behind a path, seen through a process that joins it.

    InvalidArgument when it cannot be joined.
    """
    joined, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signals.SIGKILL)
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
            syscalls.setns(os.open(path, os.O_RDONLY | os.O_CLOEXEC), syscalls.CLONE_NEWUSER)
            os.write(told, b"+")
            signals.pause()
        except OSError as error:
            os.write(told, os.strerror(error.errno or 0).lower().encode())
        finally:
            os._exit(1)
    os.close(told)
    try:
        answer = os.read(joined, 100).decode()
        if answer != "+":
            raise InvalidArgument(f"failed to cache mappings for userns: join {path}: {answer}")
        return of_process(pid)
    finally:
        os.close(joined)
        os.kill(pid, signals.SIGKILL)
        os.waitpid(pid, 0)


def write(pid: int, maps: Maps) -> None:
    """Write the mappings of a process's new user namespace.

    Internal with the words of runc. ProcessLookupError or FileNotFoundError when the process is gone.
    """
    single = len(maps.gids) == 1 and maps.gids[0].size == 1 and maps.gids[0].host_id == os.getegid()
    if os.geteuid() != 0 and single:
        # Only who gives up setgroups(2) may map a group without privilege, lest a group that denies him
        # something be dropped: user_namespaces(7).
        _put(f"/proc/{pid}/setgroups", "deny")
    for name, ranges in (("uid", maps.uids), ("gid", maps.gids)):
        path = f"/proc/{pid}/{name}_map"
        lines = [f"{item.container_id} {item.host_id} {item.size}" for item in ranges]
        try:
            _put(path, "\n".join(lines) + "\n")
        except PermissionError as error:
            tool = _find(f"new{name}map")
            if not tool:
                message = f"failed to update {path}: {reason(error)}: new{name}map not present"
                raise Internal(message) from None
            _run(tool, [str(pid), *(word for line in lines for word in line.split())])
        except (FileNotFoundError, ProcessLookupError):
            raise
        except OSError as error:
            raise Internal(f"failed to update {path}: {reason(error)}") from error


def _put(path: str, text: str) -> None:
    """One write, as the kernel wants it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _find(tool: str) -> str:
    """The path of a mapping tool; empty where there is none."""
    for folder in (*os.environ.get("PATH", "").split(":"), "/usr/bin", "/bin"):
        if folder.startswith("/") and os.access(f"{folder}/{tool}", os.X_OK):
            return f"{folder}/{tool}"
    return ""


def _run(tool: str, words: Sequence[str]) -> None:
    """Run a mapping tool to its end; Internal with what it says."""
    output, end = os.pipe()
    streams = [(os.POSIX_SPAWN_DUP2, end, fd) for fd in (1, 2)]
    try:
        pid = os.posix_spawn(
            tool,
            [tool, *words],
            {},
            file_actions=streams,
            setsigmask=(),
            setsigdef=(signals.SIGPIPE, signals.SIGTERM, signals.SIGINT),
        )
    finally:
        os.close(end)
    pidfd = fds.open_pidfd(pid)
    try:
        ended = fds.has_exited(pidfd, _TOOL_SECONDS)
        if not ended:
            fds.signal_pidfd(pidfd, signals.SIGKILL)
        _, status = os.waitpid(pid, 0)
        said = os.read(output, _TOOL_OUTPUT).decode(errors="replace").strip() if ended else ""
    finally:
        os.close(pidfd)
        os.close(output)
    if not ended:
        raise DeadlineExceeded(f"{tool} did not end within {_TOOL_SECONDS:.0f} s")
    if status:
        raise Internal(f"failed to use {os.path.basename(tool)} on {words[0]}: {said}".removesuffix(": "))

"""/dev: device nodes, the standard links, /dev/ptmx. See "Default Devices" in the runtime spec's
config-linux.md.
"""

from __future__ import annotations

import errno
import os
import stat

from errdefs import FailedPrecondition, InvalidArgument
from linux import mounts as m

from runc_bin import contexts
from runc_bin.libcontainer import paths
from runc_bin.libcontainer.spec import Device, Spec

_DEFAULT = tuple(
    Device(f"/dev/{name}", "c", major, minor, 0o666, 0, 0)
    for name, major, minor in (
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    )
)
_LINKS = (
    ("ptmx", "pts/ptmx"),
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
)
_FORMAT = {"c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
_NULL = os.makedev(1, 3)


def wants_devices(spec: Spec) -> bool:
    """Whether /dev is ours to fill: not when the spec binds one of the host's there."""
    return not any(
        mount.kind == "bind" and not mount.options.remount and os.path.normpath(mount.destination) == "/dev"
        for mount in spec.mounts
    )


def binds_nodes(spec: Spec) -> bool:
    """Whether nodes are the host's, bound: nobody may make any in a user namespace."""
    return "user" in spec.namespaces


def wanted(spec: Spec) -> tuple[Device, ...]:
    """The devices that the container gets: the default ones, and those of the spec, which win over a default
    of the same path.
    """
    found = {device.path: device for device in _DEFAULT}
    found.update({device.path: device for device in spec.devices})
    found.pop("/dev/ptmx", None)
    return tuple(found.values())


def fill_dev(root_fd: int, spec: Spec, mounted: int | None) -> None:
    """Make the default devices, those of the spec (which win over a default of the same path), and the
    links. In a user namespace, where nobody may make nodes, the host's are bound instead; they keep the
    host's owner and mode. `mounted` is what the spec has mounted on /dev, if it has.

    FailedPrecondition when something else is at a device's path, or the host has no such device to bind.
    """
    bound = binds_nodes(spec)
    # Where a link of the image leads by now is of no account: nodes come into the mount that is ours.
    dev = _open_dev(root_fd) if mounted is None else paths.open_in_root(mounted, "/", paths.DIRECTORY)
    folders = {"/dev": dev}
    try:
        for device in wanted(spec):
            directory, _, name = device.path.rpartition("/")
            folder = folders.get(directory)
            if folder is None:
                below = directory.startswith("/dev/")
                base, inner = (dev, directory[4:]) if below else (root_fd, directory or "/")
                folder = folders[directory] = paths.make_directories(base, inner)
            if bound and device.kind != "p":
                _bind_node(folder, name, device)
            else:
                _make_node(folder, name, device)
        with contexts.suppress(FileNotFoundError):
            os.unlink("ptmx", dir_fd=dev)
        for name, target in _LINKS:
            with contexts.suppress(FileExistsError):
                os.symlink(target, name, dir_fd=dev)
        if os.path.exists("/proc/kcore"):
            with contexts.suppress(FileExistsError):
                os.symlink("/proc/kcore", "core", dir_fd=dev)
    finally:
        for folder in folders.values():
            os.close(folder)


def _open_dev(root_fd: int) -> int:
    """/dev of the image, which must not be a link: it would decide where device nodes appear."""
    try:
        return paths.make_directories(root_fd, "/dev", no_links=True)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise InvalidArgument("/dev of the root must be an ordinary directory") from None
        raise


def _is_node(info: os.stat_result, device: Device) -> bool:
    """Whether an inode is that device."""
    if stat.S_IFMT(info.st_mode) != _FORMAT[device.kind]:
        return False
    return device.kind == "p" or info.st_rdev == os.makedev(device.major, device.minor)


def _make_node(folder: int, name: str, device: Device) -> None:
    number = os.makedev(device.major, device.minor) if device.kind != "p" else 0
    try:
        os.mknod(name, _FORMAT[device.kind] | device.mode, number, dir_fd=folder)
    except FileExistsError:
        if not _is_node(os.stat(name, dir_fd=folder, follow_symlinks=False), device):
            raise _occupied(device) from None
        return
    except PermissionError:
        _bind_node(folder, name, device)
        return
    info = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) != (device.mode, device.uid, device.gid):
        _set_owner_and_mode(folder, name, device)


def _set_owner_and_mode(folder: int, name: str, device: Device) -> None:
    """By descriptor, once it is certain what it is one of: the name may be another's by now."""
    node = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if not _is_node(os.fstat(node), device):
            raise _occupied(device)
        path = f"/proc/self/fd/{node}"
        os.chown(path, device.uid, device.gid)
        os.chmod(path, device.mode)  # after the owner, whose change takes set-id bits away
    finally:
        os.close(node)


def _bind_node(folder: int, name: str, device: Device) -> None:
    """Bind the host's node over a file."""
    try:
        target = os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except FileExistsError:
        target = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        info = os.fstat(target)
        if _is_node(info, device):
            return
        if not stat.S_ISREG(info.st_mode):
            raise _occupied(device)
        source = _host_node(device)
        try:
            m.attach(source, target)
        finally:
            os.close(source)
    finally:
        os.close(target)


def _host_node(device: Device) -> int:
    """A detached mount of the host's node: at the same path, or where the kernel says that the device is."""
    names = [device.path]
    kind = "block" if device.kind == "b" else "char"
    try:
        with open(f"/sys/dev/{kind}/{device.major}:{device.minor}/uevent", encoding="utf-8") as file:
            names += [f"/dev/{line[8:]}" for line in file.read().splitlines() if line.startswith("DEVNAME=")]
    except OSError:
        pass
    for name in names:
        try:
            node = m.clone_mount(name)
        except OSError:
            continue
        if _is_node(os.fstat(node), device):
            return node
        os.close(node)
    number = f"{device.kind} {device.major}:{device.minor}"
    raise FailedPrecondition(f"device {device.path}: the host has no {number} to bind")


def _occupied(device: Device) -> FailedPrecondition:
    number = "" if device.kind == "p" else f" {device.major}:{device.minor}"
    return FailedPrecondition(
        f"device {device.path}: what is there already does not match {device.kind}{number}"
    )


def open_null(root_fd: int) -> int:
    """/dev/null of a root, an O_PATH descriptor, certainly character device 1:3 (CVE-2025-31133)."""
    fd = paths.open_in_root(root_fd, "/dev/null")
    if not is_null(fd):
        os.close(fd)
        raise OSError(errno.EINVAL, "container's /dev/null is invalid")
    return fd


def is_null(fd: int) -> bool:
    """Whether a descriptor is one of the null device."""
    info = os.fstat(fd)
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == _NULL


def reopen_null(root_fd: int) -> None:
    """Where standard streams are the host's /dev/null, make them the container's."""
    streams = [fd for fd in range(3) if is_null(fd)]
    if not streams:
        return
    null = paths.open_in_root(root_fd, "/dev/null", os.O_RDWR)
    try:
        if not is_null(null):
            raise OSError(errno.EINVAL, "can't reopen /dev/null: container's /dev/null is invalid")
        for fd in streams:
            os.dup2(null, fd, inheritable=True)
    finally:
        os.close(null)

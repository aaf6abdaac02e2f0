"""/dev: device nodes, the standard links, /dev/ptmx. See "Default Devices" in the runtime spec's
config-linux.md.
"""

from __future__ import annotations

import errno
import os
import stat

from errdefs import Internal
from linux import mounts as m

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
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
)
_FORMAT = {"c": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
_NULL = os.makedev(1, 3)


def wants_devices(spec: Spec) -> bool:
    """Whether /dev is ours to fill: not when the spec binds one of the host's there."""
    return not any(x.kind == "bind" and os.path.normpath(x.destination) == "/dev" for x in spec.mounts)


def fill_dev(root_fd: int, spec: Spec) -> None:
    """Make the default devices, those of the spec (which win over a default of the same path), and the
    links.
    """
    wanted = {device.path: device for device in _DEFAULT}
    wanted.update({os.path.normpath(device.path): device for device in spec.devices})
    wanted.pop("/dev/ptmx", None)
    folders: dict[str, int] = {}
    try:
        for path, device in wanted.items():
            directory, _, name = path.rpartition("/")
            folder = folders.get(directory)
            if folder is None:
                folder = folders[directory] = paths.make_directories(root_fd, directory or "/")
            _make_node(folder, name, device)
    finally:
        for folder in folders.values():
            os.close(folder)
    paths.make_link(root_fd, "/dev/ptmx", "pts/ptmx", replace=True)
    for path, target in _LINKS:
        paths.make_link(root_fd, path, target)
    if os.path.exists("/proc/kcore"):
        paths.make_link(root_fd, "/dev/core", "/proc/kcore")


def _make_node(folder: int, name: str, device: Device) -> None:
    kind = _FORMAT[device.kind]
    number = os.makedev(device.major, device.minor) if device.kind != "p" else 0
    try:
        os.mknod(name, kind | device.mode, number, dir_fd=folder)
    except FileExistsError:
        return
    except PermissionError:
        _bind_node(folder, name, device)
        return
    info = os.stat(name, dir_fd=folder, follow_symlinks=False)
    if stat.S_IFMT(info.st_mode) != kind or info.st_rdev != number:
        raise Internal(f"device {device.path} was replaced while it was made")
    if stat.S_IMODE(info.st_mode) != device.mode:
        os.chmod(name, device.mode, dir_fd=folder)
    if (info.st_uid, info.st_gid) != (device.uid, device.gid):
        os.chown(name, device.uid, device.gid, dir_fd=folder, follow_symlinks=False)


def _bind_node(folder: int, name: str, device: Device) -> None:
    """Where the kernel lets nobody make nodes, bind the host's."""
    target = os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    try:
        source = m.clone_mount(device.path)
        try:
            m.attach(source, target)
        finally:
            os.close(source)
    finally:
        os.close(target)


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

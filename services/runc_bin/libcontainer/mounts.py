"""One mount of the spec, made detached and then attached to a descriptor of its target in the root.

Nothing is resolved twice: the target is opened inside the root, the mount is made as a descriptor with its
flags set, and only then it becomes visible. See CVE-2021-30465, CVE-2019-19921, CVE-2023-27561 for what
this avoids.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from errdefs import InvalidArgument
from linux import mounts as m
from linux import syscalls

from runc_bin.libcontainer import paths
from runc_bin.libcontainer.mount_options import MountOptions
from runc_bin.libcontainer.spec import Mount

# Single files that lxcfs stands in for; nothing else may cover a part of /proc.
_PROC_FILES = frozenset(
    (
        "/proc/cpuinfo",
        "/proc/diskstats",
        "/proc/meminfo",
        "/proc/stat",
        "/proc/swaps",
        "/proc/uptime",
        "/proc/loadavg",
        "/proc/slabinfo",
        "/proc/sys/kernel/ns_last_pid",
        "/proc/sys/crypto/fips_enabled",
    )
)


class Mounter:
    """Makes the mounts of one container below `root_fd`, in the spec's order.

    `proc_fd` becomes the descriptor of the container's own procfs (or None). Mounts that must still be
    written to (tmpfs, /dev) are made writable and turned read-only by `make_read_only`.
    """

    def __init__(self, root_fd: int) -> None:
        self._root = root_fd
        self.proc_fd: int | None = None
        self._later: list[tuple[int, str]] = []

    def new(self, mount: Mount) -> None:
        """Mount a new file system."""
        options = mount.options
        plain = mount.kind in ("proc", "sysfs")
        target = self._directory(mount, no_links=plain)
        try:
            self._check_proc(mount, target)
            words = list(options.data)
            if mount.kind == "tmpfs" and not any(key == "mode" for key, _ in words):
                words.insert(0, ("mode", f"{stat.S_IMODE(os.fstat(target).st_mode):04o}"))
            late = options.read_only and (mount.kind == "tmpfs" or mount.destination == "/dev")
            set_, _ = options.attributes()
            if late:
                set_ &= ~m.MOUNT_ATTR_RDONLY
            supers = [word for word in options.super_words() if not (late and word[0] == "ro")]
            made = m.new_mount(mount.kind, mount.source or mount.kind, supers + words, set_)
            if options.copy_up:
                self._copy_up(target, made)
            self.finish(made, target, options, keep=late or mount.kind == "proc")
            if late:
                self._later.append((made, mount.destination))
            elif mount.kind == "proc":
                if self.proc_fd is not None:
                    os.close(self.proc_fd)
                self.proc_fd = made
        finally:
            os.close(target)

    def bind(self, mount: Mount) -> None:
        """Mount an existing file or tree."""
        options = mount.options
        made = m.clone_mount(mount.source, recursive=bool(options.flags & m.MS_REC))
        if paths.is_directory(made):
            target = self._directory(mount)
        else:
            target = paths.make_file(self._root, mount.destination)
            if paths.is_directory(target):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        try:
            self._check_proc(mount, target, made)
            set_, clear = options.attributes()
            if set_ or clear:
                m.change(made, set_=set_, clear=clear)
            self.finish(made, target, options)
        finally:
            os.close(target)

    def finish(self, made: int, target: int, options: MountOptions, *, keep: bool = False) -> None:
        """Attach `made` at `target` with its propagation; closes `made` unless `keep`."""
        try:
            m.attach(made, target)
            for propagation in options.propagation:
                m.change(made, propagation=propagation & ~m.MS_REC, recursive=bool(propagation & m.MS_REC))
            if options.recursive_set or options.recursive_clear:
                m.change(made, set_=options.recursive_set, clear=options.recursive_clear, recursive=True)
        except BaseException:
            os.close(made)
            raise
        if not keep:
            os.close(made)

    def make_read_only(self) -> None:
        """Turn those mounts read-only that had to wait."""
        for fd, _ in self._later:
            m.change(fd, set_=m.MOUNT_ATTR_RDONLY)
            os.close(fd)
        self._later.clear()

    def _directory(self, mount: Mount, *, no_links: bool = False) -> int:
        try:
            target = paths.make_directories(self._root, mount.destination, no_links=no_links)
        except OSError as error:
            if no_links and error.errno in (errno.ELOOP, errno.ENOTDIR):
                message = f'filesystem "{mount.kind}" must be mounted on ordinary directory'
                raise InvalidArgument(message) from None
            raise
        if paths.same_object(target, self._root):
            os.close(target)
            raise InvalidArgument(f"mountpoint {mount.destination!r} is on the top of rootfs")
        return target

    def _check_proc(self, mount: Mount, target: int, source: int | None = None) -> None:
        """Refuse what would put something else in the place of (a part of) the container's /proc."""
        if syscalls.filesystem_type(target) == m.PROC_SUPER_MAGIC:
            clean = os.path.normpath(mount.destination)
            over_root = clean == "/proc" and mount.kind == "proc"
            if not over_root and clean not in _PROC_FILES and not self._is_procfs(source, clean):
                raise InvalidArgument(f'"{mount.destination}" cannot be mounted because it is inside /proc')
            return
        try:
            proc = paths.open_in_root(self._root, "/proc")
        except OSError:
            return
        try:
            same = paths.same_object(proc, target)
        finally:
            os.close(proc)
        if same and mount.kind != "proc" and not self._is_procfs(source, "/proc"):
            raise InvalidArgument(f'"{mount.destination}" cannot be mounted because it is not of type proc')

    @staticmethod
    def _is_procfs(source: int | None, clean: str) -> bool:
        return (
            clean == "/proc" and source is not None and syscalls.filesystem_type(source) == m.PROC_SUPER_MAGIC
        )

    def _copy_up(self, target: int, made: int) -> None:
        """Copy what lies below a tmpfs into it before it covers it (podman's `tmpcopyup`)."""
        source = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=target)
        destination = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=made)
        try:
            copy_tree(source, destination)
        finally:
            os.close(source)
            os.close(destination)


def copy_tree(source: int, destination: int) -> None:
    """Copy the content of one directory descriptor into another: modes, owners, times, links, devices."""
    with os.scandir(source) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        _copy_entry(source, destination, name)
    info = os.fstat(source)
    os.fchown(destination, info.st_uid, info.st_gid)
    os.fchmod(destination, stat.S_IMODE(info.st_mode))


def _copy_entry(source: int, destination: int, name: str) -> None:
    info = os.stat(name, dir_fd=source, follow_symlinks=False)
    kind = stat.S_IFMT(info.st_mode)
    if kind == stat.S_IFDIR:
        os.mkdir(name, 0o700, dir_fd=destination)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        with contextlib.ExitStack() as stack:
            inner = os.open(name, flags, dir_fd=source)
            stack.callback(os.close, inner)
            outer = os.open(name, flags, dir_fd=destination)
            stack.callback(os.close, outer)
            copy_tree(inner, outer)
    elif kind == stat.S_IFLNK:
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=destination)
        os.chown(name, info.st_uid, info.st_gid, dir_fd=destination, follow_symlinks=False)
    elif kind == stat.S_IFREG:
        reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
        writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=destination)
        try:
            while os.sendfile(writer, reader, None, 1 << 20):
                pass
            os.fchown(writer, info.st_uid, info.st_gid)
            os.fchmod(writer, stat.S_IMODE(info.st_mode))
        finally:
            os.close(reader)
            os.close(writer)
    else:
        os.mknod(name, info.st_mode, info.st_rdev, dir_fd=destination)
        os.chown(name, info.st_uid, info.st_gid, dir_fd=destination, follow_symlinks=False)
    if kind != stat.S_IFLNK:
        os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=destination, follow_symlinks=False)

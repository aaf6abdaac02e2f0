"""One mount of the spec, made detached and then attached to a descriptor of its target in the root.

Nothing is resolved twice: the target is opened inside the root, the mount is made as a descriptor with its
flags set, and only then it becomes visible. See CVE-2021-30465, CVE-2019-19921, CVE-2023-27561 for what
this avoids.
"""

from __future__ import annotations

import errno
import os
import stat

from errdefs import FailedPrecondition, InvalidArgument
from linux import mounts as m
from linux import syscalls

from runc_bin.libcontainer import mount_labels, paths
from runc_bin.libcontainer.mount_options import MountOptions, data_text
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


# What statvfs(3) calls the flags that the kernel may have locked: mount_namespaces(7).
_LOCKABLE = (
    (os.ST_RDONLY, m.MOUNT_ATTR_RDONLY, "MS_RDONLY"),
    (os.ST_NOSUID, m.MOUNT_ATTR_NOSUID, "MS_NOSUID"),
    (os.ST_NODEV, m.MOUNT_ATTR_NODEV, "MS_NODEV"),
    (os.ST_NOEXEC, m.MOUNT_ATTR_NOEXEC, "MS_NOEXEC"),
)
_ATIME_NAMES = (
    (os.ST_NOATIME, "MS_NOATIME"),
    (os.ST_NODIRATIME, "MS_NODIRATIME"),
    (os.ST_RELATIME, "MS_RELATIME"),
)


class Mounter:
    """Makes the mounts of one container below `root_fd`, in the spec's order.

    `label` is the SELinux label of new file systems, empty for none. `proc_fd` becomes the descriptor of the
    container's own procfs (or None), `dev_fd` of what is mounted on /dev, wherever a link of the image leads.
    Mounts that must still be written to (tmpfs, /dev) are made writable and turned read-only by
    `make_read_only`.
    """

    def __init__(self, root_fd: int, label: str = "") -> None:
        self._root = root_fd
        self.label = label
        self._root_info = os.fstat(root_fd)
        self._proc_device: int | None = None  # of the procfs at /proc, where `new` has made it
        self.proc_fd: int | None = None
        self.dev_fd: int | None = None
        self._later: list[int] = []

    def new(self, mount: Mount) -> None:
        """Mount a new file system."""
        options = mount.options
        target, existed = self.directory(mount)
        try:
            words = [*options.data, *mount_labels.words(mount.kind, self.label)]
            has_mode = any(key == "mode" for key, _ in words)
            if mount.kind == "tmpfs" and existed and not has_mode:
                words.insert(0, ("mode", f"{stat.S_IMODE(os.fstat(target).st_mode):04o}"))
            late = _is_late(mount)
            made = self._make(mount, words, late=late)
            mount_labels.label_root(mount.kind, made, self.label)
            place = os.path.normpath(mount.destination)
            is_proc = mount.kind == "proc" and place == "/proc"
            if options.copy_up:
                from runc_bin.libcontainer.copy_up import copy_up  # the spec's reader has loaded it

                copy_up(target, made, keep_mode=has_mode)
            if place == "/dev":
                self._keep_dev(made)
            self.finish(made, target, options, keep=late or is_proc)
            if late:
                self._later.append(made)
            elif is_proc:
                if self.proc_fd is not None:
                    os.close(self.proc_fd)
                self.proc_fd = made
                self._proc_device = os.fstat(made).st_dev
        finally:
            os.close(target)

    def _keep_dev(self, made: int) -> None:
        if self.dev_fd is not None:
            os.close(self.dev_fd)
        self.dev_fd = os.dup(made)

    def _make(self, mount: Mount, words: list[tuple[str, str | None]], *, late: bool) -> int:
        """The new file system, detached; with `late` writable whatever the options say."""
        options = mount.options
        set_, _ = options.attributes()
        flags = options.flags
        if late:
            set_ &= ~m.MOUNT_ATTR_RDONLY
            flags &= ~m.MS_RDONLY
        source = mount.source or mount.kind
        # A type with a dot (fuse.sshfs) has its second half as a subtype, which mount(2) alone takes apart.
        if options.needs_classic_mount() or "." in mount.kind:
            return m.new_classic_mount(mount.kind, source, flags, data_text(words), self._root)
        supers = [word for word in options.super_words() if not (late and word[0] == "ro")]
        return m.new_mount(mount.kind, source, supers + words, set_)

    def remount(self, mount: Mount) -> None:
        """Change the mount that is at the destination: a bind's flags only, or else the file system too."""
        options = mount.options
        target = paths.open_in_root(self._root, mount.destination)
        keep = False
        try:
            if options.bind:
                self._set_attributes(target, options, mount.destination)
            else:
                keep = _is_late(mount)
                flags = options.flags & ~m.MS_RDONLY if keep else options.flags
                m.remount(target, flags, data_text(options.data))
            self._set_for_tree(target, options, mount.destination)
            if keep:
                self._later.append(target)
        finally:
            if not keep:
                os.close(target)

    def bind(self, mount: Mount, made: int) -> None:
        """Mount an existing file or tree: `made`, a detached copy of the source, which is closed."""
        target = -1
        try:
            if paths.is_directory(made):
                target, _ = self.directory(mount, made)
            else:
                target = self._file(mount, made)
            self._set_attributes(made, mount.options, mount.source)
        except BaseException:
            os.close(made)
            if target >= 0:
                os.close(target)
            raise
        try:
            self.finish(made, target, mount.options)
        finally:
            os.close(target)

    def finish(
        self, made: int, target: int, options: MountOptions, *, name: str = "", keep: bool = False
    ) -> None:
        """Attach `made` at `target`, or at `name` in a directory that nobody else can change, with its
        propagation; closes `made` unless `keep`.
        """
        try:
            m.attach(made, target, name)
            self._set_for_tree(made, options, "the mount")
        except BaseException:
            os.close(made)
            raise
        if not keep:
            os.close(made)

    def make_read_only(self) -> None:
        """Turn those mounts read-only that had to wait."""
        for fd in self._later:
            m.change(fd, set_=m.MOUNT_ATTR_RDONLY)
            os.close(fd)
        self._later.clear()

    def _set_attributes(self, fd: int, options: MountOptions, name: str) -> None:
        """Set and clear what a bind's options ask for; what they do not name stays as the source has it."""
        set_, clear = options.attributes()
        if not set_ and not clear:
            return
        try:
            m.change(fd, set_=set_, clear=clear)
        except PermissionError as error:
            raise _locked(error, fd, set_, clear, name) from None

    def _set_for_tree(self, fd: int, options: MountOptions, name: str) -> None:
        """Propagation, and the attributes of the whole tree."""
        for propagation in options.propagation:
            m.change(fd, propagation=propagation & ~m.MS_REC, recursive=bool(propagation & m.MS_REC))
        set_, clear = options.recursive_set, options.recursive_clear
        if not set_ and not clear:
            return
        try:
            m.change(fd, set_=set_, clear=clear, recursive=True)
        except PermissionError as error:
            raise _locked(error, fd, set_, clear, name) from None

    def directory(self, mount: Mount, source: int | None = None) -> tuple[int, bool]:
        """A descriptor of the directory to mount (a bind of `source`) on, and whether it was there before.

        InvalidArgument where nothing may be mounted.
        """
        # Nothing of the image may decide where these are: CVE-2019-19921, CVE-2023-27561.
        no_links = mount.kind in ("proc", "sysfs")
        try:
            target, existed = paths.open_or_make(self._root, mount.destination, no_links=no_links)
        except OSError as error:
            if no_links and error.errno in (errno.ELOOP, errno.ENOTDIR):
                message = f'filesystem "{mount.kind}" must be mounted on ordinary directory'
                raise InvalidArgument(message) from None
            raise
        info = os.fstat(target)
        if os.path.samestat(info, self._root_info):
            os.close(target)
            raise InvalidArgument(f"mountpoint {mount.destination!r} is on the top of rootfs")
        self._check_proc(mount, target, info, source)
        return target, existed

    def _file(self, mount: Mount, source: int) -> int:
        target = paths.make_file(self._root, mount.destination)
        info = os.fstat(target)
        if stat.S_ISDIR(info.st_mode):
            os.close(target)
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        self._check_proc(mount, target, info, source)
        return target

    def _check_proc(self, mount: Mount, target: int, info: os.stat_result, source: int | None) -> None:
        """Refuse what would put something else in the place of (a part of) the container's /proc."""
        clean = os.path.normpath(mount.destination)
        inside = clean.startswith("/proc/")
        if not inside and self._proc_device is not None and info.st_dev != self._proc_device:
            return  # far from it: the common case
        try:
            proc = paths.open_in_root(self._root, "/proc")
        except OSError:
            pass
        else:
            try:
                if paths.same_object(proc, target):
                    inside = False
                    if mount.kind != "proc" and not _is_procfs(source):
                        message = f'"{mount.destination}" cannot be mounted because it is not of type proc'
                        raise InvalidArgument(message)
                    self._proc_device = None
                elif not inside and _is_procfs(target):  # a link of the image may lead there
                    inside = m.mount_id(proc) == m.mount_id(target)
            finally:
                os.close(proc)
        if inside and clean not in _PROC_FILES:
            raise InvalidArgument(f'"{mount.destination}" cannot be mounted because it is inside /proc')


def clone_source(mount: Mount) -> int:
    """A detached copy of the source of a bind."""
    return m.clone_mount(mount.source, recursive=bool(mount.options.flags & m.MS_REC))


def _is_late(mount: Mount) -> bool:
    """Whether it must be written to before it becomes read-only."""
    at_dev = os.path.normpath(mount.destination) == "/dev"
    return mount.options.read_only and (mount.kind == "tmpfs" or at_dev)


def _is_procfs(fd: int | None) -> bool:
    return fd is not None and syscalls.filesystem_type(fd) == m.PROC_SUPER_MAGIC


def _locked(error: PermissionError, fd: int, set_: int, clear: int, name: str) -> FailedPrecondition:
    """Why a change of attributes is forbidden: in a user namespace those of its maker's mounts are locked."""
    has = os.fstatvfs(fd).f_flag
    locked = [word for flag, attribute, word in _LOCKABLE if has & flag and clear & attribute & ~set_]
    if locked:
        what = f"cannot clear locked flags {'|'.join(locked)}"
    elif clear & m.MOUNT_ATTR_ATIME:
        atime = [word for flag, word in _ATIME_NAMES if has & flag] or ["MS_STRICTATIME"]
        what = f"cannot change locked atime flags {'|'.join(atime)}"
    else:
        what = "cannot set mount attributes"
    return FailedPrecondition(f"{what} of {name}: {os.strerror(error.errno or 0).lower()}")

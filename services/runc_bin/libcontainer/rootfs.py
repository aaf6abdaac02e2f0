"""The container's root: made a mount of its own, filled, and made the root of the mount namespace.

Order and propagation follow "rootfsPropagation" of the runtime spec's config-linux.md and pivot_root(2).
"""

from __future__ import annotations

import errno
import os

from linux import mounts as m
from linux import syscalls

from runc_bin.libcontainer import cgroup_mount, devices, mounts
from runc_bin.libcontainer.failures import step
from runc_bin.libcontainer.mounts import Mounter
from runc_bin.libcontainer.spec import Spec
from runc_bin.libcontainer.sync import Channel, Message


class Root:
    """The root under construction; `fd` is a descriptor of it that stays right through pivot_root.

    Without a mount namespace of its own a container's mounts are the host's, below `place`, where whoever
    removes the container takes them away; nothing else of the host's tree changes.
    """

    def __init__(self, spec: Spec, place: str) -> None:
        self._spec = spec
        self._place = place
        with step("error preparing rootfs"):
            self.fd = self._prepare()
        self._mounter = Mounter(self.fd, spec.mount_label)
        self._detached_proc: int | None = None
        self._taken: dict[int, int] = {}  # number of a mount: a detached copy of its source

    def _prepare(self) -> int:
        spec = self._spec
        if "mount" not in spec.namespaces:
            return self._prepare_in_place()
        syscalls.mount("", "/", "", spec.rootfs_propagation or m.MS_SLAVE | m.MS_REC)
        self._unshare_parent()
        made = m.clone_mount(spec.rootfs, recursive=True)
        target = os.open(spec.rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            m.attach(made, target)
        finally:
            os.close(target)
        return made

    def _prepare_in_place(self) -> int:
        made = m.clone_mount(self._spec.rootfs, recursive=True)
        m.change(made, propagation=m.MS_PRIVATE, recursive=True)
        target = os.open(self._place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            m.attach(made, target)
        finally:
            os.close(target)
        # On a shared mount it has become shared: what is mounted in it would come out.
        m.change(made, propagation=m.MS_PRIVATE, recursive=True)
        return made

    def _unshare_parent(self) -> None:
        """The mount that the root lies on must not be shared: pivot_root would fail and the bind would
        leak.
        """
        flag = m.MS_SLAVE if self._spec.rootfs_propagation & m.MS_SLAVE else m.MS_PRIVATE
        path = self._spec.rootfs
        while True:
            try:
                syscalls.mount("", path, "", flag)
                return
            except OSError as error:
                if error.errno != errno.EINVAL or path == "/":
                    raise
                path = os.path.dirname(path)

    def take_sources(self, channel: Channel) -> bool:
        """Take hold of what is to be bound where that cannot wait: in a user namespace, as the user who asks
        for it, since the container's root may not even get there. What is not to be had so, and what is to
        have its ids mapped, the parent is asked for, once it has said GO.

        Returns whether GO was heard.
        """
        missing: list[int] = []
        for number, mount in enumerate(self._spec.mounts):
            if mount.kind != "bind" or mount.options.remount:
                continue
            if mount.options.id_map:
                missing.append(number)
            elif "user" in self._spec.namespaces:
                with step(f'error mounting "{mount.source}" to rootfs at "{mount.destination}"'):
                    try:
                        self._taken[number] = mounts.clone_source(mount)
                    except PermissionError:
                        missing.append(number)
        if not missing:
            return False
        from runc_bin.libcontainer import bind_sources  # `create` has loaded it

        channel.expect(Message.GO)
        self._taken.update(bind_sources.ask(channel, missing))
        return True

    def fill(self, cgroup_paths: dict[str, str]) -> None:
        """Make all mounts of the spec."""
        for number, mount in enumerate(self._spec.mounts):
            with step(f'error mounting "{mount.source}" to rootfs at "{mount.destination}"'):
                if mount.options.remount:
                    self._mounter.remount(mount)
                elif mount.kind == "bind":
                    taken = self._taken.pop(number, None)
                    self._mounter.bind(mount, mounts.clone_source(mount) if taken is None else taken)
                elif mount.kind == "cgroup":
                    own = "cgroup" in self._spec.namespaces
                    cgroup_mount.mount(self._mounter, mount, cgroup_paths, own_namespace=own)
                else:
                    self._mounter.new(mount)

    def fill_dev(self) -> None:
        """Make the device nodes."""
        if devices.wants_devices(self._spec):
            with step("error creating device nodes"):
                devices.fill_dev(self.fd, self._spec, self._mounter.dev_fd)

    def proc(self) -> int:
        """A descriptor of a procfs that certainly is one: the container's, or else one that nobody else
        sees.
        """
        if self._mounter.proc_fd is not None:
            return self._mounter.proc_fd
        if self._detached_proc is None:
            self._detached_proc = _private_proc()
        return self._detached_proc

    def enter(self, *, no_pivot: bool) -> None:
        """Make it the root of this mount namespace; nothing of the host's tree is left. Without a namespace
        of its own it becomes the root of this process alone.
        """
        with step("error jailing process inside rootfs"):
            if "mount" not in self._spec.namespaces:
                os.fchdir(self.fd)
                os.chroot(".")
                os.chdir("/")
            elif no_pivot:
                self._move()
            else:
                self._pivot()
        if self._spec.rootfs_propagation & m.MS_SHARED:
            self._propagate()
        if devices.wants_devices(self._spec):
            devices.reopen_null(self.fd)

    def _pivot(self) -> None:
        old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fchdir(self.fd)
            try:
                syscalls.pivot_root(".", ".")
            except OSError as error:
                if error.errno != errno.EINVAL or not m.on_initial_root():
                    raise
                # The kernel never takes its first root, an initial ramdisk, away: pivot_root(2).
                self._move()
                return
            # The old root lies on top of the new one now. It becomes a slave so that taking it away stays
            # ours.
            os.fchdir(old)
            syscalls.mount("", ".", "", m.MS_SLAVE | m.MS_REC)
            syscalls.umount2(".", m.MNT_DETACH)
        finally:
            os.close(old)
        os.chdir("/")

    def _move(self) -> None:
        """Without pivot_root: move the mount over `/`.

        The host's own /proc and /sys stay reachable in the namespace unless they are taken away first.
        """
        inside = self._spec.rootfs + "/"
        for mount in m.mount_table():
            full = mount.root == "/" and mount.fstype in ("proc", "sysfs")
            if not full or mount.target.startswith(inside):
                continue
            try:
                syscalls.mount("", mount.target, "", m.MS_SLAVE | m.MS_REC)
                syscalls.umount2(mount.target, m.MNT_DETACH)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EPERM):
                    raise
                syscalls.mount("tmpfs", mount.target, "tmpfs", 0)
        os.fchdir(self.fd)
        syscalls.move_mount(self.fd, "", syscalls.AT_FDCWD, "/", m.MOVE_MOUNT_F_EMPTY_PATH)
        os.chroot(".")
        os.chdir("/")

    def _propagate(self) -> None:
        """Give the new root the propagation of the spec. Private and slave are what it was born as."""
        propagation = self._spec.rootfs_propagation
        m.change(self.fd, propagation=propagation & ~m.MS_REC, recursive=bool(propagation & m.MS_REC))

    def seal(self) -> None:
        """What comes after the last mount: from unbindable ones nothing could be bound any more."""
        if self._spec.rootfs_propagation & m.MS_UNBINDABLE:
            self._propagate()

    def finish(self) -> None:
        """Turn read-only what the spec wants so."""
        self._mounter.make_read_only()
        if self._spec.readonly_rootfs:
            with step("error setting rootfs as readonly"):
                m.change(self.fd, set_=m.MOUNT_ATTR_RDONLY)


def _private_proc() -> int:
    try:
        return m.new_mount("proc", "proc")
    except PermissionError:
        # The pid namespace is not our user namespace's. The host's procfs, still there, shows us in it too.
        made = m.clone_mount("/proc", recursive=True)
        if syscalls.filesystem_type(made) != m.PROC_SUPER_MAGIC:
            os.close(made)
            raise
        return made

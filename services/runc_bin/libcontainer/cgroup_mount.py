"""The container's view of its control group: a `cgroup` mount of the spec, on v1, hybrid and v2 hosts."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from linux import mounts as m

from runc_bin.libcontainer import mount_options, paths
from runc_bin.libcontainer.cgroups import hierarchy
from runc_bin.libcontainer.mount_options import MountOptions
from runc_bin.libcontainer.mounts import Mounter
from runc_bin.libcontainer.spec import Mount

_TMPFS = mount_options.parse(["nosuid", "nodev", "noexec", "mode=755"])


def mount(
    mounter: Mounter, root_fd: int, wanted: Mount, cgroup_paths: Mapping[str, str], *, own_namespace: bool
) -> None:
    """Mount what `wanted` asks for. `cgroup_paths` are the container's directories by controller."""
    if hierarchy.unified():
        _mount_v2(mounter, root_fd, wanted, cgroup_paths, own_namespace=own_namespace)
    else:
        _mount_v1(mounter, root_fd, wanted, cgroup_paths, own_namespace=own_namespace)


def _mount_v2(
    mounter: Mounter, root_fd: int, wanted: Mount, cgroup_paths: Mapping[str, str], *, own_namespace: bool
) -> None:
    set_, _ = wanted.options.attributes()
    try:
        made = m.new_mount("cgroup2", wanted.source or "cgroup", wanted.options.super_words(), set_)
    except OSError as error:
        # In a user namespace without a cgroup namespace only a bind is possible.
        if error.errno not in (errno.EPERM, errno.EBUSY):
            raise
        made = m.clone_mount(cgroup_paths[""] if own_namespace else hierarchy.MOUNT, recursive=True)
        m.change(made, set_=set_)
    target = paths.make_directories(root_fd, wanted.destination)
    try:
        mounter.finish(made, target, wanted.options)
    finally:
        os.close(target)


def _mount_v1(
    mounter: Mounter, root_fd: int, wanted: Mount, cgroup_paths: Mapping[str, str], *, own_namespace: bool
) -> None:
    base = m.new_mount("tmpfs", "tmpfs", _TMPFS.data, _TMPFS.attributes()[0])
    try:
        target = paths.make_directories(root_fd, wanted.destination)
        try:
            mounter.finish(base, target, MountOptions(propagation=wanted.options.propagation), keep=True)
        finally:
            os.close(target)
        done: set[str] = set()
        for controller, (point, _) in hierarchy.v1_mounts().items():
            name = os.path.basename(point)
            if name not in done:
                done.add(name)
                directory = None if own_namespace else cgroup_paths.get(controller)
                _mount_controller(mounter, base, name, controller, wanted.options, directory)
            if name != controller.removeprefix("name="):
                os.symlink(name, controller.removeprefix("name="), dir_fd=base)
    finally:
        os.close(base)


def _mount_controller(
    mounter: Mounter, base: int, name: str, controller: str, options: MountOptions, directory: str | None
) -> None:
    """Mount one hierarchy below the tmpfs: new when the cgroup namespace is ours, else a bind of
    `directory`.
    """
    if directory is None:
        words: list[tuple[str, str | None]] = options.super_words()
        key, _, value = controller.partition("=")
        words += [("name", value)] if key == "name" else [(word, None) for word in name.split(",")]
        source = "systemd" if controller == "name=systemd" else "cgroup"
        made = m.new_mount("cgroup", source, words, _TMPFS.attributes()[0] | options.attributes()[0])
    else:
        made = m.clone_mount(directory, recursive=True)
        m.change(made, set_=options.attributes()[0])
    os.mkdir(name, 0o755, dir_fd=base)
    target = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=base)
    try:
        mounter.finish(made, target, options)
    finally:
        os.close(target)

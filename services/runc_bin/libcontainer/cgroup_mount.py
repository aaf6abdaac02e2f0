"""The container's view of its control group: a `cgroup` mount of the spec, on v1, hybrid and v2 hosts."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from linux import mounts as m

from runc_bin.libcontainer import mount_labels, mount_options
from runc_bin.libcontainer.cgroups import hierarchy
from runc_bin.libcontainer.mount_options import MountOptions
from runc_bin.libcontainer.mounts import Mounter
from runc_bin.libcontainer.spec import Mount

_TMPFS = mount_options.parse(["nosuid", "nodev", "noexec", "mode=755"])


def mount(mounter: Mounter, wanted: Mount, cgroup_paths: Mapping[str, str], *, own_namespace: bool) -> None:
    """Mount what `wanted` asks for. `cgroup_paths` are the container's directories by controller."""
    if hierarchy.unified():
        _mount_v2(mounter, wanted, cgroup_paths, own_namespace=own_namespace)
    else:
        _mount_v1(mounter, wanted, cgroup_paths, own_namespace=own_namespace)


def _mount_v2(
    mounter: Mounter, wanted: Mount, cgroup_paths: Mapping[str, str], *, own_namespace: bool
) -> None:
    set_, clear = wanted.options.attributes()
    target, _ = mounter.directory(wanted)
    try:
        # Without a cgroup namespace a new mount would change the options of the host's tree (nsdelegate, …).
        made = _new_v2(wanted, set_) if own_namespace else None
        if made is None and not cgroup_paths:
            # An ordinary user's container without a cgroup would get to those of its maker (CVE-2023-25809).
            made = m.new_mount("tmpfs", "tmpfs", (), m.MOUNT_ATTR_RDONLY)
        elif made is None:
            made = m.clone_mount(cgroup_paths[""] if own_namespace else hierarchy.MOUNT, recursive=True)
            m.change(made, set_=set_, clear=clear)
        mounter.finish(made, target, wanted.options)
    finally:
        os.close(target)


def _new_v2(wanted: Mount, attributes: int) -> int | None:
    """A new mount of the tree; None where the kernel allows a bind of a part only."""
    try:
        return m.new_mount("cgroup2", wanted.source or "cgroup", wanted.options.super_words(), attributes)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EBUSY):
            raise
        return None


def _mount_v1(
    mounter: Mounter, wanted: Mount, cgroup_paths: Mapping[str, str], *, own_namespace: bool
) -> None:
    words = [*_TMPFS.data, *mount_labels.words("tmpfs", mounter.label)]
    base = m.new_mount("tmpfs", "tmpfs", words, _TMPFS.attributes()[0])
    try:
        target, _ = mounter.directory(wanted)
        try:
            mounter.finish(base, target, MountOptions(propagation=wanted.options.propagation), keep=True)
        finally:
            os.close(target)
        done: set[str] = set()
        for controller, (point, _) in hierarchy.v1_mounts().items():
            name = os.path.basename(point)
            if name not in done:
                done.add(name)
                # A hierarchy without a cgroup of the container shows what is not its: its folder stays empty,
                # for a later mount of the spec (podman's --systemd), when the tmpfs may be read-only.
                directory = None if own_namespace else cgroup_paths.get(controller)
                if own_namespace or directory is not None:
                    _mount_controller(mounter, base, name, controller, wanted.options, directory)
                else:
                    os.mkdir(name, 0o755, dir_fd=base)
            if name != controller.removeprefix("name="):
                os.symlink(name, controller.removeprefix("name="), dir_fd=base)
        if wanted.options.read_only:  # only now, since the hierarchies needed their directories
            m.change(base, set_=m.MOUNT_ATTR_RDONLY)
    finally:
        os.close(base)


def _mount_controller(
    mounter: Mounter, base: int, name: str, controller: str, options: MountOptions, directory: str | None
) -> None:
    """Mount one hierarchy below the tmpfs: new when the cgroup namespace is ours, else a bind of
    `directory`.
    """
    if directory is None:
        key, _, value = controller.partition("=")
        words: list[tuple[str, str | None]]
        words = [("name", value)] if key == "name" else [(word, None) for word in name.split(",")]
        source = "systemd" if controller == "name=systemd" else "cgroup"
        made = m.new_mount("cgroup", source, words, _TMPFS.attributes()[0] | options.attributes()[0])
    else:
        made = m.clone_mount(directory, recursive=True)
        m.change(made, set_=options.attributes()[0])
    os.mkdir(name, 0o755, dir_fd=base)
    mounter.finish(made, base, options, name=name)

"""Show the layers of file trees to this process alone: a private mount namespace and chroot (unshare(2),
https://docs.kernel.org/filesystems/overlayfs.html).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from linux import mounts as flags
from linux import syscalls

_CLONE_NEWNS = 0x00020000


def enter(place: str, trees: Mapping[str, Sequence[str]]) -> None:
    """Show each tree, made of folders of layers, the topmost first, in a folder of its own, read-only and
    without devices, and make them all there is. `place` is an empty folder. Raises OSError.
    """
    syscalls.unshare(_CLONE_NEWNS)
    syscalls.mount("", "/", "", flags.MS_REC | flags.MS_PRIVATE)
    syscalls.mount("tmpfs", place, "tmpfs", flags.MS_NODEV | flags.MS_NOSUID, "mode=0700")
    for name, layers in trees.items():
        target = f"{place}/{name}"
        os.mkdir(target)
        for layer in layers:
            os.stat(layer)  # mount(2) does not say which one is missing
        if not layers:
            continue
        if len(layers) == 1:
            syscalls.mount(layers[0], target, "", flags.MS_BIND)
        else:
            # From a common folder: the names of many layers would not fit into mount(2)'s one page.
            common = os.path.commonpath(layers)
            os.chdir(common)
            short = ":".join(os.path.relpath(layer, common) for layer in layers)
            syscalls.mount("overlay", target, "overlay", flags.MS_RDONLY, f"lowerdir={short}")
        harmless = flags.MS_RDONLY | flags.MS_NODEV | flags.MS_NOSUID | flags.MS_NOEXEC
        syscalls.mount("", target, "", flags.MS_REMOUNT | flags.MS_BIND | harmless)
    os.chdir(place)
    os.chroot(".")

"""The root that CRIU restores into: what it must find there, and where it finds it.

CRIU wants it as a mount of its own whose parent nothing covers (criu(8), `--root`), and the places of all
mounts in it. Both are done in children with mount namespaces of their own: so the host's tree stays as it is,
whatever happens on the way.
"""

from __future__ import annotations

import _socket
import os
from collections.abc import Mapping, Sequence

from errdefs import Internal
from linux import fds, signals, syscalls
from linux import mounts as m

from runc_bin.document import parse, render
from runc_bin.libcontainer import mounts
from runc_bin.libcontainer.checkpoint import external
from runc_bin.libcontainer.checkpoint.external import KeyAndValue
from runc_bin.libcontainer.failures import reason, step
from runc_bin.libcontainer.spec import Spec


def enter(spec: Spec, where: str, folders: Sequence[str], back: _socket.socket) -> None:
    """Have the root of the spec mounted at the folder `where`, in a new mount namespace of this process, and
    send `back` descriptors of `folders` in there: CRIU mounts below its folders, and the kernel allows that
    in the mount namespace alone that they were opened in.
    """
    try:
        with step("error preparing rootfs"):
            os.close(_mount(spec, where))
        opened = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in folders]
        fds.send_fds(back, b"0", opened)
    except BaseException as error:
        back.send(reason(error).encode(errors="replace"), _socket.MSG_NOSIGNAL)
        os._exit(255)


def entered(back: _socket.socket, count: int) -> list[int]:
    """The descriptors that `enter` has sent; Internal with its error's text."""
    said, found = fds.receive_fds(back, 4096, count)
    if len(found) != count:
        raise Internal(said.decode(errors="replace") or "error preparing rootfs: its process has ended")
    return found


def _mount(spec: Spec, where: str) -> int:
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("", "/", "", m.MS_SLAVE | m.MS_REC)
    made = m.clone_mount(spec.rootfs, recursive=True)
    m.change(made, propagation=m.MS_PRIVATE, recursive=True)
    target = os.open(where, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        m.attach(made, target)
    finally:
        os.close(target)
    return made


def prepare(spec: Spec, where: str, cgroup_paths: Mapping[str, str]) -> list[KeyAndValue]:
    """Make the places of the spec's mounts in the root, as a creation does; returns what takes the place of
    each mount that is not in the images. Internal with the text of an error.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _prepare_and_tell(spec, where, cgroup_paths, writer)
    os.close(writer)
    said = b""
    with os.fdopen(reader, "rb") as file:
        said = file.read()
    os.waitpid(pid, 0)
    if not said:
        raise Internal("error preparing rootfs: the child that does it has ended")
    found = parse(said)
    if isinstance(found, str):
        raise Internal(found)
    result: list[KeyAndValue] = found
    return result


def _prepare_and_tell(spec: Spec, where: str, cgroup_paths: Mapping[str, str], writer: int) -> None:
    try:
        signals.set_wakeup_fd(-1)
        try:
            with step("error preparing rootfs"):
                said: list[KeyAndValue] | str = _prepare(spec, where, cgroup_paths)
        except BaseException as error:
            said = reason(error)
        with os.fdopen(writer, "wb") as file:
            file.write(render(said).encode())
    finally:
        os._exit(0)


def _prepare(spec: Spec, where: str, cgroup_paths: Mapping[str, str]) -> list[KeyAndValue]:
    root = _mount(spec, where)
    mounter = mounts.Mounter(root, "")
    made = [mount.destination for mount in spec.mounts if mount.kind != "bind"]
    for mount in spec.mounts:
        # What lies on a file system that the images hold, is made with it.
        inside = any(mount.destination.startswith(other.rstrip("/") + "/") for other in made)
        if inside or mount.options.remount:
            continue
        if mount.kind == "bind":
            with step(f'error mounting "{mount.source}" to rootfs at "{mount.destination}"'):
                mounter.bind(mount, mounts.clone_source(mount))
        elif mount.kind != "cgroup":
            with step(f'error mounting "{mount.kind}" to rootfs at "{mount.destination}"'):
                os.close(mounter.directory(mount)[0])
    return external.restored_mounts(spec, root, cgroup_paths)

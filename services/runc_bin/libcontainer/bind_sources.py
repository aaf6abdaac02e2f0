"""Sources of binds that init cannot take by itself, taken by a child of its parent, with the parent's rights.

They are mounts whose ids are mapped, which needs rights over the file system, and those behind a directory
that is closed to the root of a user namespace. They are taken in the mount namespace of init: there the flags
that the host's mounts have are locked, so that the container cannot undo them (mount_namespaces(7)). Loaded
only where a spec may need it.

    init                                          parent
            ───────────────────────────────────►  SOURCES 3,5     (numbers of mounts, after GO)
                                                  clones a child, which joins init's mount namespace
            ◄──────────────────────────────────   SOURCES 3, with a descriptor, from the child
            ◄──────────────────────────────────   SOURCES 5, with a descriptor
    or      ◄──────────────────────────────────   ERROR text
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from errdefs import FailedPrecondition, Internal
from linux import mounts as m
from linux import signals, syscalls

from runc_bin.libcontainer import id_mappings
from runc_bin.libcontainer.failures import reason, step
from runc_bin.libcontainer.id_mappings import Maps
from runc_bin.libcontainer.spec import Mount, Spec
from runc_bin.libcontainer.sync import Channel, Message


def check(spec: Spec) -> None:
    """Refuse, before anything is made, what an ordinary user cannot have; FailedPrecondition."""
    for mount in spec.mounts:
        if mount.options.id_map and os.geteuid() != 0:
            message = f"id-mapped mounts are not supported for rootless containers ({mount.destination})"
            raise FailedPrecondition(message)


def ask(channel: Channel, numbers: Sequence[int]) -> dict[int, int]:
    """Init's side: detached copies of the sources of these mounts of the spec, as descriptors.

    Internal with the parent's text.
    """
    channel.send(Message.SOURCES, ",".join(map(str, numbers)))
    found: dict[int, int] = {}
    for _ in numbers:
        message, text, fd = channel.receive_descriptor()
        if message != Message.SOURCES or fd is None:
            raise Internal(text or "the other side of the container's set-up went away")
        found[int(text)] = fd
    return found


def serve(channel: Channel, init_pid: int, spec: Spec, text: str) -> None:
    """The parent's side: answer what init has asked for. Internal when the child dies."""
    child = syscalls.clone(0)
    if child == 0:
        try:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signals.SIGKILL)
            _take(channel, init_pid, spec, [int(word) for word in text.split(",")])
        except BaseException as error:
            channel.send(Message.ERROR, reason(error))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        raise Internal("the process that was to take the sources of mounts has died")


def _take(channel: Channel, init_pid: int, spec: Spec, numbers: Sequence[int]) -> None:
    container = -1
    if "user" in spec.namespaces:
        container = os.open(f"/proc/{init_pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    with step("unable to join the container's mount namespace"):
        namespace = os.open(f"/proc/{init_pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        syscalls.setns(namespace, syscalls.CLONE_NEWNS)
    known: dict[Maps, int] = {}
    for number in numbers:
        mount = spec.mounts[number]
        with step(f'error mounting "{mount.source}" to rootfs at "{mount.destination}"'):
            made = m.clone_mount(mount.source, recursive=bool(mount.options.flags & m.MS_REC))
            if mount.options.id_map:
                maps = Maps(mount.uid_mappings, mount.gid_mappings)
                if maps.uids and maps not in known:
                    known[maps] = _user_namespace(maps)
                _map(made, mount, known[maps] if maps.uids else container)
        channel.send_descriptor(Message.SOURCES, str(number), made)
        os.close(made)


def _map(made: int, mount: Mount, user_namespace: int) -> None:
    """Give a detached mount (with `ridmap`, the tree) the ids of a user namespace."""
    try:
        m.map_ids(made, user_namespace, recursive=mount.options.id_map == "ridmap")
    except OSError as error:
        hint = {
            errno.EINVAL: " (does its file system support id-mapped mounts on this kernel?)",
            errno.EPERM: " (is it id-mapped already, or another user namespace's?)",
        }.get(error.errno or 0, "")
        message = f"failed to set MOUNT_ATTR_IDMAP on {mount.source}: {reason(error)}{hint}"
        raise FailedPrecondition(message) from error


def _user_namespace(maps: Maps) -> int:
    """A descriptor of a new user namespace with these ids; nobody is in it."""
    waits, lets_go = os.pipe()
    pid = syscalls.clone(syscalls.CLONE_NEWUSER)
    if pid == 0:
        os.close(lets_go)
        os.read(waits, 1)
        os._exit(0)
    try:
        id_mappings.write(pid, maps)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(lets_go)
        os.close(waits)
        os.waitpid(pid, 0)

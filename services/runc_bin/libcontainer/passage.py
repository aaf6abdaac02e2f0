"""The way into a user namespace: new, or joined by a process in between.

What the caller may do it may no longer do once it is in another user namespace, and it cannot come back. So
where one is joined, or other namespaces beside a new one, a process between joins them, and the container's
first process is its sibling: `sync` shows the talk. Loaded only where a user namespace is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from errdefs import Internal
from linux import signals, syscalls
from linux.crashpoints import crashpoint

from runc_bin.libcontainer import id_mappings, identity, time_offsets
from runc_bin.libcontainer.failures import reason, step
from runc_bin.libcontainer.init import Birth
from runc_bin.libcontainer.sync import Channel, Message

Joined = list[tuple[int, int]]  # descriptor, CLONE_NEW* flag


def clone_init(birth: Birth, ours: Channel, flags: int, group: int | None) -> tuple[int, Birth]:
    """clone init into its user namespace: (0, what it gets) in init, (its pid, …) in the caller, whose child
    it is.

    `flags` are the namespaces to make, `group` as for `syscalls.clone`. The other end of `ours` is closed in
    the caller. Internal with the text of an error on the way.
    """
    if not birth.joined:
        return syscalls.clone(flags, cgroup_fd=group), birth
    left: Joined = []
    joins_user = any(flag == syscalls.CLONE_NEWUSER for _, flag in birth.joined)
    in_between = joins_user and birth.time_offsets is not None

    def enter() -> None:
        if not birth.manager.starts_with_process:
            with step("unable to join the container's cgroup"):
                birth.manager.join_self(born_inside=birth.born_inside)
        offsets_fd = -1
        identity.set_oom_score(birth.process.oom_score_adj)
        if joins_user:
            identity.raise_limits(0, birth.process.rlimits)
            if in_between:
                offsets_fd = time_offsets.open_own()
            syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # from here on others may see this process
        left.extend(join(birth.joined))
        if birth.time_offsets is not None and offsets_fd >= 0:
            time_offsets.make(offsets_fd, birth.time_offsets)

    pid = _clone_through(ours, birth.channel, enter, flags, group)
    offsets = None if in_between else birth.time_offsets
    return pid, birth.replace(joined=left, entered=True, time_offsets=offsets)


def _clone_through(
    ours: Channel, theirs: Channel, enter: Callable[[], None], flags: int, group: int | None
) -> int:
    """clone, with `flags`, from a process that has gone through `enter`: 0 in the new process, in the caller
    its pid.
    """
    between = syscalls.clone(0, cgroup_fd=group)
    if between == 0:
        try:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signals.SIGKILL)
            enter()
            pid = syscalls.clone(flags | syscalls.CLONE_PARENT)
            if pid == 0:
                return 0
            theirs.send(Message.BORN, str(pid))
            os._exit(0)
        except BaseException as error:
            theirs.send(Message.ERROR, reason(error))
            os._exit(255)
    theirs.close()
    try:
        got = ours.receive()
    finally:
        os.waitpid(between, 0)
    if got is None:
        raise Internal("the process that was to join the namespaces has died")
    message, text = got
    if message != Message.BORN:
        raise Internal(text)
    crashpoint("runc.create.passed")
    return int(text)


def join(joined: Sequence[tuple[int, int]]) -> Joined:
    """Join namespaces, the user namespace when the others are; what the kernel refuses before is tried again
    in it. A pid namespace is joined for children.

    Returns what is left because no user namespace is among them: it is for the process in the new one to try.
    """
    left: Joined = []
    user = -1
    for fd, flag in joined:
        if flag == syscalls.CLONE_NEWUSER:
            user = fd
            continue
        try:
            syscalls.setns(fd, flag)
        except PermissionError:
            left.append((fd, flag))
        except OSError as error:
            raise Internal(f"unable to join a namespace: {reason(error)}") from error
    if user < 0:
        return left
    identity.drop_groups()
    with step("unable to join the user namespace"):
        syscalls.setns(user, syscalls.CLONE_NEWUSER)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # a change of rights may have undone it
    for fd, flag in left:
        with step("unable to join a namespace"):
            syscalls.setns(fd, flag)
    return []


def admit(pid: int, maps: id_mappings.Maps, birth: Birth, ours: Channel) -> None:
    """Do for init, which is in its new user namespace, what only its parent may, and let it go on.

    Internal when its ids cannot be written.
    """
    try:
        if not birth.entered:
            identity.set_oom_score(birth.process.oom_score_adj, pid)
        identity.raise_limits(pid, birth.process.rlimits)
        id_mappings.write(pid, maps)
        ours.send(Message.MAPPED)
    except (FileNotFoundError, ProcessLookupError, BrokenPipeError):
        return  # it has died: what it said waits to be read

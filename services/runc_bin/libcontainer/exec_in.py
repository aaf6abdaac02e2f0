"""A further process in a running container: the caller's side and the child's. The talk is that of `sync`.

The child joins all namespaces before a process of the container's pid namespace is made, as a sibling of it:
whoever is in there and may trace (CAP_SYS_PTRACE) would else find the host behind /proc/<pid>/root and
/proc/<pid>/fd of the newcomer, for a moment (compare CVE-2016-9962).
"""

from __future__ import annotations

import _socket
import os
from collections.abc import Callable, Mapping
from typing import NoReturn

from errdefs import FailedPrecondition, Internal
from linux import fds, interpreter, signals, syscalls
from linux.crashpoints import crashpoint

from runc_bin import contexts
from runc_bin.libcontainer import (
    apparmor,
    cgroups,
    console,
    container,
    identity,
    init,
    keyring,
    scheduling,
    state,
)
from runc_bin.libcontainer.create import START_ERROR, check_confinement, check_passed_fds
from runc_bin.libcontainer.failures import step
from runc_bin.libcontainer.fields import load_json
from runc_bin.libcontainer.process_spec import Process, read_further_process
from runc_bin.libcontainer.spec import NAMESPACE_FLAGS
from runc_bin.libcontainer.state import State
from runc_bin.libcontainer.sync import Channel, Message
from runc_bin.record import Record


class ExecOptions(Record):
    """How a process is to be added, beyond its spec; fields as in `create.CreateOptions`. `cgroups` are paths
    below the container's cgroups (`cgroups.sub_groups.parse`).
    """

    console: _socket.socket | None = None
    preserve_fds: int = 0
    ignore_paused: bool = False
    cgroups: Mapping[str, str] = {}


class Joining(Record):
    """All that the child gets. `pidfd` is the container's init, `flags` the namespaces of it to join,
    `place` the root of a container without a mount namespace,
    `stream_owner` whom the pipes among its streams are to be given to, as the caller numbers users;
    `caller_powerless` that the caller is an ordinary user.
    """

    record: State
    place: str
    process: Process
    channel: Channel
    manager: cgroups.Manager
    born_inside: bool
    pidfd: int
    flags: int
    console_socket: _socket.socket | None
    passed_fds: int
    seccomp_program: bytes | None
    stream_owner: int | None
    caller_powerless: bool


class Begun:
    """A child on its way. `hear` is to be called until all is said; then the channel is to be closed.

    pid: the child that enters, and from `born` on the process itself; both are the caller's children, and the
    first has ended, or is about to, when the second is heard of.
    """

    def __init__(self, pid: int, channel: Channel, record: State) -> None:
        self.pid = self.entering = pid
        self.channel = channel
        self.record = record
        self.ready = False

    @property
    def born(self) -> bool:
        return self.pid != self.entering


def read_process_file(path: str, record: State) -> Process:
    """The process of a JSON file (`--process`), for a container. Errors as `fields.load_json`."""
    return load_json(
        path,
        lambda document: read_further_process(document, record.process_defaults),
        f"open {path}: no such file or directory",
    )


def start(root: str, record: State, process: Process, options: ExecOptions) -> int:
    """Start `process` in a container and return its pid once it runs; it is this process's child.

    FailedPrecondition when the container is stopped, or paused without `ignore_paused`.
    """
    begun = begin(root, record, process, options)
    try:
        while hear(begun):
            pass
    except BaseException:
        with contexts.suppress(ProcessLookupError):
            os.kill(begun.pid, signals.SIGKILL)
        os.waitpid(begun.pid, 0)
        raise
    finally:
        begun.channel.close()
        if begun.born:
            os.waitpid(begun.entering, 0)
    return begun.pid


def begin(
    root: str,
    record: State,
    process: Process,
    options: ExecOptions,
    *,
    first: Callable[[], None] | None = None,
) -> Begun:
    """The part of `start` that waits for nothing. The child calls `first` before anything else.

    The caller has one thread, and no signal of its own may come to the child before it has undone the
    handlers: block them around the call.
    """
    now = container.status(root, record)
    if now == "stopped":
        raise FailedPrecondition("cannot exec in a stopped container")
    if now == "paused" and not options.ignore_paused:
        raise FailedPrecondition("cannot exec in a paused container (use --ignore-paused to override)")
    check_passed_fds(3, options.preserve_fds)
    check_confinement(process)
    program = None
    if record.has_seccomp:
        from runc_bin.libcontainer import seccomp  # noqa: F401 - later nothing is loaded any more

        program = state.load_filter(root, record.id)
    if record.seccomp_listener:
        from runc_bin.libcontainer import seccomp_notify  # noqa: F401
    with contexts.ExitStack() as stack:
        pidfd = _open_init(record)
        stack.callback(os.close, pidfd)
        return _begin(root, record, process, options, pidfd, program, stack, first)


def _open_init(record: State) -> int:
    try:
        pidfd = fds.open_pidfd(record.init_process_pid)
    except ProcessLookupError:
        raise FailedPrecondition(container.NOT_RUNNING) from None
    if not state.init_is_alive(record):
        os.close(pidfd)
        raise FailedPrecondition(container.NOT_RUNNING)
    return pidfd


def _begin(
    root: str,
    record: State,
    process: Process,
    options: ExecOptions,
    pidfd: int,
    program: bytes | None,
    stack: contexts.ExitStack,
    first: Callable[[], None] | None,
) -> Begun:
    ours, theirs = Channel.pair()
    stack.callback(theirs.close)
    failed = stack.enter_context(contexts.ExitStack())
    failed.callback(ours.close)
    manager = _manager(record, options)
    flags = 0
    for kind in record.namespaces:
        flags |= NAMESPACE_FLAGS[kind]
    owner = None
    if "user" in record.namespaces:
        from runc_bin.libcontainer import id_mappings

        maps = id_mappings.of_process(record.init_process_pid)
        id_mappings.check_user(maps, process.uid, process.gid, process.additional_gids)
        owner = maps.host_uid(process.uid)
    joining = Joining(
        record=record,
        place=state.root_place(root, record),
        process=process,
        channel=theirs,
        manager=manager,
        born_inside=False,
        pidfd=pidfd,
        flags=flags,
        console_socket=options.console if process.terminal else None,
        passed_fds=options.preserve_fds,
        seccomp_program=program,
        stream_owner=owner,
        caller_powerless=os.geteuid() != 0,
    )
    try:
        pid = _clone(joining, first)
    except OSError:
        if options.cgroups or not manager.unified or manager.attaches:
            raise
        # The container has moved its processes further down, and no process may stay between (cgroups(7), "no
        # internal processes" rule), or it has removed its first cgroup.
        from runc_bin.libcontainer.cgroups import sub_groups

        joining = joining.replace(manager=sub_groups.of_process(record.init_process_pid))
        pid = _clone(joining, first)
    crashpoint("runc.exec.cloned")
    if manager.attaches:
        _attach(manager, pid, ours)
    failed.pop_all()
    return Begun(pid, ours, record)


def _manager(record: State, options: ExecOptions) -> cgroups.Manager:
    """The manager of the cgroup that the process is to join."""
    manager = container.manager_of(record)
    if options.cgroups:
        from runc_bin.libcontainer.cgroups import sub_groups

        manager = sub_groups.below(manager, options.cgroups)
    if os.geteuid() != 0 and not manager.attaches:
        from runc_bin.libcontainer.cgroups import rootless

        if options.cgroups:
            rootless.check_reach(manager)
        return rootless.in_reach(manager)
    return manager


def _clone(joining: Joining, first: Callable[[], None] | None) -> int:
    """The child, born inside the container's cgroup of the v2 tree where there is one."""
    manager = joining.manager
    group = None
    if "" in manager.paths and not manager.attaches:
        group = os.open(manager.paths[""], os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    before = None
    try:
        if joining.process.initial_cpus is not None:
            before = scheduling.take_cpus(joining.process.initial_cpus)
        pid = syscalls.clone(0, cgroup_fd=group)
        if pid == 0:
            _run(joining.replace(born_inside=group is not None), first)
        return pid
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)
        if group is not None:
            os.close(group)


def _attach(manager: cgroups.Manager, pid: int, channel: Channel) -> None:
    """Have the child moved into the cgroup; it is ended when that fails."""
    try:
        manager.attach(pid)
    except BaseException:
        os.kill(pid, signals.SIGKILL)
        os.waitpid(pid, 0)
        raise
    crashpoint("runc.exec.attached")
    with contexts.suppress(BrokenPipeError):
        channel.send(Message.PLACED)


def hear(begun: Begun) -> bool:
    """Take the child's next word; False when all is said. Internal with the child's error."""
    got = begun.channel.receive()
    if got is None:
        if begun.ready:
            return False
        raise Internal(f"{START_ERROR}: exec process exited before it was ready")
    message, text = got
    if message == Message.BORN:
        begun.pid = int(text)
        crashpoint("runc.exec.born")
        answer = Message.GO
    elif message == Message.READY:
        begun.ready = True
        crashpoint("runc.exec.ready")
        answer = Message.DONE
    elif message == Message.LISTENER and begun.record.seccomp_listener:
        from runc_bin.libcontainer import seccomp_notify

        listener = seccomp_notify.Listener(**begun.record.seccomp_listener)
        seen = state.oci_state(begun.record, "running", begun.record.init_process_pid)
        seccomp_notify.hand_over(begun.channel, begun.pid, text, listener, seen)
        return True
    else:
        raise Internal(f"{START_ERROR}: {text}")
    with contexts.suppress(BrokenPipeError):  # it failed early: its error waits to be read
        begun.channel.send(answer)
    return True


def _run(joining: Joining, first: Callable[[], None] | None) -> NoReturn:
    console_fd = joining.console_socket.fileno() if joining.console_socket else -1
    with init.reporting(joining.channel):
        if first is not None:
            first()
        if joining.stream_owner is not None:
            identity.own_pipes(joining.stream_owner)
        interpreter.seal(dumpable=os.geteuid() != 0)
        init.prepare_child(joining.channel, joining.passed_fds, (joining.pidfd, console_fd))
        _enter(joining)
        _be_born(joining)
        _become(joining)
    os._exit(255)


def _enter(joining: Joining) -> None:
    """Join the container's cgroup and namespaces; of the pid namespace only children become members."""
    if joining.manager.attaches:
        joining.channel.expect(Message.PLACED)
    else:
        with step("unable to join the container's cgroup"):
            joining.manager.join_self(born_inside=joining.born_inside)
    scheduling.settle_affinity(joining.process)
    score = joining.process.oom_score_adj
    identity.set_oom_score(joining.record.oom_score_adj if score is None else score)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # an ordinary user had to write the score first
    in_user_namespace = bool(joining.flags & syscalls.CLONE_NEWUSER)
    if in_user_namespace:
        identity.raise_limits(0, joining.process.rlimits)
        identity.drop_groups()
    if joining.flags:
        with step("unable to join the container's namespaces"):
            syscalls.setns(joining.pidfd, joining.flags)
    if joining.place:
        os.chroot(joining.place)
        os.chdir("/")
    os.close(joining.pidfd)
    if in_user_namespace:
        identity.become_root()


def _be_born(joining: Joining) -> None:
    """Become the process, in the pid namespace that was joined; returns in it alone."""
    pid = os.getpid()
    if joining.flags & syscalls.CLONE_NEWPID:
        pid = syscalls.clone(syscalls.CLONE_PARENT)
        if pid:
            joining.channel.send(Message.BORN, str(pid))
            os._exit(0)
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signals.SIGKILL)
        os.setsid()
    else:
        joining.channel.send(Message.BORN, str(pid))
    joining.channel.expect(Message.GO)
    if not joining.record.no_new_keyring:
        keyring.join(joining.record.id, joining.process.selinux_label)
    if joining.process.terminal and joining.console_socket is not None:
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        console.set_up(root, joining.console_socket, joining.process.console_size, mount=False)
        os.close(root)
        joining.console_socket.close()
    os.umask(0o022 if joining.process.umask is None else joining.process.umask)


def _load_filter(joining: Joining, program: bytes) -> None:
    openly = joining.caller_powerless if joining.record.seccomp_listener else None
    init.load_filter(joining.channel, program, joining.record.seccomp_flags, openly)


def _become(joining: Joining) -> None:
    process, record, program = joining.process, joining.record, joining.seccomp_program
    if process.no_new_privileges:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    profile = process.apparmor_profile or record.apparmor_profile
    if profile:
        with step("unable to apply apparmor profile"):
            apparmor.apply_exec(profile)
    scheduling.apply(process, record.personality)
    init.label_program(process)
    entered = identity.enter_directory(process.cwd)
    if program is not None and not process.no_new_privileges:
        _load_filter(joining, program)
    identity.set_rlimits(process.rlimits)
    identity.become(process, entered=entered)
    env = identity.environment(process)
    path = identity.find_program(process.args[0], process.env)
    init.pass_on(joining.passed_fds)
    init.settle(joining.channel)
    if program is not None and process.no_new_privileges:
        _load_filter(joining, program)
    joining.channel.close()
    init.execute(path, process.args, env, joining.passed_fds)

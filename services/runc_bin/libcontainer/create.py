"""Making a container, the creating process's side: docs in `sync` show the talk with init.

Everything is checked and compiled before anything is changed; every change is recorded before it is made,
and undone in reverse order when a later one fails.
"""

from __future__ import annotations

import _socket
import os
import time

from errdefs import BuoyError, FailedPrecondition, Internal, InvalidArgument
from linux import interpreter, signals, syscalls
from linux.crashpoints import crashpoint

from runc_bin import contexts
from runc_bin.libcontainer import apparmor, cgroups, devices, hooks, identity, init, state
from runc_bin.libcontainer.failures import step
from runc_bin.libcontainer.process_spec import Process, no_process
from runc_bin.libcontainer.spec import Spec
from runc_bin.libcontainer.state import State
from runc_bin.libcontainer.sync import Channel, Message
from runc_bin.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:  # without the cost of `typing`
    from runc_bin.libcontainer.id_mappings import Maps

START_ERROR = "unable to start container process"


class CreateOptions(Record):
    """How a container is to be made, beyond its spec. `console` is a connected socket that gets the master
    of the terminal; `preserve_fds` descriptors from 3 on are passed to the program, after `listen_fds` of
    socket activation; `systemd_cgroup`: the control group is a unit of systemd; `rootless` says whether a
    control group may be done without (None: when the caller has no power over the host); `notify` makes a
    folder for the socket of readiness, which the spec mounts.
    """

    bundle: str
    console: _socket.socket | None = None
    no_pivot: bool = False
    no_new_keyring: bool = False
    preserve_fds: int = 0
    listen_fds: int = 0
    systemd_cgroup: bool = False
    rootless: bool | None = None
    notify: bool = False

    @property
    def passed_fds(self) -> int:
        return self.listen_fds + self.preserve_fds


def _now() -> str:
    seconds, rest = divmod(time.time_ns(), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09d}Z"


def check_passed_fds(first: int, count: int) -> None:
    """Each descriptor that is to be passed must be open, and the caller's; InvalidArgument.

    All that we open ourselves is closed on exec; what came over an exec is not.
    """
    for fd in range(first, first + count):
        try:
            ours = not os.get_inheritable(fd)
        except OSError:
            ours = True
        if ours:
            raise InvalidArgument(
                f"unable to stat preserved-fd {fd - first} (of {count}): no such file or directory"
            )


def check_confinement(process: Process) -> None:
    """Refuse what the host's security modules cannot do; FailedPrecondition."""
    if process.apparmor_profile and not apparmor.enabled():
        raise FailedPrecondition(
            "apparmor profile specified in config, but apparmor is disabled or not supported"
        )
    if process.selinux_label:
        from runc_bin.libcontainer import selinux

        if not selinux.enabled():
            raise FailedPrecondition(
                "selinux label is specified in config, but selinux is disabled or not supported"
            )


def create(
    root: str, container_id: str, spec: Spec, options: CreateOptions, *, warn: hooks.Warn = hooks.say
) -> State:
    """Make the container `container_id` and its first process, which waits for `start`.

    Returns its record. The process is this one's child. Errors: those of the spec's checks, AlreadyExists
    for a taken id, and Internal with the text of init's error. When the making fails all is undone, and
    `poststop` hooks run, whose failures are told to `warn`.
    """
    process = spec.process or no_process()
    state.check_id(container_id)
    check_passed_fds(3, options.listen_fds)
    check_passed_fds(3 + options.listen_fds, options.preserve_fds)
    check_confinement(process)
    maps = None
    if "user" in spec.namespaces:
        from runc_bin.libcontainer import id_mappings

        maps = id_mappings.settle(spec)
    elif os.geteuid() != 0:
        raise InvalidArgument("rootless container requires user namespaces")
    if spec.takes_sources:
        from runc_bin.libcontainer import bind_sources

        bind_sources.check(spec)
    manager = cgroups.manager_for(
        spec.linux, container_id, _cgroup_owner(spec, maps), systemd=options.systemd_cgroup
    )
    program = None
    listener = None
    if spec.seccomp:
        from runc_bin.libcontainer import seccomp

        program = seccomp.compile_filter(spec.seccomp, os.path.join(root, state.FILTER_CACHE))
        seccomp.check_flags(spec.seccomp.get("flags"))
        if seccomp.notifies(spec.seccomp):
            from runc_bin.libcontainer import seccomp_notify

            listener = seccomp_notify.read(spec.seccomp).as_dict()
    record = new_record(
        container_id, spec, manager, options.bundle, no_new_keyring=options.no_new_keyring
    ).replace(seccomp_listener=listener)
    with contexts.ExitStack() as undo:
        folder = state.create_dir(root, container_id)
        undo.callback(run_poststop, spec, record, warn)
        undo.callback(state.remove_dir, root, container_id)
        crashpoint("runc.create.folder-made")
        state.save_state(root, record)
        crashpoint("runc.create.intent-recorded")
        if "mount" not in spec.namespaces:
            os.mkdir(state.root_place(root, record), 0o700)
        if program is not None:
            state.save_filter(root, container_id, program)
        if options.notify:
            os.mkdir(state.notify_dir(root, container_id), 0o755)
        fifo = _make_fifo(folder)
        undo.callback(os.close, fifo)
        crashpoint("runc.create.fifo-made")
        manager = _make_group(manager, spec, options.rootless)
        undo.callback(manager.destroy)
        record = record.replace(cgroup_paths=manager.paths)
        crashpoint("runc.create.cgroup-made")
        record = _bear(root, spec, process, options, manager, record, program, fifo, maps, undo)
        undo.pop_all()
        os.close(fifo)
    return record


def new_record(
    container_id: str, spec: Spec, manager: cgroups.Manager, bundle: str, *, no_new_keyring: bool = False
) -> State:
    """What is on record of a container before there is anything of it."""
    process = spec.process or no_process()
    return State(
        id=container_id,
        oci_version=spec.version,
        bundle=bundle,
        rootfs=spec.rootfs,
        created=_now(),
        annotations=spec.annotations,
        namespaces={kind: namespace.path for kind, namespace in spec.namespaces.items()},
        cgroup_paths=manager.paths,
        cgroup_unit=manager.unit,
        cgroup_unit_of_user=manager.user,
        no_new_keyring=no_new_keyring,
        seccomp_flags=(spec.seccomp or {}).get("flags"),
        apparmor_profile=process.apparmor_profile,
        oom_score_adj=process.oom_score_adj,
        has_seccomp=bool(spec.seccomp),
        personality=spec.personality,
        process_defaults=spec.process_defaults,
        late_hooks=hooks.to_record(spec.hooks),
        external_mounts=_external_mounts(spec),
        masked_paths=spec.masked_paths,
        external_descriptors=[] if process.terminal else _streams(),
    )


def _external_mounts(spec: Spec) -> list[str]:
    """The destinations of the mounts that come from outside the container."""
    found = [mount.destination for mount in spec.mounts if mount.kind == "bind" and not mount.options.remount]
    if devices.wants_devices(spec) and devices.binds_nodes(spec):
        found += [device.path for device in devices.wanted(spec)]
    return list(dict.fromkeys(found))


def _streams() -> list[str]:
    """What our three streams, which init gets, are: a path, or a kind and an inode."""
    found = []
    for fd in range(3):
        try:
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            found.append("")
    return found


def run_poststop(spec: Spec, record: State, warn: hooks.Warn) -> None:
    """Run the hooks for the end of a container that could not be made; failures go to `warn`."""
    stopped = state.oci_state(record, "stopped", 0)
    hooks.run(spec.hooks.get("poststop", ()), "poststop", stopped, folder=record.bundle, warn=warn)


def _cgroup_owner(spec: Spec, maps: Maps | None) -> int | None:
    """The host's id of the user that is to own the container's cgroup: the one that runs in it, when it has a
    v2 tree of its own to write to (config-linux.md, "Cgroup ownership"). None: it stays ours.
    """
    if maps is None or not spec.is_private("cgroup"):
        return None
    if not any(m.destination == "/sys/fs/cgroup" and not m.options.read_only for m in spec.mounts):
        return None
    return maps.host_uid(spec.process.uid if spec.process else 0)


def _make_group(manager: cgroups.Manager, spec: Spec, rootless: bool | None) -> cgroups.Manager:
    """Make the control group; the manager of what the caller could make."""
    try:
        if os.geteuid() != 0 and not manager.starts_with_process:
            from runc_bin.libcontainer.cgroups.rootless import check_reach

            check_reach(manager)
        manager.create()
    except (BuoyError, OSError) as error:
        from runc_bin.libcontainer.cgroups.rootless import instead

        return instead(manager, spec.linux, error, tolerant=rootless)
    return manager


def _make_fifo(folder: str) -> int:
    path = os.path.join(folder, state.EXEC_FIFO)
    os.mkfifo(path, 0o622)
    os.chmod(path, 0o622)  # the umask may have cut it; the program's user must be able to write
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


def _bear(
    root: str,
    spec: Spec,
    process: Process,
    options: CreateOptions,
    manager: cgroups.Manager,
    record: State,
    program: bytes | None,
    fifo: int,
    maps: Maps | None,
    undo: contexts.ExitStack,
) -> State:
    """Clone init, record it, let it go, and wait until it is ready."""
    ours, theirs = Channel.pair()
    undo.callback(ours.close)
    flags = 0
    for kind, namespace in spec.namespaces.items():
        # The cgroup namespace's root is the cgroup that its maker is in: init makes it once it is in its
        # own. It makes the time namespace too, since the first process in one ends the setting of clocks.
        if not namespace.path and kind not in ("cgroup", "time"):
            flags |= namespace.flag
    joined = _open_namespaces(spec, undo)
    group = _open_group(manager)
    if group is not None:
        undo.callback(os.close, group)
    birth = init.Birth(
        container_id=record.id,
        spec=spec,
        process=process,
        channel=theirs,
        manager=manager,
        born_inside=group is not None,
        of_ordinary_user=os.geteuid() != 0,
        joined=joined,
        entered=False,
        time_offsets=spec.time_offsets if spec.is_private("time") else None,
        fifo_fd=fifo,
        place=state.root_place(root, record),
        console_socket=options.console if process.terminal else None,
        passed_fds=options.passed_fds,
        no_pivot=options.no_pivot,
        no_new_keyring=options.no_new_keyring,
        seccomp_program=program,
        seccomp_flags=record.seccomp_flags,
        seccomp_openly=os.geteuid() != 0 if record.seccomp_listener else None,
        oci_state=state.oci_state(record, "created", 0),
    )
    if maps is None:
        interpreter.seal()
        pid = _clone(flags, group, joined)
    else:
        from runc_bin.libcontainer import passage

        identity.own_pipes(maps.host_uid(process.uid))
        # An ordinary user reaches the files in /proc of init, to map its ids, only while it is dumpable.
        interpreter.seal(dumpable=os.geteuid() != 0)
        with step(START_ERROR):
            pid, birth = passage.clone_init(birth, ours, flags & ~syscalls.CLONE_NEWIPC, group)
    if pid == 0:
        init.run(birth)
    undo.callback(_reap, pid)
    theirs.close()
    crashpoint("runc.create.cloned")
    record = state.with_init(record, pid)
    state.save_state(root, record)
    crashpoint("runc.create.init-recorded")
    if manager.starts_with_process:
        manager.start_with(pid)
        with contexts.suppress(BrokenPipeError):
            ours.send(Message.PLACED)
    if maps is not None and spec.is_private("user"):
        with step(START_ERROR):
            passage.admit(pid, maps, birth, ours)
        crashpoint("runc.create.ids-mapped")
    manager.apply()
    crashpoint("runc.create.limits-set")
    with contexts.suppress(BrokenPipeError):  # it failed early: its error waits to be read
        ours.send(Message.GO)
    _converse(ours, spec, record)
    ours.close()
    crashpoint("runc.create.ready")
    return record


def _open_namespaces(spec: Spec, undo: contexts.ExitStack) -> list[tuple[int, int]]:
    """Descriptors of the namespaces to join, in the order of the spec's table."""
    joined = []
    for namespace in spec.namespaces.values():
        if not namespace.path:
            continue
        try:
            fd = os.open(namespace.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            text = os.strerror(error.errno or 0).lower()
            message = f"{START_ERROR}: namespace path: lstat {namespace.path}: {text}"
            raise InvalidArgument(message) from None
        undo.callback(os.close, fd)
        joined.append((fd, namespace.flag))
    return joined


def _open_group(manager: cgroups.Manager) -> int | None:
    """The directory of the v2 tree that init is born into; None where there is none, or not yet."""
    path = manager.paths.get("")
    if path is None or manager.starts_with_process:
        return None
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _clone(flags: int, group: int | None, joined: list[tuple[int, int]]) -> int:
    """clone init; a pid namespace to join is joined for children only, and left again."""
    pid_fds = [fd for fd, flag in joined if flag == syscalls.CLONE_NEWPID]
    if not pid_fds:
        return syscalls.clone(flags, cgroup_fd=group)
    own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.setns(pid_fds[0], syscalls.CLONE_NEWPID)
        try:
            pid = syscalls.clone(flags, cgroup_fd=group)
        except BaseException:
            syscalls.setns(own, syscalls.CLONE_NEWPID)
            raise
        if pid:
            syscalls.setns(own, syscalls.CLONE_NEWPID)
        return pid
    finally:
        os.close(own)


def _converse(channel: Channel, spec: Spec, record: State) -> None:
    """Serve init until it is ready; Internal with its error's text when it fails."""
    ready = False
    while True:
        got = channel.receive()
        if got is None:
            if ready:
                return
            raise Internal(f"{START_ERROR}: container init exited before it was ready")
        message, text = got
        if message == Message.READY:
            ready = True
            with contexts.suppress(BrokenPipeError):
                channel.send(Message.DONE)
        elif message == Message.SOURCES:
            from runc_bin.libcontainer import bind_sources

            bind_sources.serve(channel, record.init_process_pid, spec, text)
        elif message == Message.HOOKS:
            # The environment is there, the program has not run: `created` (runtime.md, "State").
            seen = state.oci_state(record, "created", record.init_process_pid)
            for kind in ("prestart", "createRuntime"):
                hooks.run(spec.hooks.get(kind, ()), kind, seen, folder=record.bundle)
                crashpoint("runc.create.hooks-run")
            with contexts.suppress(BrokenPipeError):
                channel.send(Message.DONE)
        elif message == Message.LISTENER and record.seccomp_listener:
            from runc_bin.libcontainer import seccomp_notify

            listener = seccomp_notify.Listener(**record.seccomp_listener)
            seen = state.oci_state(record, "creating", record.init_process_pid)
            seccomp_notify.hand_over(channel, record.init_process_pid, text, listener, seen)
        else:
            raise Internal(f"{START_ERROR}: error during container init: {text}")


def _reap(pid: int) -> None:
    """Kill init and take its exit, so that its cgroup can go."""
    with contexts.suppress(ProcessLookupError):
        os.kill(pid, signals.SIGKILL)
    with contexts.suppress(ChildProcessError):
        os.waitpid(pid, 0)

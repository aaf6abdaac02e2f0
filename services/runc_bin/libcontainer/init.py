"""The container's first process, from its birth in the new namespaces to the exec of the program.

One straight list of steps. It runs in a copy of the creating process, so that it has all it needs: after
the first step into the container nothing is loaded, looked up or imported. Order and texts follow runc's
standard init.
"""

from __future__ import annotations

import _socket
import os
import select
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from errdefs import InvalidArgument
from linux import fds, signals, syscalls

from runc_bin.contexts import contextmanager
from runc_bin.libcontainer import (
    apparmor,
    console,
    hooks,
    identity,
    keyring,
    masks,
    paths,
    scheduling,
    sysctls,
)
from runc_bin.libcontainer.cgroups import Manager
from runc_bin.libcontainer.failures import reason, step
from runc_bin.libcontainer.process_spec import NO_PROCESS, Process
from runc_bin.libcontainer.rootfs import Root
from runc_bin.libcontainer.spec import Spec
from runc_bin.libcontainer.state import STARTED
from runc_bin.libcontainer.sync import Channel, Message
from runc_bin.record import Record

_HANDLED = (
    signals.SIGPIPE,
    signals.SIGXFSZ,
    signals.SIGINT,
    signals.SIGTERM,
    signals.SIGCHLD,
    signals.SIGHUP,
    signals.SIGWINCH,
)


class Birth(Record):
    """All that init gets from its parent. `joined` are (descriptor, CLONE_NEW* flag) of namespaces to join;
    `of_ordinary_user` says that the caller is not root, `entered` that a process between has joined the
    control group and done what needs the caller's rights; `time_offsets` are for a time namespace to make;
    `passed_fds` are the descriptors from 3 on that the program gets, `place` is the directory for the root of
    a container without a mount namespace, `oci_state` the state that hooks see, but for the pid;
    `seccomp_openly` is as in `load_filter`.
    """

    container_id: str
    spec: Spec
    process: Process
    channel: Channel
    manager: Manager
    born_inside: bool
    of_ordinary_user: bool
    joined: Sequence[tuple[int, int]]
    entered: bool
    time_offsets: Mapping[str, tuple[int, int]] | None
    fifo_fd: int
    place: str
    console_socket: _socket.socket | None
    passed_fds: int
    no_pivot: bool
    no_new_keyring: bool
    seccomp_program: bytes | None
    seccomp_flags: Sequence[str] | None
    seccomp_openly: bool | None
    oci_state: Mapping[str, Any]


def run(birth: Birth) -> NoReturn:
    """Become the container's program; ends the process whatever happens."""
    console_fd = birth.console_socket.fileno() if birth.console_socket else -1
    keep = [birth.fifo_fd, console_fd, *(fd for fd, _ in birth.joined)]
    with reporting(birth.channel):
        prepare_child(birth.channel, birth.passed_fds, keep)
        _become(birth, _build(birth))
    os._exit(255)


@contextmanager
def reporting(channel: Channel) -> Iterator[None]:
    """End the process with 255 on any error, which is told to the parent while the channel is open.

    Later the program's own standard error is all there is.
    """
    try:
        try:
            yield
        except BaseException as error:
            if channel.fileno() < 0:
                raise
            channel.send(Message.ERROR, reason(error))
    except BaseException as error:
        os.write(2, f"{reason(error)}\n".encode(errors="replace"))
    finally:
        os._exit(255)


def prepare_child(channel: Channel, passed_fds: int, keep: Iterable[int]) -> None:
    """Be a clean process: own session, default signals, no descriptors but those that are needed.

    Until the program is about to run, the child dies with its parent.
    """
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signals.SIGKILL)
    signals.set_wakeup_fd(-1)
    for number in _HANDLED:
        signals.signal(number, signals.SIG_DFL)
    signals.pthread_sigmask(signals.SIG_SETMASK, ())
    wanted = {*range(3 + passed_fds), channel.fileno(), *(fd for fd in keep if fd >= 0)}
    fds.close_all_but(wanted)
    fds.cloexec_from(3)
    os.setsid()
    os.umask(0)


def _build(birth: Birth) -> Root:
    """Everything that is done as root: namespaces, mounts, the new root, names, limits of the view."""
    spec = birth.spec
    if birth.manager.starts_with_process:
        birth.channel.expect(Message.PLACED)
    if not birth.entered or birth.manager.starts_with_process:
        with step("unable to join the container's cgroup"):
            birth.manager.join_self(born_inside=birth.born_inside)
    scheduling.use_all_cpus()
    if not birth.entered and not spec.is_private("user"):
        identity.set_oom_score(birth.process.oom_score_adj)
    if birth.time_offsets is not None:
        from runc_bin.libcontainer import time_offsets  # the spec's reader has loaded it

        time_offsets.enter(birth.time_offsets)
    if spec.is_private("user"):
        birth.channel.expect(Message.MAPPED)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # an ordinary caller had to reach our files in /proc
    for fd, flag in birth.joined:
        if flag != syscalls.CLONE_NEWPID:
            with step("unable to join a namespace"):
                syscalls.setns(fd, flag)
        os.close(fd)
    if spec.is_private("cgroup"):
        syscalls.unshare(syscalls.CLONE_NEWCGROUP)
    root = Root(spec, birth.place)
    may_go = spec.takes_sources and root.take_sources(birth.channel)
    if "user" in spec.namespaces:
        identity.become_root()
        if spec.is_private("ipc"):
            syscalls.unshare(syscalls.CLONE_NEWIPC)  # its message queues belong to whoever makes it
    if not birth.no_new_keyring:
        keyring.join(birth.container_id, birth.process.selinux_label)
    root.fill(birth.manager.paths)
    if not may_go:
        birth.channel.expect(Message.GO)
    root.fill_dev()
    proc = root.proc()
    _run_hooks_outside(birth)
    if spec.hooks.get("createContainer"):
        os.fchdir(root.fd)
        hooks.run(spec.hooks["createContainer"], "createContainer", _state_inside(birth))
    root.enter(no_pivot=birth.no_pivot)
    os.close(paths.make_directories(root.fd, birth.process.cwd))
    if birth.process.terminal and birth.console_socket is not None:
        console.set_up(root.fd, birth.console_socket, birth.process.console_size, mount=True)
        birth.console_socket.close()
    root.finish()
    os.umask(0o022 if birth.process.umask is None else birth.process.umask)
    if spec.hostname:
        syscalls.sethostname(spec.hostname)
    if spec.domainname:
        syscalls.setdomainname(spec.domainname)
    if birth.process.apparmor_profile:
        with step("unable to apply apparmor profile"):
            apparmor.apply_exec(birth.process.apparmor_profile)
    sysctls.write(proc, spec.sysctl)
    masks.make_read_only(root.fd, spec.readonly_paths)
    masks.mask(root.fd, spec.masked_paths, spec.mount_label)
    root.seal()
    return root


def _run_hooks_outside(birth: Birth) -> None:
    """Have the parent run the hooks that belong to its namespaces, while the old root is still there."""
    if birth.spec.hooks.get("prestart") or birth.spec.hooks.get("createRuntime"):
        birth.channel.send(Message.HOOKS)
        birth.channel.expect(Message.DONE)


def _state_inside(birth: Birth) -> dict[str, Any]:
    """The container's state with the pid that init has in there."""
    return {**birth.oci_state, "pid": os.getpid()}


def _become(birth: Birth, root: Root) -> None:
    """Give up what the program must not have, wait for the start, and become it."""
    process = birth.process
    own_fds = syscalls.openat2(root.proc(), "self/fd", os.O_PATH | os.O_DIRECTORY)
    if process.no_new_privileges:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    scheduling.apply(process, birth.spec.personality)
    label_program(process)
    entered = identity.enter_directory(process.cwd)
    program = birth.seccomp_program
    # Without no_new_privs only a privileged process may load a filter, so it comes before the capabilities
    # go; else it comes as late as can be.
    if program is not None and not process.no_new_privileges:
        load_filter(birth.channel, program, birth.seccomp_flags, birth.seccomp_openly)
    identity.set_rlimits(process.rlimits)
    identity.become(process, entered=entered)
    if birth.of_ordinary_user:
        # Who made us could else not exec beside us before the start. In here there is nothing yet to see us,
        # and what we hold is the fifo.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
    env = identity.environment(process)
    path = identity.find_program(process.args[0], process.env) if process.args else ""
    pass_on(birth.passed_fds)
    settle(birth.channel)
    if program is not None and process.no_new_privileges:
        load_filter(birth.channel, program, birth.seccomp_flags, birth.seccomp_openly)
    birth.channel.close()
    fifo = _wait_for_start(own_fds, birth.fifo_fd)
    if birth.spec.hooks.get("startContainer") and process.args:
        _run_start_hooks(birth, fifo)
    os.write(fifo, STARTED)
    if not process.args:
        raise InvalidArgument(NO_PROCESS)
    held = fifo if birth.spec.hooks.get("poststart") else None
    if held is None:
        os.close(fifo)
    execute(path, process.args, env, birth.passed_fds, held=held)


def load_filter(channel: Channel, program: bytes, flags: Sequence[str] | None, openly: bool | None) -> None:
    """Install the seccomp filter; `openly` is None where it has no listener, else as in
    `seccomp_notify.install`.
    """
    if openly is None:
        from runc_bin.libcontainer import seccomp  # loaded by who has read or compiled the program

        seccomp.install(program, flags)
    else:
        from runc_bin.libcontainer import seccomp_notify  # loaded with the check of the listener

        seccomp_notify.install(channel, program, flags, openly=openly)


def label_program(process: Process) -> None:
    """Have the program run with the SELinux label of the spec."""
    if process.selinux_label:
        from runc_bin.libcontainer import selinux  # loaded with the check that the host has it

        selinux.apply_exec(process.selinux_label)


def _wait_for_start(own_fds: int, fifo_fd: int) -> int:
    """Block until `start` opens the other end of the fifo; this end of it.

    A strict filter is in force already: nothing but openat, write and close is called around it.
    """
    return os.open(str(fifo_fd), os.O_WRONLY | os.O_CLOEXEC, dir_fd=own_fds)


def _run_start_hooks(birth: Birth, fifo: int) -> None:
    """Run the hooks of the start; a failure is told to `start`, and ends the process."""
    wanted = birth.spec.hooks["startContainer"]
    try:
        hooks.run(wanted, "startContainer", _state_inside(birth), env=birth.process.env)
    except BaseException as error:
        os.write(fifo, reason(error).encode(errors="surrogateescape")[: select.PIPE_BUF])
        os._exit(255)


def settle(channel: Channel) -> None:
    """Tell the parent that all went well, and outlive it from here on."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signals.SIGKILL)  # a change of user has cleared it
    channel.send(Message.READY)
    channel.expect(Message.DONE)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 0)


def pass_on(passed_fds: int) -> None:
    """Let the program have its streams and the descriptors that are passed to it."""
    for fd in range(3 + passed_fds):
        os.set_inheritable(fd, True)


def execute(
    path: str, args: Sequence[str], env: Mapping[str, str], passed_fds: int, *, held: int | None = None
) -> NoReturn:
    """Close every descriptor that the program does not get, and become it. The exec itself closes `held`, a
    fifo.

    They are closed, not only marked: the path could be /proc/self/fd/N (CVE-2024-21626). `closerange` falls
    back to close(2) where a filter forbids close_range(2).
    """
    first = 3 + passed_fds
    if held is not None:
        os.dup2(held, first, inheritable=False)
        first += 1
    os.closerange(first, 4096)
    try:
        os.execve(path, list(args), dict(env))
    except OSError as error:
        os.write(2, f"exec {path}: {os.strerror(error.errno or 0).lower()}\n".encode())
    finally:
        os._exit(255)

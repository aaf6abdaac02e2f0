"""`exec`: a further process, from a file (`--process`) or from the container's own process and flags."""

from __future__ import annotations

import os

from errdefs import InvalidArgument
from linux import signals
from linux.crashpoints import crashpoint

from runc_bin.cli import Context
from runc_bin.commands import launch
from runc_bin.foreground import Foreground
from runc_bin.libcontainer import exec_in, fields, process_spec, spec, state
from runc_bin.libcontainer.exec_in import ExecOptions
from runc_bin.libcontainer.process_spec import Process
from runc_bin.libcontainer.state import State
from runc_bin.log import Log


def _read_process(context: Context, record: State) -> Process:
    path = context.text("process")
    if path:
        return exec_in.read_process_file(path, record)
    base = spec.load_spec(record.bundle).process
    if base is None:
        raise InvalidArgument(process_spec.NO_PROCESS)
    if len(context.args) < 2:
        raise InvalidArgument("exec args cannot be empty")
    uid, gid = _user(context.text("user"), base)
    cwd = context.text("cwd") or base.cwd
    if not cwd.startswith("/"):
        raise InvalidArgument("Cwd must be an absolute path")
    caps = base.capabilities
    if context.texts("cap"):
        caps = caps.with_added(context.texts("cap"))
    no_new_privileges = context.said("no-new-privs")
    return base.replace(
        args=tuple(context.args[1:]),
        cwd=cwd,
        env=(*base.env, *context.texts("env")),
        terminal=context.given("tty"),
        uid=uid,
        gid=gid,
        additional_gids=(
            *base.additional_gids,
            *(_id(text, "gid") for text in context.texts("additional-gids")),
        ),
        capabilities=caps,
        apparmor_profile=context.text("apparmor") or base.apparmor_profile,
        selinux_label=context.text("process-label") or base.selinux_label,
        no_new_privileges=base.no_new_privileges if no_new_privileges is None else no_new_privileges,
    )


def _user(text: str, base: Process) -> tuple[int, int]:
    if not text:
        return base.uid, base.gid
    uid, colon, gid = text.partition(":")
    return _id(uid, "uid"), _id(gid, "gid") if colon else base.gid


def _id(text: str, what: str) -> int:
    plain = text.isascii() and text.isdecimal() and (text == "0" or text[0] != "0")
    if not plain or len(text) > len(str(fields.ID_MAX)) or int(text) > fields.ID_MAX:
        raise InvalidArgument(f"bad {what}: {text!r}")
    return int(text)


def run(context: Context, _log: Log) -> int:
    record = state.load_state(context.root, context.args[0])
    process = _read_process(context, record)
    detached = context.given("detach")
    launch.check_terminal(context, terminal=process.terminal, detached=detached)
    pid_file = launch.absolute(context.text("pid-file"))
    stay = None if detached else Foreground(subreaper=False)
    console = None
    if process.terminal:
        console = stay.console() if stay else launch.connect_socket(context.text("console-socket"))
    options = ExecOptions(
        console=console,
        preserve_fds=context.number("preserve-fds"),
        ignore_paused=context.given("ignore-paused"),
        cgroups=_cgroups(context),
    )
    pidfd_receiver = launch.pidfd_receiver(context)
    pid = exec_in.start(context.root, record, process, options)
    try:
        launch.write_pid_file(pid_file, pid)
        crashpoint("runc.exec.pid-written")
        launch.send_pidfd(pidfd_receiver, pid, b"setns")
    except BaseException:
        os.kill(pid, signals.SIGKILL)
        os.waitpid(pid, 0)
        raise
    if console is not None and stay is None:
        console.close()
    return stay.wait(pid) if stay else 0


def _cgroups(context: Context) -> dict[str, str]:
    if not context.texts("cgroup"):
        return {}
    from runc_bin.libcontainer.cgroups import sub_groups

    return sub_groups.parse(context.texts("cgroup"))

"""`create`, and the making of a container that `run` does too."""

from __future__ import annotations

import _socket
import os

from errdefs import BuoyError, InvalidArgument
from linux.crashpoints import crashpoint

from runc_bin.cli import Context
from runc_bin.commands import launch
from runc_bin.libcontainer import container, create, state
from runc_bin.libcontainer.cgroups.resources import ignored
from runc_bin.libcontainer.create import CreateOptions
from runc_bin.libcontainer.spec import Spec, load_spec
from runc_bin.libcontainer.state import State
from runc_bin.log import Log


def read_bundle(context: Context) -> tuple[str, Spec]:
    """(folder, checked spec) of `--bundle`."""
    bundle = os.path.abspath(context.text("bundle") or ".")
    if not os.path.isdir(bundle):
        raise InvalidArgument(f"chdir {bundle}: no such file or directory")
    return bundle, load_spec(bundle)


def make(context: Context, bundle: str, spec: Spec, console: _socket.socket | None, log: Log) -> State:
    """Make the container of a command line and write its pid file; all is undone when that fails."""
    container_id = context.args[0]
    pid_file = launch.absolute(context.text("pid-file"))
    count, said = launch.activation()
    if said and spec.process is not None:
        spec = spec.replace(process=spec.process.replace(env=(*spec.process.env, *said)))
    notify = bool(os.environ.get("NOTIFY_SOCKET"))
    if notify:
        from runc_bin import notify_proxy

        state.check_id(container_id)
        spec = notify_proxy.with_socket(spec, context.root, container_id)
    options = CreateOptions(
        bundle=bundle,
        console=console,
        no_pivot=context.given("no-pivot"),
        no_new_keyring=context.given("no-new-keyring"),
        preserve_fds=context.number("preserve-fds"),
        listen_fds=count,
        rootless=context.rootless,
        systemd_cgroup=context.systemd_cgroup,
        notify=notify,
    )
    pidfd_receiver = launch.pidfd_receiver(context)
    record = create.create(context.root, container_id, spec, options, warn=log.warn)
    try:
        launch.write_pid_file(pid_file, record.init_process_pid)
        launch.send_pidfd(pidfd_receiver, record.init_process_pid, b"standard")
    except (OSError, BuoyError):
        container.delete(context.root, container_id, force=True, warn=log.warn)
        raise
    crashpoint("runc.create.pid-written")
    return record


def warn_of_ignored(spec: Spec, log: Log) -> None:
    """Log what of the spec has no effect on this host, and what of its limits no kernel has any more."""
    for note in (*spec.warnings, *ignored(spec.linux.get("resources") or {})):
        log.warn(note)
    unknown = spec.process.capabilities.unknown if spec.process else ()
    if unknown:
        log.warn(f"ignoring unknown or unavailable capabilities: {list(unknown)}")


def run(context: Context, log: Log) -> int:
    bundle, spec = read_bundle(context)
    terminal = spec.process is not None and spec.process.terminal
    launch.check_terminal(context, terminal=terminal, detached=True)
    console = launch.connect_socket(context.text("console-socket")) if terminal else None
    try:
        make(context, bundle, spec, console, log)
        warn_of_ignored(spec, log)
    finally:
        if console is not None:
            console.close()
    return 0

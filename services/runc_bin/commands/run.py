"""`run`: create and start, and unless detached stay until the end."""

from __future__ import annotations

import os

from errdefs import BuoyError, InvalidArgument
from linux.crashpoints import crashpoint

from runc_bin import contexts
from runc_bin.cli import Context
from runc_bin.commands import launch
from runc_bin.commands.create import make, read_bundle, warn_of_ignored
from runc_bin.commands.start import start
from runc_bin.foreground import Foreground
from runc_bin.libcontainer import container
from runc_bin.libcontainer.process_spec import NO_PROCESS
from runc_bin.libcontainer.state import State
from runc_bin.log import Log


def run(context: Context, log: Log) -> int:
    bundle, spec = read_bundle(context)
    if spec.process is None:
        raise InvalidArgument(NO_PROCESS)
    detached = context.given("detach")
    terminal = spec.process.terminal
    launch.check_terminal(context, terminal=terminal, detached=detached)
    stay = None if detached else Foreground(subreaper=not context.given("no-subreaper"))
    console = None
    if terminal:
        console = stay.console() if stay else launch.connect_socket(context.text("console-socket"))
    record = make(context, bundle, spec, console, log)
    warn_of_ignored(spec, log)
    try:
        if stay is None:
            start(context, record, log)
            return 0
        if host := os.environ.get("NOTIFY_SOCKET", ""):
            stay.notify(context.root, record.id, host, log.warn)
        container.start(context.root, record, warn=log.warn)
        crashpoint("runc.run.started")
        code = stay.wait(record.init_process_pid)
        crashpoint("runc.run.ended")
    except BaseException:
        undo(context, record, log)
        raise
    if not context.given("keep"):
        clean_up(context, record, log)
    return code


def undo(context: Context, record: State, log: Log) -> None:
    """End a container that could not be started, or not be waited for."""
    container.delete(context.root, record.id, force=True, warn=log.warn)
    with contexts.suppress(ChildProcessError):
        os.waitpid(record.init_process_pid, 0)


def clean_up(context: Context, record: State, log: Log) -> None:
    """Remove what a container that has ended leaves; its exit code counts more than a failure of that."""
    try:
        container.delete(context.root, record.id, force=True, warn=log.warn)
    except BuoyError as error:
        log.warn(error.message)

"""`start`, and the start that a detached `run` does."""

from __future__ import annotations

import os

from linux import fds

from runc_bin.cli import Context
from runc_bin.libcontainer import container, state
from runc_bin.libcontainer.state import State
from runc_bin.log import Log


def run(context: Context, log: Log) -> int:
    start(context, state.load_state(context.root, context.args[0]), log)
    return 0


def start(context: Context, record: State, log: Log) -> None:
    """Start a container. Under a service manager ($NOTIFY_SOCKET) that comes back once it is ready, which the
    manager is told, or over. The service's main process is the container's first: this one does not stay.
    """
    host = os.environ.get("NOTIFY_SOCKET", "")
    if not host:
        container.start(context.root, record, warn=log.warn)
        return
    from runc_bin.notify_proxy import NotifyProxy

    container.check_startable(context.root, record)
    pidfd = fds.open_pidfd(record.init_process_pid)
    try:
        proxy = NotifyProxy(context.root, record.id, host)
        container.start(context.root, record, warn=log.warn)
        if proxy.wait(pidfd):
            proxy.tell(record.init_process_pid, settle=True)
        proxy.close()
    finally:
        os.close(pidfd)

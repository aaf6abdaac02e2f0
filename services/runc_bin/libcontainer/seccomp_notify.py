"""A filter whose calls somebody else answers: `listenerPath` of "Seccomp" in the runtime spec's
config-linux.md, and seccomp_unotify(2). Loaded only where a profile has SCMP_ACT_NOTIFY.

    process                                       runtime
            ───────────────────────────────────►  LISTENER n     (the number that the descriptor will have)
    installs the filter                           takes it out of the process, as soon as it is there
    reads                                         sends it to the agent with the container process state
            ◄───────────────────────────────────  DONE

The process says so beforehand since afterwards any call of it may wait for the agent, that for sending too.
"""

from __future__ import annotations

import _socket
import errno
import os
import select
import stat
import time
from collections.abc import Mapping, Sequence
from typing import Any

from errdefs import DeadlineExceeded, FailedPrecondition, Internal
from linux import fds, syscalls

from runc_bin.document import render
from runc_bin.libcontainer import seccomp
from runc_bin.libcontainer.failures import reason, step
from runc_bin.libcontainer.sync import Channel, Message
from runc_bin.record import Record

_SECONDS = 10.0
_FIRST_PART = 4096


class Listener(Record):
    """The agent that answers: the path of its Unix socket, and what it is told beside the state."""

    path: str
    metadata: str = ""


def read(seccomp_spec: Mapping[str, Any]) -> Listener:
    """The listener that a profile names, for which `seccomp.notifies`; FailedPrecondition when no socket is
    there.
    """
    path = seccomp_spec["listenerPath"]
    try:
        found = stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError as error:
        raise FailedPrecondition(f"linux.seccomp.listenerPath: {reason(error)}") from None
    if not found:
        raise FailedPrecondition(f"linux.seccomp.listenerPath: {path} is not a socket")
    return Listener(path, seccomp_spec.get("listenerMetadata") or "")


def install(channel: Channel, program: bytes, flags: Sequence[str] | None, *, openly: bool) -> None:
    """The process's side. `openly`: let a runtime without power over the host take the descriptor."""
    number = os.dup(2)
    os.close(number)
    if openly:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
    channel.send(Message.LISTENER, str(number))
    made = seccomp.install_with_listener(program, flags)
    # By read(2), which hardly any profile forbids.
    if made != number or os.read(channel.fileno(), 1) != Message.DONE:
        raise Internal("the seccomp listener has not got its descriptor")
    if openly:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    os.close(made)


def hand_over(channel: Channel, pid: int, text: str, listener: Listener, state: Mapping[str, Any]) -> None:
    """The runtime's side, for the process `pid` and its message. When the process has failed instead, its
    error waits to be read. `state` is the container's.
    """
    fd = _take(channel, pid, int(text))
    if fd is None:
        return
    document = {
        "ociVersion": state["ociVersion"],
        "fds": ["seccompFd"],
        "pid": pid,
        "metadata": listener.metadata,
        "state": dict(state),
    }
    try:
        with step(f"sending the seccomp descriptor to {listener.path}"):
            _send(listener.path, render(document).encode(), fd)
    finally:
        os.close(fd)
    channel.send(Message.DONE)


def _take(channel: Channel, pid: int, number: int) -> int | None:
    """The descriptor `number` of the process once it is there; None when the process has something to say."""
    poller = select.poll()
    poller.register(channel.fileno(), select.POLLIN)
    deadline = time.monotonic() + _SECONDS
    pidfd = fds.open_pidfd(pid)
    try:
        while time.monotonic() < deadline:
            try:
                return syscalls.pidfd_getfd(pidfd, number)
            except OSError as error:
                if error.errno not in (errno.EBADF, errno.ESRCH):
                    raise Internal(f"taking the seccomp descriptor: {reason(error)}") from error
            if poller.poll(1):
                return None
    finally:
        os.close(pidfd)
    raise DeadlineExceeded(f"no seccomp descriptor within {_SECONDS:g} s")


def _send(path: str, document: bytes, fd: int) -> None:
    agent = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        agent.settimeout(_SECONDS)
        agent.connect(path)
        fds.send_fds(agent, document[:_FIRST_PART], [fd])
        agent.sendall(document[_FIRST_PART:])
    finally:
        agent.close()

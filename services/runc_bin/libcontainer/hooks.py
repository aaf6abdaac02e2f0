"""Hooks: programs that the spec wants run at points of the life cycle (config.md, "POSIX-platform Hooks").

Each gets the container's state as JSON on its standard input. What a failure means is the life cycle's to
say (runtime.md, "Lifecycle" of version 1.2): the first that fails ends a creation or a start, while those
that come after the fact, `poststart` and `poststop`, are only warned of.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from errdefs import DeadlineExceeded, Internal
from linux import signals

from runc_bin import contexts
from runc_bin.document import render
from runc_bin.libcontainer.spec import Hook

LATE = ("startContainer", "poststart", "poststop")  # what follows the creation
_MOST_OUTPUT = 4096

Warn = Callable[[str], None]


def say(message: str) -> None:
    """Where warnings go that nobody else takes: standard error."""
    os.write(2, f"{message}\n".encode(errors="surrogateescape"))


def run(
    hooks: Sequence[Hook],
    kind: str,
    state: Mapping[str, Any],
    *,
    env: Sequence[str] | None = None,
    folder: str = "",
    warn: Warn | None = None,
) -> None:
    """Run hooks one after another. `env` is for those that name no environment of their own, else they have
    the caller's; they start in `folder`, where it is still there.

    Internal when one exits with an error, DeadlineExceeded when one overstays its timeout (it is killed);
    with `warn` that is told there, and the next one runs.
    """
    document = render(state).encode()
    for number, hook in enumerate(hooks):
        try:
            _run_one(hook, document, env, folder)
        except (Internal, DeadlineExceeded) as error:
            message = f"error running {kind} hook #{number}: {error.message}"
            if warn is None:
                raise type(error)(message) from error
            warn(message)


def to_record(hooks: Mapping[str, Sequence[Hook]]) -> dict[str, list[dict[str, Any]]]:
    """The hooks that follow the creation, to be kept: a later change of config.json must not touch them."""
    return {kind: [hook.as_dict() for hook in hooks[kind]] for kind in LATE if kind in hooks}


def from_record(late: Mapping[str, Sequence[Mapping[str, Any]]], kind: str) -> list[Hook]:
    """The hooks of a kind from what `to_record` gave."""
    return [Hook(**fields) for fields in late.get(kind, ())]


def _environment(hook: Hook, env: Sequence[str] | None) -> Mapping[str, str]:
    wanted = env if hook.env is None else hook.env
    if wanted is None:
        return os.environ
    return dict(item.split("=", 1) for item in wanted if "=" in item)


def _run_one(hook: Hook, document: bytes, env: Sequence[str] | None, folder: str) -> None:
    environment = _environment(hook, env)
    input_read, input_write = os.pipe()
    output_read, output_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(input_read, 0)
            os.dup2(output_write, 1)
            os.dup2(output_write, 2)
            signals.pthread_sigmask(signals.SIG_SETMASK, ())
            signals.signal(signals.SIGPIPE, signals.SIG_DFL)
            _go_to(folder)
            os.execve(hook.path, list(hook.args), environment)
        except OSError as error:
            os.write(2, f"fork/exec {hook.path}: {(error.strerror or '').lower()}".encode())
        finally:
            os._exit(127)
    os.close(input_read)
    os.close(output_write)
    try:
        output = _talk(hook, pid, input_write, output_read, document)
    finally:
        os.close(output_read)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code != 0:
        what = f"exit status {code}" if code > 0 else f"signal {-code}"
        raise Internal(f"{what}, stdout/stderr: {output.decode(errors='replace')}")


def _go_to(folder: str) -> None:
    if folder:
        with contexts.suppress(OSError):  # a bundle may go before its container
            os.chdir(folder)


def _talk(hook: Hook, pid: int, writer: int, reader: int, document: bytes) -> bytes:
    """Give the hook its input and keep the end of its output until it is gone; closes `writer`."""
    deadline = None if hook.timeout is None else time.monotonic() + hook.timeout
    pidfd = os.pidfd_open(pid)
    os.set_blocking(writer, False)
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    poller.register(pidfd, select.POLLIN)
    poller.register(writer, select.POLLOUT)
    left: memoryview | None = memoryview(document)
    output = b""
    previous = signals.signal(signals.SIGPIPE, signals.SIG_IGN)
    try:
        while True:
            wait = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
            events = dict(poller.poll(wait))
            if not events:
                os.kill(pid, signals.SIGKILL)
                os.waitpid(pid, 0)
                raise DeadlineExceeded(f"hook {hook.path} did not end within {hook.timeout} s")
            if writer in events and left is not None:
                left = _feed(writer, left)
                if left is None:
                    poller.unregister(writer)
                    os.close(writer)
            if reader in events:
                chunk = os.read(reader, 65536)
                output = (output + chunk)[-_MOST_OUTPUT:]
                if not chunk:
                    poller.unregister(reader)
            if pidfd in events:
                return (output + _rest(reader))[-_MOST_OUTPUT:]
    finally:
        signals.signal(signals.SIGPIPE, previous)
        os.close(pidfd)
        if left is not None:
            os.close(writer)


def _rest(reader: int) -> bytes:
    """What has been written and not yet read."""
    os.set_blocking(reader, False)
    try:
        return os.read(reader, 65536)
    except BlockingIOError:
        return b""


def _feed(writer: int, left: memoryview) -> memoryview | None:
    """Write what fits; what remains, or None when all is written or the hook does not read."""
    try:
        left = left[os.write(writer, left) :]
    except BlockingIOError:
        return left
    except OSError:
        return None
    return left if left else None

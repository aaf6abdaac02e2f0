"""Hooks: programs that the spec wants run at points of the life cycle (config.md, "POSIX-platform Hooks").

Each gets the container's state as JSON on its standard input. The first that fails ends the operation,
except that a failed `poststop` is only reported.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Mapping, Sequence
from typing import Any

from errdefs import DeadlineExceeded, Internal
from linux import signals

from runc_bin.document import render
from runc_bin.libcontainer.spec import Hook

_MOST_OUTPUT = 4096


def run(hooks: Sequence[Hook], kind: str, state: Mapping[str, Any], env: Sequence[str] | None = None) -> None:
    """Run hooks one after another; `env` is for those that name no environment of their own.

    Internal when one exits with an error, DeadlineExceeded when one overstays its timeout (it is killed).
    """
    document = render(state).encode()
    for number, hook in enumerate(hooks):
        try:
            _run_one(hook, document, hook.env if hook.env is not None else env)
        except (Internal, DeadlineExceeded) as error:
            raise type(error)(f"error running {kind} hook #{number}: {error.message}") from error


def _run_one(hook: Hook, document: bytes, env: Sequence[str] | None) -> None:
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
            pairs = dict(item.split("=", 1) for item in env or () if "=" in item)
            os.execve(hook.path, list(hook.args), pairs)
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
                return output
    finally:
        signals.signal(signals.SIGPIPE, previous)
        os.close(pidfd)
        if left is not None:
            os.close(writer)


def _feed(writer: int, left: memoryview) -> memoryview | None:
    """Write what fits; what remains, or None when all is written or the hook does not read."""
    try:
        left = left[os.write(writer, left) :]
    except BlockingIOError:
        return left
    except OSError:
        return None
    return left if left else None

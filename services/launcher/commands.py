"""What the command line does: up, restart, down (purge has its own file)."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from launcher.control import ask
from launcher.layout import Layout, Refused
from launcher.supervisor import hold, take_over

#: Seconds from `up` to an API that answers.
START_TIMEOUT = 30.0
#: Every service has ten seconds from SIGTERM to SIGKILL, one after the other.
STOP_TIMEOUT = 60.0
#: A restart ends the old process and waits for the new one's READY=1.
RESTART_TIMEOUT = 60.0
_TAIL_LINES = 20


def up(layout: Layout, supervisor: Sequence[str]) -> None:
    """Start the supervisor, detached, by the command line `supervisor`; return once the API answers.

    The command gets one more argument, the descriptor to report on. When the API does not answer in time all
    is stopped again and the error carries the end of the log.
    """
    layout.make()
    deadline = time.monotonic() + START_TIMEOUT
    os.close(hold(layout))
    read, write = os.pipe2(os.O_CLOEXEC)
    with open(layout.log_file("launcher"), "ab") as log:
        child = subprocess.Popen(
            [*supervisor, str(write)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=[write],
            start_new_session=True,
            cwd="/",
        )
    os.close(write)
    with open(read, "rb", buffering=0) as pipe:
        if not select.select([pipe], [], [], START_TIMEOUT)[0]:
            child.kill()
            child.wait()
            raise Refused(f"the launcher does not start{tail(layout, 'launcher')}")
        said = pipe.read(4096) or b""
    if said != b"ok":
        child.wait()
        raise Refused(
            said.decode(errors="replace") or f"the launcher does not start{tail(layout, 'launcher')}"
        )
    child.returncode = 0  # It lives on; whoever adopts it reaps it.
    try:
        reply = ask(layout.control, max(0.1, deadline - time.monotonic()), op="ready")
        if "error" in reply:
            raise Refused(f"{reply['error']}{tail(layout, reply['service'])}")
        while not ping(layout):
            if time.monotonic() > deadline:
                raise Refused(f"the API does not answer{tail(layout, 'dockerd-api')}")
            time.sleep(0.02)
    except Refused:
        with contextlib.suppress(Refused):
            ask(layout.control, STOP_TIMEOUT, op="stop")
        raise


def restart(layout: Layout, service: str) -> None:
    """Restart one service in place; return when it is ready again."""
    _need_state(layout)
    reply = ask(layout.control, RESTART_TIMEOUT, op="restart", service=service)
    if "error" in reply:
        raise Refused(reply["error"] + (tail(layout, service) if "service" in reply else ""))


def down(layout: Layout) -> None:
    """Stop the services, also those of a launcher that was killed. Containers run on."""
    _need_state(layout)
    try:
        lock = hold(layout)
    except Refused:
        ask(layout.control, STOP_TIMEOUT, op="stop")
        _await_release(layout)
        return
    try:
        take_over(layout)
    finally:
        os.close(lock)


def _await_release(layout: Layout) -> None:
    """The supervisor answers just before it ends; the folder is free when its lock is."""
    deadline = time.monotonic() + 5
    while True:
        try:
            os.close(hold(layout))
            return
        except Refused:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def _need_state(layout: Layout) -> None:
    if not layout.is_ours():
        raise Refused(f"{layout.state} is not the state folder of an engine")


def ping(layout: Layout) -> bool:
    """Whether the API answers 200 to `GET /_ping` within five seconds."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(5)
        try:
            sock.connect(str(layout.api))
            sock.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            with sock.makefile("rb") as lines:
                return lines.readline().split()[1:2] == [b"200"]
        except OSError:
            return False


def tail(layout: Layout, service: str) -> str:
    """The last lines of a service's log, to be put behind a message."""
    path = layout.log_file(service)
    try:
        with open(path, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - 16384))
            lines = log.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
    except FileNotFoundError:
        return ""
    return "".join(f"\n  {line}" for line in (f"the end of {path}:", *lines))


def supervisor_command(layout: Layout) -> list[str]:
    return [sys.executable, "-P", "-m", "launcher", "supervise", "--state", str(layout.state), "--report"]

"""Starting one process of a service with the descriptors it is passed (sd_listen_fds(3)), and knowing one
again by its start.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_FIRST_FD = 3
#: systemd's EXIT_EXEC: the program could not be started.
_EXIT_EXEC = 203
#: What a parent's service manager may have left in the environment and no child of ours may take for its own.
_PRIVATE = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


def spawn(
    argv: Sequence[str],
    *,
    log: Path,
    fds: Sequence[tuple[str, int]],
    notify: Path,
    watchdog: float,
    environment: Mapping[str, str],
) -> tuple[int, int]:
    """Start `argv` in a session of its own; returns its pid and a pidfd.

    `fds` become descriptors 3 and up, in order, with their names. Output goes to the end of `log`. `watchdog`
    in seconds, 0 for none. The caller has one thread.
    """
    env = {key: value for key, value in environment.items() if key not in _PRIVATE}
    env["NOTIFY_SOCKET"] = str(notify)
    if fds:
        env["LISTEN_FDS"] = str(len(fds))
        env["LISTEN_FDNAMES"] = ":".join(name for name, _ in fds)
    if watchdog:
        env["WATCHDOG_USEC"] = str(int(watchdog * 1_000_000))
    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Blocked until the child has default handlers: a signal in between would run the parent's.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                _become(argv, env, output, [fd for _, fd in fds])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    finally:
        os.close(output)
    return pid, os.pidfd_open(pid)


def _become(argv: Sequence[str], env: dict[str, str], output: int, fds: Sequence[int]) -> None:
    """The child's side; never returns."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.setsid()
        os.chdir("/")
        os.umask(0o022)
        above = _FIRST_FD + len(fds)
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, above) for fd in fds]
        output = fcntl.fcntl(output, fcntl.F_DUPFD_CLOEXEC, above)
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for place, fd in enumerate(high, _FIRST_FD):
            os.dup2(fd, place)
        env["LISTEN_PID"] = env["WATCHDOG_PID"] = str(os.getpid())
        os.execve(argv[0], list(argv), env)
    except BaseException as error:
        os.write(2, f"{argv[0]}: cannot be started: {error}\n".encode())
    finally:
        sys.stdout = sys.stderr = None
        os._exit(_EXIT_EXEC)


def start_time(pid: int) -> int | None:
    """The clock tick since boot at which `pid` began: with the pid it names a process for good. None when
    there is none.

    A zombie counts as none. Field 22 of proc(5)'s stat, counted behind the name, which may hold anything.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])

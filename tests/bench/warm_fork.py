"""A process that has loaded the runtime, as a shim's nursery has, and does what a shim does.

It does it with the bundle in the current folder, and prints for each line on standard input the milliseconds
that it took:

    life   a container created, started, waited for, deleted
    exec   `true` run in a container that sleeps, which is made at the first time

    python -m tests.bench.warm_fork ROOT
"""

from __future__ import annotations

import gc
import os
import sys
import time

import runc_bin
from linux import signals, syscalls
from runc_bin.__main__ import main as run_built_in
from runc_bin.libcontainer import container, exec_in
from runc_bin.libcontainer.process_spec import read_process
from runc_bin.libcontainer.state import State, load_state


def _verb(*words: str) -> None:
    """One call of the runtime, in a child."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            code = run_built_in(words)
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit(f"{words} failed")


def _life(root: str, name: str) -> None:
    _begin(root, name)
    _end(root, name)


def _begin(root: str, name: str) -> State:
    _verb("--root", root, "create", name)
    record = load_state(root, name)
    container.start(root, record)
    return record


def _end(root: str, name: str) -> None:
    os.waitpid(load_state(root, name).init_process_pid, 0)
    if not container.delete_ended(root, name):
        _verb("--root", root, "delete", name)


def _exec(root: str, name: str) -> None:
    process = read_process({"args": ["true"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}})
    pid = exec_in.start(root, load_state(root, name), process, exec_in.ExecOptions())
    _, status = os.waitpid(pid, 0)
    if status:
        raise SystemExit("exec failed")


def main() -> None:
    root = sys.argv[1]
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    runc_bin.warm()
    gc.collect()
    gc.freeze()
    sleeping = f"warm-{os.getpid()}-sleeping"
    kept = None
    for number, line in enumerate(sys.stdin):
        if line == "exec\n" and kept is None:
            kept = _begin(root, sleeping)
        began = time.perf_counter()
        if line == "exec\n":
            _exec(root, sleeping)
        else:
            _life(root, f"warm-{os.getpid()}-{number}")
        print(f"{(time.perf_counter() - began) * 1000:.3f}", flush=True)
    if kept is not None:
        container.kill(kept, signals.SIGKILL)
        _end(root, sleeping)


if __name__ == "__main__":
    main()

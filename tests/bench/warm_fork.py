"""A process that has loaded the runtime, as a shim's nursery has: for each line on standard input it runs a
container of the bundle in the current folder as a shim does and prints the milliseconds.

    python -m tests.bench.warm_fork ROOT
"""

from __future__ import annotations

import gc
import os
import sys
import time

import runc_bin
from linux import syscalls
from runc_bin.__main__ import main as run_built_in
from runc_bin.libcontainer import container
from runc_bin.libcontainer.state import load_state


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
    _verb("--root", root, "create", name)
    record = load_state(root, name)
    container.start(root, record)
    os.waitpid(record.init_process_pid, 0)
    if not container.delete_ended(root, name):
        _verb("--root", root, "delete", name)


def main() -> None:
    root = sys.argv[1]
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    runc_bin.warm()
    gc.collect()
    gc.freeze()
    for number, _ in enumerate(sys.stdin):
        began = time.perf_counter()
        _life(root, f"warm-{os.getpid()}-{number}")
        print(f"{(time.perf_counter() - began) * 1000:.3f}", flush=True)


if __name__ == "__main__":
    main()

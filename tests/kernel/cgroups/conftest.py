"""A place in the cgroup hierarchies for each test, and processes that end with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator

import pytest
from runc_bin.libcontainer.cgroups import Manager

Start = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def cgroup_name() -> Iterator[str]:
    """An absolute cgroupsPath of two levels; all of it is removed afterwards, in every hierarchy."""
    parent = f"buoy-test-{uuid.uuid4().hex[:12]}"
    yield f"/{parent}/box"
    for root, folders, _ in os.walk("/sys/fs/cgroup"):
        if parent in folders:
            directory = f"{root}/{parent}"
            unified = os.path.exists(f"{directory}/cgroup.type")
            leftover = Manager.from_paths({"" if unified else "devices": directory})
            leftover.kill_all()
            leftover.destroy(timeout=5)
            folders.remove(parent)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a shell that waits for a line before it runs a script; killed at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(script: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            ["sh", "-c", f"read go; {script}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:  # not communicate(): a grandchild may hold the other end
                pipe.close()


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Let a started script run to its end: exit status (negative: signal) and output."""
    output, _ = process.communicate(b"go\n", timeout=20)
    return process.returncode, output.decode()

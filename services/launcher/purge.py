"""Removes everything of one engine from the host.

Works from the kernel's and the folder's facts, with no service alive.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from linux.mounts import MNT_DETACH, mount_table
from linux.syscalls import umount2

from launcher import commands
from launcher.layout import Layout, Refused
from launcher.process import start_time

#: Seconds that killed processes have to be gone, and cgroups to be empty.
_END_TIMEOUT = 20.0
_NETWORK_TIMEOUT = 60.0


def purge(layout: Layout) -> None:
    """Stop the services, kill the containers, remove network, mounts, cgroups and the folder.

    A folder that is not there is done.
    """
    if not layout.state.exists():
        return
    commands.down(layout)
    _kill_containers(layout)
    _remove_network(layout)
    _unmount(layout.state)
    _remove_cgroups(layout)
    _remove_folder(layout.state)


def _kill_containers(layout: Layout) -> None:
    """Containers' processes first, so that no shim sees a sibling's end as news; then the shims."""
    held: dict[int, int] = {}
    for pid in _container_pids(layout):
        _hold(pid, held)
    _kill(held)
    for pid in _shim_pids(layout):
        _hold(pid, held)
    _kill(held)
    # What was forked meanwhile is in the cgroups.
    deadline = time.monotonic() + _END_TIMEOUT
    while left := [pid for group in _cgroups(layout) for pid in _members(group)]:
        for pid in left:
            _hold(pid, held)
        _kill(held)
        if time.monotonic() > deadline:
            raise Refused(f"processes do not end: {' '.join(map(str, left))}")


def _container_pids(layout: Layout) -> Iterator[int]:
    for group in _cgroups(layout):
        _thaw(group)
        yield from _members(group)
    # A container may live in a cgroup of the user's choice (--cgroup-parent); its runtime state names it.
    for state in layout.run.glob("runc/*/*/state.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(state.read_text())
            pid = int(found["init_process_pid"])
            if start_time(pid) == int(found["init_process_start"]):
                yield pid


def _shim_pids(layout: Layout) -> Iterator[int]:
    """Pids that bundles name, where the process is still that shim: its command line names the container."""
    for path in layout.run.glob("containerd/*/*/shim.pid"):
        with contextlib.suppress(OSError, ValueError):
            pid = int(path.read_text())
            if path.parent.name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                yield pid


def _hold(pid: int, held: dict[int, int]) -> None:
    with contextlib.suppress(ProcessLookupError):
        held[os.pidfd_open(pid)] = pid


def _kill(held: dict[int, int]) -> None:
    """Kill all, wait until they have ended, and let go of them."""
    for pidfd in held:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    deadline = time.monotonic() + _END_TIMEOUT
    poll = select.poll()
    for pidfd in held:
        poll.register(pidfd, select.POLLIN)
    while held:
        for pidfd, _ in poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            poll.unregister(pidfd)
            os.close(pidfd)
            del held[pidfd]
        if held and time.monotonic() > deadline:
            raise Refused(f"processes do not end: {' '.join(map(str, held.values()))}")


def _cgroups(layout: Layout) -> list[Path]:
    """Every cgroup of the instance in every hierarchy that is mounted, children before parents."""
    found = []
    for mount in mount_table():
        if mount.fstype in ("cgroup", "cgroup2"):
            top = Path(mount.target) / f"buoy-{layout.instance}"
            found += [Path(folder) for folder, _, _ in os.walk(top, topdown=False)]
    return found


def _members(group: Path) -> list[int]:
    try:
        return [int(line) for line in (group / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def _thaw(group: Path) -> None:
    """A task of a frozen v1 cgroup does not even end (kernel's cgroup-v1/freezer-subsystem.rst)."""
    with contextlib.suppress(OSError):
        if (group / "freezer.state").exists():
            (group / "freezer.state").write_text("THAWED")


def _remove_network(layout: Layout) -> None:
    command = [sys.executable, "-P", "-m", "dockerd_api.network.purge"]
    command += ["--instance", layout.instance, "--exec-root", str(layout.exec_root)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_NETWORK_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise Refused(f"the network is not removed within {_NETWORK_TIMEOUT:g} s") from None
    if done.returncode:
        raise Refused(f"the network cannot be removed: {done.stderr.strip()}")


def _unmount(folder: Path) -> None:
    """Detach every mount at or below the folder, the last mounted first."""
    inside = os.fspath(folder)
    for mount in reversed(mount_table()):
        if mount.target == inside or mount.target.startswith(inside + "/"):
            with contextlib.suppress(FileNotFoundError):
                umount2(mount.target.removesuffix("//deleted"), MNT_DETACH)


def _remove_cgroups(layout: Layout) -> None:
    deadline = time.monotonic() + _END_TIMEOUT
    while groups := _cgroups(layout):
        for group in groups:
            with contextlib.suppress(OSError):
                group.rmdir()
        if time.monotonic() > deadline:
            raise Refused(f"{groups[-1]} cannot be removed")


def _remove_folder(folder: Path) -> None:
    inside = os.fspath(folder)
    still = [m.target for m in mount_table() if m.target == inside or m.target.startswith(inside + "/")]
    if still:
        raise Refused(f"{still[0]} is still mounted; nothing was deleted")
    shutil.rmtree(folder)

"""Removes everything of one engine from the host.

    python -m launcher.purge --installed    what the units' engine left, but for its programs

Works from the kernel's and the folder's facts, with no service alive.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from linux.mounts import MNT_DETACH, mount_table
from linux.syscalls import umount2

from launcher import commands
from launcher.layout import Layout, Refused
from launcher.process import start_time

#: Seconds that killed processes have to be gone, and cgroups to be empty.
_END_TIMEOUT = 20.0
_NETWORK_TIMEOUT = 60.0


@dataclass(frozen=True)
class Traces:
    """Where an engine leaves something. `run` holds bundles and runtime states; `cgroup` is the parent of its
    containers' cgroups, without the leading slash.
    """

    run: Path
    folders: tuple[Path, ...]
    exec_root: Path
    instance: str
    cgroup: str


#: As the units have it (docs/contracts.md, Places).
INSTALLED = Traces(
    run=Path("/run/buoy"),
    folders=(Path("/run/buoy"), Path("/var/lib/buoy")),
    exec_root=Path("/run/buoy/docker"),
    instance="",
    cgroup="system.slice/buoy-containers.scope",
)
#: Where `runc-bin` keeps its records when it is called by itself, without --root.
RUNTIME_ROOT = Path("/run/buoy-runc")


def purge(layout: Layout) -> None:
    """Stop the services, kill the containers, remove network, mounts, cgroups and the folder.

    A folder that is not there is done.
    """
    if not layout.state.exists():
        return
    commands.down(layout)
    cgroup = f"buoy-{layout.instance}"
    remove(Traces(layout.run, (layout.state,), layout.exec_root, layout.instance, cgroup))


def remove(traces: Traces) -> None:
    """Remove what an engine without services has left. Refused when something does not go."""
    _kill_containers(traces)
    _remove_network(traces)
    for folder in traces.folders:
        _unmount_below(folder)
    _remove_cgroups(traces)
    for folder in traces.folders:
        _remove_folder(folder)


def remove_runtime(root: Path) -> None:
    """Remove the runtime's folder of records while it has no container: those are their makers' to delete.
    What is the runtime's own begins with `@`.
    """
    if root.is_dir() and all(path.name.startswith("@") for path in root.iterdir()):
        _unmount_below(root)
        _remove_folder(root)


def _kill_containers(traces: Traces) -> None:
    """Containers' processes first, so that no shim sees a sibling's end as news; then the shims."""
    held: dict[int, int] = {}
    for pid in _container_pids(traces):
        _hold(pid, held)
    _kill(held)
    for pid in _shim_pids(traces):
        _hold(pid, held)
    _kill(held)
    # What was forked meanwhile is in the cgroups.
    deadline = time.monotonic() + _END_TIMEOUT
    while left := [pid for group in _cgroups(traces) for pid in _members(group)]:
        for pid in left:
            _hold(pid, held)
        _kill(held)
        if time.monotonic() > deadline:
            raise Refused(f"processes do not end: {' '.join(map(str, left))}")


def _container_pids(traces: Traces) -> Iterator[int]:
    for group in _cgroups(traces):
        _thaw(group)
        yield from _members(group)
    # A container may live in a cgroup of the user's choice (--cgroup-parent); its runtime state names it.
    for state in traces.run.glob("runc/*/*/state.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(state.read_text())
            pid = int(found["init_process_pid"])
            if start_time(pid) == int(found["init_process_start"]):
                yield pid


def _shim_pids(traces: Traces) -> Iterator[int]:
    """Pids that bundles name, where the process is still that shim: its command line names the container."""
    for path in traces.run.glob("containerd/*/*/shim.pid"):
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


def _cgroups(traces: Traces) -> list[Path]:
    """Every cgroup of the instance in every hierarchy that is mounted, children before parents."""
    found = []
    for mount in mount_table():
        if mount.fstype in ("cgroup", "cgroup2"):
            top = Path(mount.target) / traces.cgroup
            found += [Path(folder) for folder, _, _ in os.walk(top, topdown=False)]
    return found


def _members(group: Path) -> list[int]:
    """Pids in a cgroup. One of another pid namespace reads as 0 (pid_namespaces(7)): not ours to end."""
    try:
        pids = [int(line) for line in (group / "cgroup.procs").read_text().split()]
        return [pid for pid in pids if pid]
    except OSError:
        return []


def _thaw(group: Path) -> None:
    """A task of a frozen v1 cgroup does not even end (kernel's cgroup-v1/freezer-subsystem.rst)."""
    with contextlib.suppress(OSError):
        if (group / "freezer.state").exists():
            (group / "freezer.state").write_text("THAWED")


def _remove_network(traces: Traces) -> None:
    command = [sys.executable, "-P", "-m", "dockerd_api.network.purge"]
    command += ["--instance", traces.instance, "--exec-root", str(traces.exec_root)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_NETWORK_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        raise Refused(f"the network is not removed within {_NETWORK_TIMEOUT:g} s") from None
    if done.returncode:
        raise Refused(f"the network cannot be removed: {done.stderr.strip()}")


def _unmount_below(folder: Path) -> None:
    """Detach every mount below the folder, the last mounted first. The folder itself may be a disk of its
    own.
    """
    inside = os.fspath(folder) + "/"
    for mount in reversed(mount_table()):
        if mount.target.startswith(inside):
            with contextlib.suppress(FileNotFoundError):
                umount2(mount.target.removesuffix("//deleted"), MNT_DETACH)


def _remove_cgroups(traces: Traces) -> None:
    deadline = time.monotonic() + _END_TIMEOUT
    while groups := _cgroups(traces):
        for group in groups:
            with contextlib.suppress(OSError):
                group.rmdir()
        if time.monotonic() > deadline:
            raise Refused(f"{groups[-1]} cannot be removed")


def _remove_folder(folder: Path) -> None:
    if not folder.exists():
        return
    inside = os.fspath(folder) + "/"
    still = [mount.target for mount in mount_table() if mount.target.startswith(inside)]
    if still:
        raise Refused(f"{still[0]} is still mounted; nothing was deleted")
    if os.path.ismount(folder):
        for entry in os.scandir(folder):
            shutil.rmtree(entry) if entry.is_dir(follow_symlinks=False) else os.unlink(entry)
        return
    shutil.rmtree(folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="launcher.purge")
    parser.add_argument("--installed", action="store_true", required=True, help="the engine of the units")
    parser.parse_args(argv)
    try:
        remove(INSTALLED)
        remove_runtime(RUNTIME_ROOT)
    except Refused as refused:
        print(f"purge: {refused}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

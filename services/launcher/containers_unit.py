"""What `buoy-containers.service` does: keep the cgroup that containers live in, and end them at shutdown.

    python -m launcher.containers_unit hold
    python -m launcher.containers_unit end --state DIR

The containers' cgroups lie in a scope with Delegate=yes. What is below it is ours, and systemd neither
changes nor counts on it; a cgroup that we made beside systemd's own would not be safe from it, and one inside
a service could not be restarted (systemd's docs/CGROUP_DELEGATION.md). A scope lasts as long as it has a
process, so there is one that only sleeps. On cgroup v2 it sits in a child, since a cgroup that hands
controllers to its children may not hold processes itself (cgroup-v2.rst, "No Internal Process Constraint").
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from linux.mounts import mount_table

SCOPE = "buoy-containers.scope"
_TIMEOUT = 30.0


def hold() -> int:
    """Make the scope, unless it is there. Returns the exit code; 1 when systemd did not make it in time."""
    if _active():
        return 0
    command = ["systemd-run", "--quiet", "--scope", f"--unit={SCOPE}", "--slice=system.slice", "--collect"]
    command += ["--description=Containers (Buoy)", "-p", "Delegate=yes", "-p", "TasksMax=infinity"]
    # Ordered so that systemd ends the holder only after the service has ended the containers.
    command += ["-p", "Before=buoy-containers.service"]
    command += [sys.executable, "-P", "-m", "launcher.containers_unit", "held"]
    # It leaves this service's cgroup by itself and goes on after this process.
    holder = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + _TIMEOUT
    while time.monotonic() < deadline:
        if holder.poll() is not None:
            print(f"{SCOPE}: systemd-run ended with {holder.returncode}", file=sys.stderr)
            return 1
        if _is_held(holder.pid):
            return 0
        time.sleep(0.02)
    print(f"{SCOPE}: not there after {_TIMEOUT:g} s", file=sys.stderr)
    return 1


def _active() -> bool:
    return subprocess.run(["systemctl", "is-active", "--quiet", SCOPE], check=False).returncode == 0


def _is_held(pid: int) -> bool:
    """Whether the holder has come to its last step."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:2] == [b"buoy-containers", b"infinity"]
    except OSError:
        return False


def held() -> int:
    """Be the holder; does not return. Without a file of ours open, so that upgrades do not concern it."""
    own = [line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    for mount in mount_table():
        if mount.fstype == "cgroup2" and own:
            child = Path(mount.target + own[0].removeprefix("0::")) / "holder"
            child.mkdir(exist_ok=True)
            (child / "cgroup.procs").write_text("0")
            break
    os.chdir("/")
    os.execvp("sleep", ["buoy-containers", "infinity"])


def end(state: str) -> int:
    """End all containers if the host is going down; else nothing: a stopped unit is no reason for that."""
    asked = subprocess.run(["systemctl", "is-system-running"], capture_output=True, text=True, check=False)
    if asked.stdout.strip() != "stopping":
        return 0
    return os.execv(sys.executable, [sys.executable, "-P", "-m", "shim_svc.stop_all", "--state", state])


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="launcher.containers_unit")
    parser.add_argument("action", choices=("hold", "held", "end"))
    parser.add_argument("--state", default="/run/buoy/containerd", help="folder of the bundles")
    arguments = parser.parse_args(argv)
    match arguments.action:
        case "hold":
            return hold()
        case "held":
            return held()
        case _:
            return end(arguments.state)


if __name__ == "__main__":
    sys.exit(main())

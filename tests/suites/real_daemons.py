"""The distribution's containerd in a place of its own, within new pid and mount namespaces.

Whatever was started there ends with process 1, which calls `prepare` first and `end` last.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from tests.suites.transcript import until

# The collector runs unasked between no two questions.
_CONFIG = """version = 2
root = "{0}/lib"
state = "{0}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri"]
[grpc]
address = "{0}/c.sock"
[plugins."io.containerd.gc.v1.scheduler"]
pause_threshold = 0.00001
"""


def run(*command: str) -> None:
    """Run a command; CalledProcessError when it fails."""
    subprocess.run(command, check=True)


def prepare(work: Path) -> None:
    """Have places that cannot be chosen for oneself: fifos of clients, sockets of shims; and containerd's
    control groups.
    """
    assert os.getpid() == 1, "the end of a session ends every process that it sees"
    run("mount", "-t", "tmpfs", "tmpfs", "/run/containerd")
    _mount_hierarchies(work / "cgroups")


def start_containerd(tools: str, place: Path, *, log: Path) -> str:
    """Start the real daemon with its files below `place`, and the shim and runc of `tools`, a list as in
    PATH; its socket.
    """
    (place / "config.toml").write_text(_CONFIG.format(place))
    (place / "c.sock").unlink(missing_ok=True)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}
    with log.open("ab") as written:
        daemon = subprocess.Popen(
            ["containerd", "--config", str(place / "config.toml")],
            stdout=written,
            stderr=written,
            env=environment,
        )
    (place / "pid").write_text(str(daemon.pid))
    until((place / "c.sock").exists, log.read_text)
    return f"{place}/c.sock"


def end(*groups: str) -> None:
    """End every process of this pid namespace but this one, and remove these control groups."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    for name in groups:
        remove_groups(name)


def _mount_hierarchies(view: Path) -> None:
    """Show control groups that the host has but mounts nowhere, too: containerd's metrics need them all."""
    base = Path("/sys/fs/cgroup")
    if not (base / "memory").is_dir():
        return
    view.mkdir()
    run("mount", "-t", "tmpfs", "-o", "mode=755", "cgroups", str(view))
    for path in base.iterdir():
        if path.is_symlink():
            (view / path.name).symlink_to(path.readlink())
        else:
            (view / path.name).mkdir()
            run("mount", "--bind", str(path), str(view / path.name))
    for line in Path("/proc/cgroups").read_text().splitlines()[1:]:
        name = line.split()[0]
        if (view / name).exists():
            continue
        (view / name).mkdir()
        command = ["mount", "-t", "cgroup", "-o", name, name, str(view / name)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            (view / name).rmdir()  # it is on the v2 hierarchy
    run("mount", "--move", str(view), str(base))


def remove_groups(name: str) -> None:
    """Remove the control groups `name` of every hierarchy; their processes have ended."""
    for folder in (*Path("/sys/fs/cgroup").glob(name), *Path("/sys/fs/cgroup").glob(f"*/{name}")):
        for path, _, _ in os.walk(folder, topdown=False):
            os.rmdir(path)

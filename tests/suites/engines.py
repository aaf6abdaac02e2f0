"""Engines that others wrote, each in folders and namespaces of its own, and what their clients answer with
one OCI runtime after the other.

`python -m tests.suites.engines ENGINE WORK RUNTIME...` is called in new mount and network namespaces, and as
process 1 of a new pid namespace where systemd makes no control groups (it knows processes by their numbers),
so that whatever it started and mounted ends with it. WORK gets `<number of the runtime>.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

from tests.suites import runtime_ctr, runtime_docker, runtime_podman
from tests.suites.real_daemons import end, prepare, remove_groups, run, start_containerd
from tests.suites.transcript import Transcript, until
from tests.support.busybox import busybox_image_tar, busybox_rootfs_tar

_SECONDS = 30
# Engines keep things in these, which no option moves.
RUN_FOLDERS = ("/run/containerd", "/run/docker", "/run/runc")
# What every container's control group is below.
GROUP = "buoyengines"

Clients = Iterator[list[Transcript]]


@dataclass(frozen=True)
class Engine:
    """How an engine is started and asked; whether systemd makes its control groups, and whether it needs a
    user with further ids.
    """

    needs: tuple[str, ...]
    script: ModuleType
    start: Callable[[Path, list[str]], contextlib.AbstractContextManager[list[Transcript]]]
    systemd: bool = False
    mapped: bool = False


@contextlib.contextmanager
def _docker(work: Path, runtimes: list[str], *, systemd: bool = False, remapped: bool = False) -> Clients:
    """A dockerd with a containerd of its own. `remapped`: its containers' ids are an ordinary user's."""
    client = ["docker", "-H", f"unix://{work}/docker.sock"]
    command = ["dockerd", *client[1:], "--data-root", f"{work}/lib", "--exec-root", f"{work}/run"]
    command += ["--pidfile", f"{work}/pid", "--config-file", f"{work}/daemon.json"]
    command += ["--cgroup-parent", f"{GROUP}.slice" if systemd else f"/{GROUP}"]
    (work / "daemon.json").write_text("{}")
    if systemd:
        command += ["--exec-opt", "native.cgroupdriver=systemd"]
    if remapped:
        user = ordinary_user()
        assert user is not None
        command += ["--userns-remap", user.pw_name]
    for number, runtime in enumerate(runtimes):
        command += ["--add-runtime", f"runtime{number}={runtime}"]
    with _daemon(command, work, [*client, "version"]):
        run(*client, "load", "-q", "-i", f"{work}/image.tar")
        added = [["--runtime", f"runtime{number}"] for number in range(len(runtimes))]
        yield [Transcript(client, work, {"run": flags, "create": flags}) for flags in added]


@contextlib.contextmanager
def _containerd(work: Path, runtimes: list[str]) -> Clients:
    """A containerd; it ends with the session."""
    address = start_containerd("", work, log=work / "daemon.log")
    client = ["ctr", "-a", address, "-n", GROUP]
    run(*client, "images", "import", "--all-platforms", f"{work}/image.tar")
    yield [Transcript(client, work, {"run": ["--runc-binary", runtime]}) for runtime in runtimes]


@contextlib.contextmanager
def _podman(work: Path, runtimes: list[str], *, manager: str = "cgroupfs", rootless: bool = False) -> Clients:
    """No daemon: each client has storage of its own. The runtimes' errors are read as runc's are: by its
    configuration, podman does so for the names that it knows.
    """
    names = [f"runtime{number}" for number in range(len(runtimes))]
    settings = work / "containers.conf"
    settings.write_text(f"[engine]\nruntime_supports_json = {names}\n[engine.runtimes]\n")
    with settings.open("a") as file:
        file.writelines(f'{name} = ["{path}"]\n' for name, path in zip(names, runtimes, strict=True))
    clients = []
    for number, name in enumerate(names):
        place = work / f"podman{number}"
        place.mkdir()
        command = ["env", f"CONTAINERS_CONF_OVERRIDE={settings}"]
        if rootless:
            user = ordinary_user()
            assert user is not None
            os.chown(place, user.pw_uid, user.pw_gid)
            ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--reset-env"]
            command = ["setpriv", *ids, *command, f"XDG_RUNTIME_DIR={place}", f"HOME={place}"]
        command += [
            "PODMAN_IGNORE_CGROUPSV1_WARNING=1",
            "podman",
            "--root",
            f"{place}/lib",
            "--runroot",
            f"{place}/run",
            "--tmpdir",
            f"{place}/tmp",
        ]
        command += ["--runtime", name, "--cgroup-manager", manager, "--events-backend", "file"]
        command += ["--network-config-dir", f"{place}/net"]
        added = ["--log-driver", "k8s-file"]
        parent = ["--cgroup-parent", f"{GROUP}.slice" if manager == "systemd" else f"/{GROUP}"]
        parent = [] if rootless else parent
        added += parent
        run(*command, "load", "-q", "-i", f"{work}/image.tar")
        clients.append(Transcript(command, work, {"run": added, "create": added, "pod create": parent}))
    yield clients


def ordinary_user() -> pwd.struct_passwd | None:
    """A user of the host who may map further ids; None when there is none."""
    with contextlib.suppress(OSError):
        for line in Path("/etc/subuid").read_text().splitlines():
            with contextlib.suppress(KeyError):
                return pwd.getpwnam(line.split(":")[0])
    return None


_DOCKER = ("dockerd", "docker", "containerd", "containerd-shim-runc-v2", "iptables", "ip")
_PODMAN = ("podman", "conmon", "iptables", "ip")

ENGINES = {
    "docker": Engine(_DOCKER, runtime_docker, _docker),
    "docker-systemd": Engine(_DOCKER, runtime_docker, partial(_docker, systemd=True), systemd=True),
    "docker-remapped": Engine(_DOCKER, runtime_docker, partial(_docker, remapped=True), mapped=True),
    "ctr": Engine(("containerd", "containerd-shim-runc-v2", "ctr", "ip"), runtime_ctr, _containerd),
    "podman": Engine(_PODMAN, runtime_podman, _podman),
    "podman-systemd": Engine(_PODMAN, runtime_podman, partial(_podman, manager="systemd"), systemd=True),
    "podman-rootless": Engine(
        (*_PODMAN, "newuidmap", "pasta", "setpriv"),
        runtime_podman,
        partial(_podman, rootless=True),
        mapped=True,
    ),
}


@contextlib.contextmanager
def _daemon(command: list[str], work: Path, probe: list[str]) -> Iterator[None]:
    """A daemon while a block runs, which starts when the command `probe` succeeds; its output in
    `daemon.log`.
    """
    with open(work / "daemon.log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HOME": str(work)})
    try:
        until(
            lambda: subprocess.run(probe, capture_output=True, check=False).returncode == 0,
            (work / "daemon.log").read_text,
        )
        yield
    finally:
        process.terminate()
        process.wait(_SECONDS)


def _prepare(work: Path, *, systemd: bool) -> None:
    """The image, and what the scripts show to containers."""
    busybox_image_tar(work / "image.tar")
    busybox_rootfs_tar(work / "rootfs.tar")
    for name in ("rootfs", "sub"):
        (work / name).mkdir()
    run("tar", "-C", str(work / "rootfs"), "-xf", str(work / "rootfs.tar"))
    for name, text in (("script", "no interpreter\n"), ("unexecutable", "#!/no/such\n")):
        (work / name).write_text(text)
        (work / name).chmod(0o755)
    for name, text in runtime_docker.PROFILES.items():
        (work / name).write_text(text)
    if not systemd:
        prepare(work)
    for folder in RUN_FOLDERS[0 if systemd else 1 :]:
        run("mount", "-t", "tmpfs", "tmpfs", folder)
    run("ip", "link", "set", "lo", "up")


def main(name: str, folder: str, *runtimes: str) -> None:
    """Start the engine, play its script with each runtime, write what was answered."""
    work = Path(folder)
    engine = ENGINES[name]
    _prepare(work, systemd=engine.systemd)
    try:
        with engine.start(work, list(runtimes)) as clients:
            for number, client in enumerate(clients):
                try:
                    for section in engine.script.SECTIONS:
                        client.section(section.__name__)
                        section(client)
                finally:
                    (work / f"{number}.json").write_text(json.dumps(client.answers))
    finally:
        if engine.systemd:
            subprocess.run(["systemctl", "stop", f"{GROUP}.slice"], capture_output=True, check=False)
            # systemd leaves those in hierarchies that it has no controller in, where runtimes make them.
            remove_groups(f"{GROUP}.slice")
        else:
            end(GROUP)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main(*sys.argv[1:])

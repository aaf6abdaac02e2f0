"""The docker client driven through one script against a dockerd above a containerd, each real or ours.

`python -m tests.suites.docker_session peer|below|above TOOLS WORK` is called as process 1 of new pid, mount
and network namespaces. `peer`: all real; `below`: the real dockerd above our containerd and shim; `above`:
our dockerd above the real containerd and our shim. WORK gets `transcript.json`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from launcher.busybox_image import busybox_rootfs_tar

from tests.daemon.containerd.world import BIN, World, running
from tests.suites import docker_script
from tests.suites.real_daemons import end, prepare, run, start_containerd
from tests.suites.transcript import Transcript, until
from tests.support.engine import DOCKER

KINDS = ("peer", "below", "above")


class Session(Transcript):
    """One pair's answers."""

    def __init__(self, socket: str, work: Path, restart: Callable[[float], None]) -> None:
        super().__init__([DOCKER, "-H", f"unix://{socket}"], work)
        self._restart = restart

    def restart_containerd(self, *, down: float) -> None:
        """End containerd, and start it again so many seconds later."""
        self._restart(down)


def main(kind: str, tools: str, folder: str) -> None:
    """Start the pair, play the script, write the transcript."""
    work = Path(folder)
    prepare(work)
    run("ip", "link", "set", "lo", "up")
    busybox_rootfs_tar(work / "rootfs.tar")
    os.environ["PATH"] = f"{tools}:{os.environ['PATH']}"
    try:
        if kind == "below":
            asyncio.run(_below(tools, work))
        else:
            _above_the_real_one(kind, tools, work)
    finally:
        end(_group(work))


def _above_the_real_one(kind: str, tools: str, work: Path) -> None:
    place = work / "containerd"
    place.mkdir()
    start = partial(start_containerd, tools, place, log=work / "containerd.log")

    def restart(seconds: float) -> None:
        pid = int((place / "pid").read_text())
        os.kill(pid, 15)
        os.waitpid(pid, 0)
        time.sleep(seconds)
        start()

    address = start()
    if kind == "peer":
        _play(_real_dockerd(address, work), restart, work)
    else:
        _play(_our_dockerd(address, work), restart, work)


async def _below(tools: str, work: Path) -> None:
    async with running(work) as world:

        def restart(seconds: float) -> None:
            world.kill_daemon()
            time.sleep(seconds)
            world.start_daemon()

        try:
            await asyncio.to_thread(lambda: _play(_real_dockerd(world.address, work), restart, work))
        finally:
            _keep_log(world, work)


def _keep_log(world: World, work: Path) -> None:
    (work / "containerd.log").write_bytes(world.log.read_bytes())


def _real_dockerd(containerd: str, work: Path) -> str:
    """Start it; its socket."""
    options = {"containerd": containerd, "data-root": work / "data", "exec-root": work / "exec"}
    options |= {"host": f"unix://{work}/d.sock", "pidfile": work / "d.pid", "bridge": "none"}
    options |= {"cgroup-parent": f"/{_group(work)}"}
    options |= {"iptables": "false", "ip6tables": "false", "userland-proxy": "false"}
    return _dockerd(["dockerd", *(f"--{name}={value}" for name, value in options.items())], work)


def _our_dockerd(containerd: str, work: Path) -> str:
    """Start it; its socket."""
    options = {"containerd": containerd, "data-root": work / "data", "exec-root": work / "exec"}
    options |= {"host": f"unix://{work}/d.sock", "sockets": work / "s", "bridge": "none"}
    options |= {"instance": "above", "cgroup-parent": f"/{_group(work)}"}
    command = [str(BIN / "dockerd-api"), *(f"--{name}={value}" for name, value in options.items())]
    return _dockerd(command, work)


def _group(work: Path) -> str:
    """The control group above the containers' own, which two sessions do not share."""
    return f"docker-{work.parent.name}-{work.name}"


def _dockerd(command: list[str], work: Path) -> str:
    log = work / "dockerd.log"
    with log.open("wb") as written:
        subprocess.Popen(command, stdout=written, stderr=written)
    socket = f"{work}/d.sock"
    ping = [DOCKER, "-H", f"unix://{socket}", "version"]
    until(lambda: not subprocess.run(ping, capture_output=True, check=False).returncode, log.read_text)
    return socket


def _play(socket: str, restart: Callable[[float], None], work: Path) -> None:
    session = Session(socket, work, restart)
    run(DOCKER, "-H", f"unix://{socket}", "import", str(work / "rootfs.tar"), "bb")
    try:
        docker_script.play(session)
    finally:
        (work / "transcript.json").write_text(json.dumps(session.answers))


if __name__ == "__main__":
    main(*sys.argv[1:])

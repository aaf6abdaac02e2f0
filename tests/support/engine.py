"""An engine of its own for a test: the launcher's commands, the docker client and plain HTTP against it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.support.debian import REPO

SERVICES = ("shim-svc", "containerd-svc", "dockerd-api")
DOCKER = shutil.which("docker") or str(REPO / ".venv/bin/docker")


class Engine:
    """Four processes below a state folder. `up` starts them, `purge` removes everything they made."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.state = Path(tempfile.mkdtemp(prefix="by-", dir="/tmp"))
        self.environment = {**os.environ, **(environment or {})}
        self.socket = f"{self.state}/run/docker.sock"
        self.host = f"unix://{self.socket}"

    def launcher(self, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run one of the launcher's commands on this state; a failure is an AssertionError with its words."""
        done = subprocess.run(
            [sys.executable, "-m", "launcher", verb, "--state", str(self.state), *options],
            capture_output=True,
            text=True,
            timeout=90,
            env=self.environment,
        )
        assert done.returncode == 0, f"launcher {verb}: {done.stdout}{done.stderr}{self.logs()}"
        return done

    def up(self) -> None:
        self.launcher("up")

    def restart(self, service: str) -> None:
        self.launcher("restart", "--service", service)

    def down(self) -> None:
        self.launcher("down")

    def purge(self) -> None:
        self.launcher("purge")
        shutil.rmtree(self.state, ignore_errors=True)

    def pid(self, service: str) -> int:
        """The service's main process; 0 while there is none."""
        try:
            return int((self.state / f"run/{service}.pid").read_text())
        except FileNotFoundError:
            return 0

    def kill(self, service: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a service's main process, which there must be: 0 would mean our own group."""
        pid = self.pid(service)
        assert pid, f"{service} has no process"
        os.kill(pid, number)

    def kill_and_wait(self, service: str) -> None:
        """SIGKILL a service and wait until the launcher has it back."""
        before = self.pid(service)
        self.kill(service)
        self.until(f"{service} back", lambda: self.pid(service) not in (0, before))

    def docker(
        self, *arguments: str, timeout: float = 60, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """The docker client against this engine; never raises for an exit code."""
        return subprocess.run(
            [DOCKER, "-H", self.host, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            **options,
        )

    def out(self, *arguments: str) -> str:
        """What the docker client prints, without the last newline; it must exit with 0."""
        done = self.docker(*arguments)
        assert done.returncode == 0, (
            f"docker {arguments} → {done.returncode}\n{done.stdout}{done.stderr}{self.logs()}"
        )
        return done.stdout.strip()

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start the docker client and go on."""
        return subprocess.Popen([DOCKER, "-H", self.host, *arguments], text=True, **options)

    def http(self, *, timeout: float = 30) -> httpx.Client:
        """A plain HTTP client on the API socket."""
        transport = httpx.HTTPTransport(uds=self.socket)
        return httpx.Client(transport=transport, base_url="http://localhost", timeout=timeout)

    def inspect(self, container: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = json.loads(self.out("inspect", container))
        return found[0]

    def import_busybox(self, name: str = "busybox") -> None:
        """Make `name` an image of the host's static busybox."""
        archive = self.state / "busybox.tar"
        subprocess.run(
            [sys.executable, "-m", "launcher.busybox_image", "--rootfs", str(archive)],
            check=True,
            cwd=REPO,
            capture_output=True,
        )
        self.out("import", str(archive), name)

    def logs(self) -> str:
        """The ends of the services' logs, for the message of a failing test."""
        parts = []
        for service in (*SERVICES, "launcher"):
            path = self.state / f"log/{service}.log"
            if path.exists():
                parts.append(
                    f"--- {service}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-25:])
                )
        return "\n" + "\n".join(parts)

    def until(
        self,
        what: str,
        holds: Callable[[], object],
        *,
        timeout: float = 20,
        explain: Callable[[], object] = str,
    ) -> None:
        """Poll until `holds()` is true; `explain` says in the failure's message how it is instead."""
        deadline = time.monotonic() + timeout
        while not holds():
            assert time.monotonic() < deadline, f"{what}: not within {timeout} s: {explain()}{self.logs()}"
            time.sleep(0.02)


class ForeignEngine(Engine):
    """An engine that somebody else runs: it is only talked to."""

    def __init__(self, host: str) -> None:
        super().__init__()
        self.host = host
        self.socket = host.removeprefix("unix://")

    def up(self) -> None:
        pass

    def purge(self) -> None:
        shutil.rmtree(self.state, ignore_errors=True)


def start_time(pid: int) -> str:
    """When a process began, in clock ticks since boot (proc(5), field 22): with the pid, one process."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]

"""A Debian machine booted with its own systemd under systemd-nspawn: own processes, mounts and network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.support.debian import REPO, debian_root, wheels
from tests.systemd import host_cgroups

# On a cgroup v1 host nspawn hands the controllers in read-only.
WRITABLE = """[Unit]
DefaultDependencies=no
Before=sysinit.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'for c in /sys/fs/cgroup /sys/fs/cgroup/*/; do mount -o remount,bind,rw $c; done; true'
"""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Machine:
    """Boots on `boot`, is gone after `close`.

    The root is an overlay, so that each machine starts from the same files. The engine's data lies on a
    bind mount, since an overlay cannot be the upper layer of another.
    """

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="buoy-machine-"))
        # The merged files, as this host sees them; what is mounted inside the machine is not seen here.
        self.root = self._folder / "root"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._cgroups: list[Path] = []
        self.source = self._folder / "source"

    def make(self) -> None:
        """Lay out the files; what is missing in the cache is built."""
        base, self._wheels = debian_root(), wheels()
        for name in ("root", "upper", "work", "data", "run"):
            (self._folder / name).mkdir()
        self.copy_source(self.source)
        layers = f"lowerdir={base},upperdir={self._folder}/upper,workdir={self._folder}/work"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", layers, self.root], check=True)
        self._cgroups = host_cgroups.make(self._folder.name)
        units = self.root / "etc/systemd/system"
        (units / "cgroups-writable.service").write_text(WRITABLE)
        (units / "sysinit.target.wants").mkdir(exist_ok=True)
        (units / "sysinit.target.wants/cgroups-writable.service").symlink_to("../cgroups-writable.service")

    def boot(self) -> None:
        """Boot, the first time or again, and return when systemd has started everything."""
        self._leader = 0
        docker = shutil.which("docker") or str(REPO / ".venv/bin/docker")
        log = open(self._folder / "console.log", "wb")  # noqa: SIM115 - the booted system writes to it
        self._nspawn = subprocess.Popen(
            [
                "systemd-nspawn",
                *("-D", str(self.root), "-b", "--register=no", "--keep-unit", "--private-network"),
                *("--capability=all", "--system-call-filter=@known", "--console=pipe"),
                f"--bind={self._folder}/data:/var/lib/buoy",
                f"--bind-ro={self._folder}/source:/source",
                f"--bind-ro={self._wheels}:/wheels",
                f"--bind-ro={docker}:/usr/local/bin/docker",
            ],
            env={**os.environ, "SYSTEMD_SECCOMP": "0"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: host_cgroups.enter(self._cgroups),
        )
        log.close()
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self._nspawn.poll() is not None:
                raise RuntimeError(f"nspawn ended: {self.console()}")
            if self._find_leader() and self._state() in ("running", "degraded"):
                break
            time.sleep(0.1)
        else:
            raise RuntimeError(f"the machine did not boot: {self.console()}")

    def power_off(self) -> None:
        """Shut down as `poweroff` does, and return when nothing runs any more."""
        assert self._nspawn is not None
        self.run("systemctl", "poweroff", "--no-block")
        try:
            self._nspawn.wait(120)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the machine does not go down: {self.console()}") from None

    def _find_leader(self) -> bool:
        assert self._nspawn is not None
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")
        found = children.read_text().split()
        self._leader = int(found[0]) if found else 0
        return bool(self._leader)

    def _state(self) -> str:
        done = subprocess.run(
            self._inside(["systemctl", "is-system-running"]), capture_output=True, text=True
        )
        return done.stdout.strip()

    def _inside(self, command: Sequence[str]) -> list[str]:
        enter = ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-n", "-p", "-C"]
        return [*enter, "env", "-i", f"PATH={PATH}", "HOME=/root", "TERM=dumb", "LANG=C.UTF-8", *command]

    def run(
        self, *command: str, check: bool = True, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine and wait for it; its output is in the error when it fails."""
        done = subprocess.run(self._inside(command), capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise AssertionError(f"{command} → {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def out(self, *command: str) -> str:
        """What a command in the machine prints, without the last newline."""
        return self.run(*command).stdout.strip()

    def start(self, *command: str, **options: object) -> subprocess.Popen[str]:
        """Start a command in the machine and go on."""
        return subprocess.Popen(self._inside(command), text=True, **options)  # type: ignore[call-overload,no-any-return]

    @staticmethod
    def end(process: subprocess.Popen[str]) -> None:
        """Kill a command that `start` started, if it has not ended."""
        if process.poll() is None:
            # nsenter has forked it, to be in the machine's pid namespace; the child's end is nsenter's.
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            for pid in children or [str(process.pid)]:
                os.kill(int(pid), signal.SIGKILL)
        process.communicate()

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process of the machine, `pid` being its number there."""
        self.run("kill", f"-{int(number)}", str(pid))

    def main_pid(self, service: str) -> int:
        """The main process of a unit, as the machine numbers it."""
        return int(self.out("systemctl", "show", "-P", "MainPID", f"{service}.service"))

    def wait_until(self, what: str, *command: str, timeout: float = 30) -> None:
        """Poll a command until it succeeds."""
        deadline = time.monotonic() + timeout
        while self.run(*command, check=False).returncode:
            assert time.monotonic() < deadline, f"{what}: not within {timeout} s\n{self.journal()}"
            time.sleep(0.05)

    def journal(self) -> str:
        """The last lines of the services, for a failing test's message."""
        units = [f"-u{name}" for name in ("dockerd-api", "containerd-svc", "shim-svc")]
        return self.run(
            "journalctl", "--no-pager", "-n80", "-o", "short-monotonic", *units, check=False
        ).stdout

    def journal_of_last_boot(self) -> str:
        """What the units of containers said before the last power-off."""
        command = ("journalctl", "--no-pager", "-b-1", "-u", "buoy-containers.service", "-o", "cat")
        return self.run(*command, check=False).stdout

    def console(self) -> str:
        return (self._folder / "console.log").read_text(errors="replace")[-3000:]

    def copy_source(self, target: Path) -> None:
        """What `make install` reads of this checkout, without caches."""
        leave = shutil.ignore_patterns("__pycache__", "*.egg-info")
        target.mkdir()
        for name in ("services", "deploy", "docs"):
            shutil.copytree(REPO / name, target / name, ignore=leave)
        for name in ("Makefile", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
            shutil.copy(REPO / name, target / name)

    def close(self) -> None:
        """Power off and remove everything but the cached root."""
        if self._nspawn is not None:
            if self._nspawn.poll() is None:
                self._nspawn.send_signal(signal.SIGKILL if not self._leader else signal.SIGTERM)
                try:
                    self._nspawn.wait(20)
                except subprocess.TimeoutExpired:
                    self._nspawn.kill()
                    self._nspawn.wait()
            subprocess.run(["umount", "-l", self.root], check=False)
        host_cgroups.remove(self._cgroups)
        shutil.rmtree(self._folder, ignore_errors=True)

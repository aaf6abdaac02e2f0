"""Bundles made from the host's static busybox, and the runtime called on them as its callers call it."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from linux.interpreter import remove_mounts
from runc_bin.libcontainer import spec_document

from tests.support.busybox import find_busybox

SERVICES = Path(__file__).resolve().parents[3] / "services"
APPLETS = (
    *("sh", "true", "false", "ls", "cat", "echo", "sleep", "id", "mount", "grep", "ps", "stat", "readlink"),
    *("hostname", "tty", "stty", "kill", "touch", "env", "pwd", "wc", "ip", "head"),
)
_START = (
    f"import sys; sys.path.insert(0, {str(SERVICES)!r}); from runc_bin.__main__ import main; sys.exit(main())"
)


class Bundle:
    """One bundle with a runtime root of its own, and the containers made there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "state"
        self.rootfs = folder / "rootfs"
        (self.rootfs / "bin").mkdir(parents=True)
        (self.rootfs / "etc").mkdir()
        shutil.copy(find_busybox(), self.rootfs / "bin/busybox")
        for name in APPLETS:
            (self.rootfs / "bin" / name).symlink_to("busybox")
        self.spec: dict[str, Any] = spec_document.default()
        self.spec["process"]["terminal"] = False
        self.spec["linux"]["cgroupsPath"] = f"/buoy-test-{uuid.uuid4().hex[:8]}/c"
        self._ids: list[str] = []

    @property
    def process(self) -> dict[str, Any]:
        found: dict[str, Any] = self.spec["process"]
        return found

    @property
    def linux(self) -> dict[str, Any]:
        found: dict[str, Any] = self.spec["linux"]
        return found

    def new_id(self) -> str:
        """A name for a container; it is removed at the end."""
        self._ids.append(f"t-{uuid.uuid4().hex[:10]}")
        return self._ids[-1]

    def command(self, *words: str) -> list[str]:
        (self.folder / "config.json").write_text(json.dumps(self.spec))
        return [sys.executable, "-ISc", _START, "--root", str(self.root), *words]

    def call(self, *words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a verb to its end."""
        options.setdefault("stdin", subprocess.DEVNULL)
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, timeout=30, cwd=self.folder, **options
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{words} gave {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def run(self, *args: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        """`run` a program in the foreground."""
        self.process["args"] = list(args)
        return self.call("run", self.new_id(), check=check, **options)

    def detach(self, *words: str, env: dict[str, str] | None = None) -> None:
        """Run a verb whose process stays, with streams that nobody waits for."""
        null = subprocess.DEVNULL
        words = tuple(self.command(*words))
        done = subprocess.run(
            words, stdin=null, stdout=null, stderr=null, cwd=self.folder, timeout=30, env=env
        )
        assert done.returncode == 0

    def start(self, *args: str) -> tuple[str, int]:
        """(id, pid) of a container that runs a program, detached, its streams on /dev/null."""
        self.process["args"] = list(args)
        container_id = self.new_id()
        self.detach("run", "-d", "--pid-file", str(self.folder / "pid"), container_id)
        return container_id, int((self.folder / "pid").read_text())

    def state(self, container_id: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.call("state", container_id).stdout)
        return found

    def cgroups(self) -> list[Path]:
        """The directories of the container's control group that exist."""
        name = self.linux["cgroupsPath"].lstrip("/")
        return [p for p in (base / name for base in _hierarchies()) if p.is_dir()]

    def close(self) -> None:
        for container_id in self._ids:
            self.call("delete", "--force", container_id, check=False)
        if (self.root / "@python").is_dir():
            remove_mounts(str(self.root / "@python"))
        parent = self.linux["cgroupsPath"].lstrip("/").split("/")[0]
        for base in _hierarchies():
            with suppress(OSError):
                (base / parent).rmdir()


def _hierarchies() -> Sequence[Path]:
    base = Path("/sys/fs/cgroup")
    return [base, *(p for p in base.iterdir() if p.is_dir() and not p.is_symlink())]


def wait_until(fact: Callable[[], bool], seconds: float = 10.0) -> None:
    """Poll until `fact()`."""
    poller = select.poll()
    for _ in range(int(seconds * 100)):
        if fact():
            return
        poller.poll(10)
    raise AssertionError("it did not come true in time")


def is_gone(pid: int) -> bool:
    """Whether no such process exists (a zombie counts as gone)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def namespace(pid: int | str, kind: str) -> str:
    """Which namespace of that kind a process is in."""
    return os.readlink(f"/proc/{pid}/ns/{kind}")

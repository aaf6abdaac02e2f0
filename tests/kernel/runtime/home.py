"""An ordinary user with a bundle, a folder for records, and a runtime that everybody can read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from tests.kernel.runtime.bundle import APPLETS, SERVICES
from tests.support.busybox import find_busybox

USER = 54321
PYTHON = os.path.realpath(sys.executable)
START = "import sys; sys.path.insert(0, {!r}); from runc_bin.__main__ import main; sys.exit(main())"


def as_user(**options: Any) -> dict[str, Any]:
    return {"user": USER, "group": USER, "extra_groups": [], **options}


@cache
def forbidden() -> str:
    """Why ordinary users can make no user namespaces here; empty when they can."""
    done = subprocess.run(["unshare", "-Ur", "true"], capture_output=True, text=True, **as_user())
    return str(done.stderr).strip()


class Home:
    """What a user has: a bundle, a folder for records, and a runtime that everybody can read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bundle = folder / "bundle"
        self.run_dir = folder / "run"
        self.wrapper: list[str] = []
        (self.bundle / "rootfs/bin").mkdir(parents=True)
        shutil.copy(find_busybox(), self.bundle / "rootfs/bin/busybox")
        for name in APPLETS:
            (self.bundle / "rootfs/bin" / name).symlink_to("busybox")
        self.run_dir.mkdir(0o700)
        for path in (self.bundle, self.bundle / "rootfs", self.run_dir):
            os.chown(path, USER, USER)
        for path in SERVICES.iterdir():  # a checkout may lie where only root gets
            if path.name.startswith(("runc_bin", "linux", "errdefs")):
                ignore = shutil.ignore_patterns("__pycache__")
                if path.is_dir():
                    shutil.copytree(path, folder / "services" / path.name, ignore=ignore)
                else:
                    shutil.copy(path, folder / "services" / path.name)
        self.call("spec", "--rootless")
        self.spec: dict[str, Any] = json.loads((self.bundle / "config.json").read_text())
        self.spec["process"]["terminal"] = False
        self.ids: list[str] = []

    def command(self, *words: str) -> list[str]:
        return [*self.wrapper, PYTHON, "-ISc", START.format(str(self.folder / "services")), *words]

    def call(self, *words: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "XDG_RUNTIME_DIR": str(self.run_dir)}
        environment.update(options.pop("env", {}))
        arguments: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            **({} if self.wrapper else as_user()),
            **options,
        }
        done = subprocess.run(
            self.command(*words), text=True, timeout=30, cwd=self.bundle, env=environment, **arguments
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{words} gave {done.returncode}: {done.stdout}{done.stderr}")
        return done

    def prepare(self, *args: str) -> str:
        """The id of a container that will run a program."""
        self.spec["process"]["args"] = list(args)
        (self.bundle / "config.json").write_text(json.dumps(self.spec))
        self.ids.append(f"c{len(self.ids)}")
        return self.ids[-1]

    def run(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.call("run", self.prepare(*args), check=check)

    def start(self, *args: str) -> tuple[str, int]:
        """(id, pid) of a container in the background."""
        container_id, null = self.prepare(*args), subprocess.DEVNULL
        self.call("run", "-d", container_id, stdout=null, stderr=null)
        return container_id, int(json.loads(self.call("state", container_id).stdout)["pid"])

    def records(self) -> list[str]:
        folder = self.run_dir / "buoy-runc"
        return sorted(os.listdir(folder)) if folder.exists() else []

    def close(self) -> None:
        for container_id in self.ids:
            self.call("delete", "--force", container_id, check=False)
        shutil.rmtree(self.folder)


@contextmanager
def a_home() -> Iterator[Home]:
    """A home that is removed in the end, with its containers."""
    folder = Path(tempfile.mkdtemp(prefix="buoy-rootless-"))
    folder.chmod(0o755)
    (folder / "services").mkdir()
    made = Home(folder)
    try:
        yield made
    finally:
        made.close()

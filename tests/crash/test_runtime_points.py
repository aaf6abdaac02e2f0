"""Every registered crash point of the runtime, on its command line alone: after a death at any of them
`state`, `kill` and `delete --force` work, and nothing is left.

A life is one use of every verb. It is begun anew after each crash, until it comes through; each point kills
once. Points of systemd units are met where there is a systemd (`tests/systemd`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.runtime.bundle import Bundle, is_gone, wait_until
from tests.kernel.runtime.home import Home, a_home, as_user, forbidden
from tests.support.crash_register import registered

pytestmark = [pytest.mark.root, pytest.mark.crash]

SHORT = (
    ("create", "c"),
    ("start", "c"),
    ("exec", "-d", "c", "sleep", "50"),
    ("kill", "c", "KILL"),
    ("delete", "--force", "c"),
)
LONG = (
    *SHORT[:2],
    ("exec", "-d", "--pid-file", "pid", "c", "sleep", "50"),
    ("exec", "c", "true"),
    ("pause", "c"),
    ("resume", "c"),
    ("update", "--pids-limit", "50", "c"),
    ("kill", "--all", "c", "WINCH"),
    ("kill", "--all", "c", "KILL"),
    ("delete", "--force", "c"),
    ("run", "--keep", "c"),
    ("delete", "c"),
)
IN_USER_NAMESPACE = ("runc.create.ids-mapped", "runc.create.passed")
HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


class Lives:
    """Lives of one container: `command` makes a command line of the runtime, which is run with `options`.

    `records` is the folder of the containers' records, `folder` takes the marks of the points that have
    killed; `verbs` are what a life is made of.
    """

    def __init__(
        self,
        command: Callable[..., list[str]],
        options: Mapping[str, Any],
        spec: dict[str, Any],
        folder: Path,
        records: Path,
        verbs: Sequence[tuple[str, ...]],
    ) -> None:
        self.command, self.options, self.spec = command, dict(options), spec
        self.folder, self.records, self.verbs = folder, records, verbs
        self.tag = f"BUOY_LIFE={uuid.uuid4().hex}"
        self.environment = {"PATH": os.environ["PATH"], **self.options.pop("env", {})}
        name, _, value = self.tag.partition("=")
        self.environment[name] = value
        spec["process"]["env"] = [*spec["process"]["env"], self.tag]
        self.marks = folder / "points"
        self.marks.mkdir()
        self.marks.chmod(0o777)

    def call(self, *words: str, crashing: bool = False) -> tuple[int, str]:
        """(exit code, all that it printed)."""
        crash = {"BUOY_CRASH_AT": "*", "BUOY_CRASH_ONCE": str(self.marks)} if crashing else {}
        with open(self.folder / "said", "w+b") as said:
            done = subprocess.run(
                self.command(*words),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                timeout=30,
                env={**self.environment, **crash},
                **self.options,
            )
            said.seek(0)
            return done.returncode, said.read().decode()

    def all(self) -> set[str]:
        """Live until nothing kills any more; the points that have."""
        while not self.live():
            continue
        return {entry.name for entry in self.marks.iterdir()}

    def live(self) -> bool:
        """Whether a life comes to its end. Else all that a crash has left is removed, and looked for."""
        before = {entry.name for entry in self.marks.iterdir()}
        for words in self.verbs:
            self.spec["process"]["args"] = ["true"] if words[0] == "run" else ["sleep", "60"]
            code, said = self.call(*words, crashing=True)
            if code == -signal.SIGKILL:
                (point,) = {entry.name for entry in self.marks.iterdir()} - before
                self.recover(point)
                return False
            assert code == 0, (words, said)
        return True

    def recover(self, point: str) -> None:
        """What an engine does with a container whose runtime has died."""
        code, said = self.call("state", "c")
        assert code == 0 or "container does not exist" in said, (point, said)
        if code == 0:
            assert json.loads(said)["status"] in ("created", "running", "paused", "stopped"), point
            code, said = self.call("kill", "c", "KILL")
            assert code == 0 or "container not running" in said, (point, said)
        code, said = self.call("delete", "--force", "c")
        assert code == 0, (point, said)
        wait_until(lambda: not self.processes())
        assert [name for name in os.listdir(self.records) if not name.startswith("@")] == [], point
        assert self.mounted() == [], point

    def mounted(self) -> list[str]:
        """What is mounted in the folder of the test, but for the interpreter, which stays."""
        points = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [point for point in points if str(self.folder) in point and "/@python/" not in point]

    def processes(self) -> list[int]:
        """All that have grown from this test's calls."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.tag.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return [pid for pid in found if not is_gone(pid)]


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    made = Bundle(tmp_path)
    try:
        yield made
    finally:
        made.close()


def live(bundle: Bundle, verbs: Sequence[tuple[str, ...]]) -> set[str]:
    """The points met in lives of a bundle's container, which has hooks of every kind."""
    bundle.spec["hooks"] = {kind: [{"path": "/bin/true"}] for kind in HOOKS}
    options = {"cwd": bundle.folder}
    hit = Lives(bundle.command, options, bundle.spec, bundle.folder, bundle.root, verbs).all()
    assert bundle.cgroups() == []
    return hit


@pytest.mark.slow
def test_every_point(bundle: Bundle) -> None:
    elsewhere = registered("cgroups.unit-", "runc.exec.attached", *IN_USER_NAMESPACE)
    assert live(bundle, LONG) == registered("runc.", "cgroups.") - elsewhere


def test_a_user_namespace_beside_one_that_is_joined(bundle: Bundle) -> None:
    linux, kinds = bundle.linux, ("mount", "pid", "ipc", "uts", "user")
    linux["namespaces"] = [{"type": kind} for kind in kinds]
    linux["namespaces"].append({"type": "network", "path": "/proc/self/ns/net"})
    linux["uidMappings"] = [{"containerID": 0, "hostID": 100000, "size": 1000}]
    linux["gidMappings"] = linux["uidMappings"]
    bundle.spec["mounts"] = [m for m in bundle.spec["mounts"] if not m["destination"].startswith("/sys")]
    os.chown(bundle.rootfs, 100000, 100000)
    assert live(bundle, SHORT) >= {*IN_USER_NAMESPACE}


def test_an_ordinary_user_s(home: Home) -> None:
    hit = home_lives(home).all()
    assert hit >= {"runc.create.ids-mapped", "runc.create.ready", "runc.exec.born", "runc.start.released"}


@pytest.fixture
def home() -> Iterator[Home]:
    if forbidden():
        pytest.skip(f"no user namespaces for ordinary users: {forbidden()}")
    with a_home() as made:
        yield made


def home_lives(home: Home) -> Lives:
    home.spec["hooks"] = {kind: [{"path": "/bin/true"}] for kind in HOOKS}

    def command(*words: str) -> list[str]:
        (home.bundle / "config.json").write_text(json.dumps(home.spec))
        return home.command(*words)

    options = as_user(cwd=home.bundle, env={"XDG_RUNTIME_DIR": str(home.run_dir)})
    return Lives(command, options, home.spec, home.folder, home.run_dir / "buoy-runc", SHORT)

"""What other users of the host, and containers in its network, can reach of the engine."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.security import images
from tests.support.engine import SERVICES, Engine

pytestmark = pytest.mark.root


def processes(engine: Engine) -> list[int]:
    """The engine's services and all their descendants: nursery, helpers, shims, containers."""
    children: dict[int, list[int]] = {}
    words = str(engine.state)
    found = {engine.pid(service) for service in SERVICES}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
            if words in (entry / "cmdline").read_bytes().decode(errors="replace"):
                found.add(int(entry.name))
    pending = list(found)
    while pending:
        for child in children.get(pending.pop(), ()):
            if child not in found:
                found.add(child)
                pending.append(child)
    return sorted(found)


def own_sockets(engine: Engine) -> set[str]:
    """Inode numbers of the sockets that the engine's processes hold."""
    inodes = set()
    for pid in processes(engine):
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    kind, _, rest = os.readlink(f"/proc/{pid}/fd/{fd}").partition(":[")
                    if kind == "socket":
                        inodes.add(rest.rstrip("]"))
    return inodes


def test_no_abstract_socket(engine: Engine) -> None:
    """CVE-2020-15257: a container in the host's network could call the shim."""
    container = engine.out("run", "-d", "--network", "host", "busybox", "sleep", "60")
    engine.out("run", "-d", "-t", "-p", "80", "busybox", "sleep", "60")
    printed = engine.out("exec", container, "cat", "/proc/net/unix")
    ours = own_sockets(engine)
    rows = [line.split() for line in printed.splitlines()[1:]]
    named = {row[6]: row[7] for row in rows if len(row) > 7}
    assert ours & set(named), "the engine has sockets with names"
    assert [name for inode, name in named.items() if inode in ours and name.startswith("@")] == []


def test_sockets_are_root_s(engine: Engine) -> None:
    engine.out("run", "-d", "-t", "busybox", "sleep", "60")
    sockets = [
        Path(folder, name)
        for folder, _, names in os.walk(engine.state)
        for name in names
        if stat.S_ISSOCK(os.lstat(Path(folder, name)).st_mode)
    ]
    assert len(sockets) >= 4
    for path in sockets:
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.name == "docker.sock":
            assert mode == 0o660
            continue
        assert mode & 0o077 == 0, (path, oct(mode))
        assert path.stat().st_uid == 0
        between = [folder for folder in path.parents if folder.is_relative_to(engine.state / "run")]
        closed = [folder for folder in between if not folder.stat().st_mode & 0o077]
        assert closed or path.parent == engine.state / "run", path


@pytest.fixture
def open_state(engine: Engine) -> Iterator[Engine]:
    """The test's own folder is open to all, as /var and /run are, so that only what is below protects."""
    os.chmod(engine.state, 0o755)
    yield engine
    os.chmod(engine.state, 0o700)


WALK = """
import os, sys
for folder, folders, names in os.walk(sys.argv[1]):
    print("folder", folder)
    for path in (os.path.join(folder, name) for name in names):
        if any(os.access(path, mode) for mode in (os.R_OK, os.W_OK, os.X_OK)):
            print("usable", path)
for path in sys.argv[2:]:
    if os.path.lexists(path):
        print("reached", path)
"""


def test_another_user_gets_nowhere(open_state: Engine) -> None:
    """CVE-2021-41091, CVE-2021-41103, CVE-2024-25621: a program with the setuid bit in an image was there for
    everybody on the host to run.
    """
    engine = open_state
    entries = [images.file("bin/evil", Path("/bin/true").read_bytes(), mode=0o6755)]
    images.make(engine, "setuid", entries)
    container = engine.out("run", "-d", "-t", "setuid", "sleep", "60")
    assert engine.out("exec", container, "stat", "-c", "%a", "/bin/evil") == "6755"
    init = engine.inspect(container)["State"]["Pid"]
    programs = [str(path) for path in engine.state.rglob("evil")]
    assert programs
    done = subprocess.run(
        [sys.executable, "-c", WALK, str(engine.state), *programs, f"/proc/{init}/root/bin/evil"],
        user=1000,
        group=1000,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    parts = [engine.state / name for name in ("run", "log", "lib")]
    assert not [line for line in lines if line[0] == "reached"]
    assert not [path for kind, path in lines if kind == "usable" and Path(path).parent != engine.state]
    assert {Path(path) for kind, path in lines if kind == "folder"} <= {engine.state, *parts}

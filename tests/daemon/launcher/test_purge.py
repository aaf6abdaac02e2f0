"""The launcher's commands over the real services."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from launcher.process import start_time
from launcher.purge import remove_runtime

from tests.support.engine import SERVICES, Engine
from tests.support.leaks import Holdings

pytestmark = pytest.mark.root


def test_purge_with_no_process_alive_leaves_nothing() -> None:
    """Running, paused and published containers; every process of the engine killed at once."""
    before = Holdings.now()
    engine = Engine()
    try:
        engine.up()
        engine.import_busybox()
        engine.out("run", "-d", "busybox", "sleep", "1000")
        engine.out("run", "-d", "-p", "127.0.0.1::80", "--restart", "always", "busybox", "sleep", "1000")
        engine.out("run", "-d", "--network", "none", "--name", "frozen", "busybox", "sleep", "1000")
        engine.out("pause", "frozen")
        pids = [engine.pid(service) for service in SERVICES]
        # The launcher first, or it would start the others again.
        for pid in (int((engine.state / "run/launcher.lock").read_text()), *pids):
            os.kill(pid, signal.SIGKILL)
    finally:
        engine.launcher("purge")
    assert not engine.state.exists()
    deadline = time.monotonic() + 10
    while added := Holdings.now().added_since(before):
        if not any(mentions(engine, name) for names in added.values() for name in names):
            break
        assert time.monotonic() < deadline, added
        time.sleep(0.1)
    engine.launcher("purge")  # Of nothing.


def test_the_runtime_s_folder_is_removed_while_it_has_no_container(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "@python/held").mkdir(parents=True)
    (root / "somebody-s").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", root / "@python/held"], check=True)
    remove_runtime(root)
    assert os.path.ismount(root / "@python/held")
    (root / "somebody-s").rmdir()
    remove_runtime(root)
    assert not root.exists()
    remove_runtime(root)


def mentions(engine: Engine, name: str) -> bool:
    from launcher.layout import Layout

    return str(engine.state) in name or Layout.of(str(engine.state)).instance in name


def test_second_up_and_down_with_containers_running_on(shared_engine: Engine) -> None:
    launcher = int((shared_engine.state / "run/launcher.lock").read_text())
    refused = command("up", shared_engine.state)
    assert refused.returncode == 1
    assert f"launcher pid {launcher}" in refused.stderr
    shared_engine.out("run", "-d", "--name", "stays", "busybox", "sleep", "1000")
    pid = shared_engine.inspect("stays")["State"]["Pid"]
    began = start_time(pid)
    shared_engine.down()
    shared_engine.until("the launcher gone", lambda: start_time(launcher) is None)
    assert start_time(pid) == began
    shared_engine.up()
    assert shared_engine.inspect("stays")["State"]["Pid"] == pid
    assert start_time(pid) == began
    shared_engine.out("rm", "-f", "stays")


def command(verb: str, state: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [sys.executable, "-m", "launcher", verb, "--state", str(state)],
        capture_output=True,
        text=True,
        timeout=60,
        **options,
    )
    return done


def test_without_root_it_says_what_it_needs(tmp_path: Path) -> None:
    code = (
        "import os, sys; os.setuid(65534); from launcher.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "up", "--state", str(tmp_path / "s")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "root is needed" in done.stderr
    assert not (tmp_path / "s").exists()


def test_too_long_a_state_is_refused(tmp_path: Path) -> None:
    done = command("up", tmp_path / ("x" * 90))
    assert done.returncode == 1
    assert "too long for a state folder" in done.stderr
    assert not list(tmp_path.iterdir())

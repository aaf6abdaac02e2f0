"""What callers read of the command line: errors, their log, the version, what is supported."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.runtime.bundle import Bundle, is_gone, wait_until

pytestmark = pytest.mark.root


def logged(bundle: Bundle, *words: str) -> tuple[int, str, str]:
    """(exit code, standard error, last error of the JSON log) of a verb, the log read as containerd does."""
    path = bundle.folder / "log.json"
    path.unlink(missing_ok=True)
    done = bundle.call("--log", str(path), "--log-format", "json", *words, check=False)
    last = ""
    for line in path.read_text().splitlines():
        record = json.loads(line)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", record["time"])
        if record["level"] == "error":
            last = record["msg"].strip()
    return done.returncode, done.stderr, last


def test_errors_of_a_container_that_is_not_there(bundle: Bundle) -> None:
    (bundle.folder / "more.json").write_text("{}")
    for words in (
        ("state", "c"),
        ("start", "c"),
        ("kill", "c", "9"),
        ("delete", "c"),
        ("pause", "c"),
        ("resume", "c"),
        ("ps", "--format", "json", "c"),
        ("events", "--stats", "c"),
        ("update", "--resources", "more.json", "c"),
    ):
        message = "container does not exist"
        assert logged(bundle, *words) == (1, f"{message}\n", message), words
    assert logged(bundle, "exec", "c", "true")[::2] == (255, "exec failed: container does not exist")
    assert logged(bundle, "delete", "--force", "c") == (0, "", "")


def test_errors_of_a_container_that_has_ended(bundle: Bundle) -> None:
    container, pid = bundle.start("sleep", "60")
    message = f"cannot delete container {container} that is not stopped: running"
    assert logged(bundle, "delete", container)[::2] == (1, message)
    assert logged(bundle, "start", container)[::2] == (1, "cannot start an already running container")
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: is_gone(pid))
    assert bundle.state(container)["status"] == "stopped"
    # containerd takes this text for "not found", and so for the end of its task
    assert logged(bundle, "kill", container, "9") == (1, "container not running\n", "container not running")
    assert logged(bundle, "kill", "--all", container, "9")[0] == 0
    assert logged(bundle, "exec", container, "true")[2] == "exec failed: cannot exec in a stopped container"
    assert logged(bundle, "start", container)[2] == "cannot start a container that has stopped"
    assert logged(bundle, "delete", container)[0] == 0


def test_the_log_is_one_object_when_the_command_fails(bundle: Bundle) -> None:
    """libpod reads the whole file as one."""
    bundle.process["args"] = ["nosuch"]
    path = bundle.folder / "log.json"
    words = ("--log-format=json", f"--log={path}", "create", "--bundle", str(bundle.folder), bundle.new_id())
    assert bundle.call(*words, check=False).returncode == 1
    text = path.read_text()
    assert text.startswith('{"level":"error","msg":"runc create failed: unable to start container process: ')
    assert 'exec: "nosuch": executable file not found in $PATH' in json.loads(text)["msg"]
    mode = path.stat().st_mode & 0o777
    assert mode & 0o600 == 0o600


def test_text_in_the_log_is_quoted(bundle: Bundle) -> None:
    bundle.process["args"] = ['a "b"\n\x1b[1m\udcff'.encode(errors="surrogateescape").decode("latin-1")]
    done = bundle.call("create", bundle.new_id(), check=False)
    assert len(done.stderr.splitlines()) == 1
    assert r"exec: \"a \"b\"" in done.stderr.replace('\\\\\\"', '\\"')
    assert re.match(r'time="[^"]+" level=error msg="runc create failed: ', done.stderr)


def test_unknown_capabilities_are_told(bundle: Bundle) -> None:
    bundle.process["capabilities"]["bounding"] += ["CAP_NONE", "cap_chown"]
    done = bundle.run("true")
    assert "level=warning" in done.stderr
    assert "ignoring unknown or unavailable capabilities: ['CAP_NONE', 'cap_chown']" in done.stderr


def test_version(bundle: Bundle) -> None:
    for flag in ("--version", "-v"):
        first, *rest = bundle.call(flag).stdout.splitlines()
        assert re.fullmatch(r"runc-bin version \d+\.\d+\.\d+\S*", first)
        named = dict(line.split(": ") for line in rest)
        assert named["spec"] == features(bundle)["ociVersionMax"]
        assert {"python", "libseccomp"} <= named.keys()


def test_help_tells_which_verbs_there_are(bundle: Bundle) -> None:
    assert "--pid-file" in bundle.call("create", "--help").stdout
    assert "exec" in bundle.call("help").stdout
    done = bundle.call("nosuch", "--help", check=False)
    assert (done.returncode, done.stdout) == (1, "")


def features(bundle: Bundle) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bundle.call("features").stdout)
    return found


def test_lists_without_containers(bundle: Bundle) -> None:
    bundle.root.mkdir()
    assert json.loads(bundle.call("list", "--format", "json").stdout) is None
    assert bundle.call("list", "-q").stdout == ""
    container, pid = bundle.start("sleep", "60")
    (only,) = json.loads(bundle.call("list", "--format=json").stdout)
    assert (only["id"], only["pid"], only["status"]) == (container, pid, "running")
    assert (only["bundle"], only["owner"]) == (str(bundle.folder), "root")
    assert bundle.call("list", "--quiet").stdout == f"{container}\n"
    assert pid in json.loads(bundle.call("ps", "--format", "json", container).stdout)
    lines = bundle.call("ps", "--format", "table", container, "-o", "pid,args").stdout.splitlines()
    assert lines[0].split() == ["PID", "COMMAND"]
    assert lines[1].split() == [str(pid), "sleep", "60"]


def test_run_keeps_what_it_is_told_to(bundle: Bundle) -> None:
    bundle.process["args"] = ["sh", "-c", "exit 3"]
    container = bundle.new_id()
    assert bundle.call("run", "--keep", container, check=False).returncode == 3
    assert bundle.state(container)["status"] == "stopped"
    bundle.call("delete", container)
    assert not Path(bundle.root / container).exists()

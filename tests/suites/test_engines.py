"""Engines that others wrote run containers with `runc-bin` as they do with runc: their clients see no
difference but those of `runtime_differences`.

They are looked for by PATH; `OCI_RUNTIME_PEER` names the other runtime (`runc` by default), `OCI_RUNTIME` one
to be judged in the place of ours.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.suites.engines import ENGINES, RUN_FOLDERS, ordinary_user
from tests.suites.runtime_differences import KNOWN
from tests.support.debian import REPO

OURS = str(Path(sys.executable).with_name("runc-bin"))
_SECONDS = 240

pytestmark = [pytest.mark.root, pytest.mark.suite, pytest.mark.slow, pytest.mark.timeout(_SECONDS + 30)]

_ALIKE = (
    (r"(?<![0-9a-f])([0-9a-f]{64}|[0-9a-f]{12})(?![0-9a-f])", "ID"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| \+0000 UTC)?|[A-Z][a-z]{2} +\d+ \d\d:\d\d", "TIME"),
    (r"\bruntime\d\b|(?<=/podman)\d\b|(?<=/podman)\d+(?= )", "N"),
    (r"(?m)^\d+(?=:)", "N"),  # /proc/self/cgroup
    (r"(?m)^.*resize pty.*\n?", ""),  # ctr's own race
    (r"(?m)^sleep 0\.05 ?\n", ""),  # of a shell that sleeps most of the time, but not always
    ("\r", ""),
)

Answers = list[tuple[str, str, int, str]]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may go through; the folders that engines need in /run are there, too."""
    made = [folder for folder in RUN_FOLDERS if not Path(folder).exists()]
    for folder in made:
        os.mkdir(folder)
    with tempfile.TemporaryDirectory(prefix="engines-") as path:
        os.chmod(path, 0o755)
        yield Path(path)
    for folder in made:
        os.rmdir(folder)


def played(name: str, runtimes: list[str], work: Path) -> list[Answers]:
    """Have an engine play its script with each runtime; its answers."""
    engine = ENGINES[name]
    command = ["unshare", "-m", "-n", "--propagation", "private"]
    if not engine.systemd:
        command += ["-p", "-f", "--mount-proc", "--kill-child"]
    command += [sys.executable, "-m", "tests.suites.engines", name, str(work), *runtimes]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False, timeout=_SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads((work / f"{number}.json").read_text()) for number in range(len(runtimes))]


def alike(text: str, runtime: str) -> str:
    """An answer without what differs from run to run."""
    text = text.replace(runtime, "RUNTIME")
    for pattern, shown in _ALIKE:
        text = re.sub(pattern, shown, text)
    return text


def differing(name: str, ours: Answers, theirs: Answers, runtimes: list[str]) -> list[str]:
    """What the answers hold against each other, where nothing known explains it."""
    found = []
    for (section, question, code, text), (_, asked, other_code, other_text) in zip(ours, theirs, strict=True):
        assert question == asked
        mine, other = alike(text, runtimes[0]), alike(other_text, runtimes[1])
        same = code == other_code
        for known in KNOWN:
            if known.concerns(name, question):
                mine, other = re.sub(known.ours, "", mine), re.sub(known.theirs, "", other)
                same = same or known.codes == (code, other_code)
        if not same or mine != other:
            found.append(f"{section}: {question}: {code} {mine!r}, not {other_code} {other!r}")
    return found


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_sees_no_difference(name: str, place: Path) -> None:
    engine = ENGINES[name]
    peer = shutil.which(os.environ.get("OCI_RUNTIME_PEER", "runc"))
    missing = [program for program in engine.needs if not shutil.which(program)]
    if missing or peer is None:
        pytest.skip(f"not installed: {', '.join(missing or ['runc'])}")
    if engine.systemd and not Path("/run/systemd/system").is_dir():
        pytest.skip("systemd is not running here")
    if engine.mapped and ordinary_user() is None:
        pytest.skip("/etc/subuid gives no user further ids")
    runtimes = [os.environ.get("OCI_RUNTIME", OURS), peer]
    ours, theirs = played(name, runtimes, place)
    assert len(ours) > 40
    complaints = differing(name, ours, theirs, runtimes)
    assert not complaints, "\n".join(complaints)

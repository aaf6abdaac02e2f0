"""The docker client sees no difference between the real dockerd above the real containerd, the same above
ours, and our dockerd above the real containerd with our shim; but for what is listed here.

Debian's dockerd, containerd and runc (of the release after the host's, where that has older ones) are not
installed; a session has namespaces and places of its own.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.suites.docker_session import KINDS
from tests.support.debian import REPO
from tests.support.packages import unpacked

pytestmark = pytest.mark.root

Answers = dict[str, tuple[int, str]]

_ALIKE = [
    (r"\b[0-9a-f]{64}\b", "ID"),
    (r"\b[0-9a-f]{12}\b", "ID"),
    # What a runtime says differs from version to version: its own tests hold it.
    (
        r"(OCI runtime (create|exec) failed: ).*?(executable file not found in \$PATH|permission denied|"
        r"no such file or directory|not a directory|is a directory)?(: unknown)?$",
        r"\1\3",
    ),
    (r"\s+$", ""),
]


def _alike(text: str) -> str:
    for pattern, shown in _ALIKE:
        text = re.sub(pattern, shown, text, flags=re.MULTILINE)
    return text.replace("\r\n", "\n").strip()


@pytest.fixture(scope="module")
def answers() -> Iterator[dict[str, Answers]]:
    """What each pair answered: question → exit code, what was printed."""
    real = [unpacked("docker.io"), unpacked("containerd"), unpacked("runc")]
    tools = ":".join(f"{folder}/usr/{part}" for folder in real for part in ("bin", "sbin"))
    shared = Path("/run/containerd")
    mine = not shared.exists()
    shared.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dkr-", dir="/tmp") as folder:
        swapped = Path(folder) / "bin"
        swapped.mkdir()
        (swapped / "containerd-shim-runc-v2").symlink_to(Path(sys.executable).with_name("shim-svc"))
        with ThreadPoolExecutor() as pool:
            playing = {
                kind: pool.submit(
                    _played, kind, Path(folder) / kind, f"{swapped}:{tools}" if kind == "above" else tools
                )
                for kind in KINDS
            }
            yield {kind: played.result() for kind, played in playing.items()}
    if mine:
        os.rmdir(shared)


def _played(kind: str, work: Path, tools: str) -> Answers:
    work.mkdir()
    command = ["unshare", "-m", "-p", "-n", "-f", "--mount-proc", "--propagation", "private", "--kill-child"]
    command += [sys.executable, "-m", "tests.suites.docker_session", kind, tools, str(work)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=110, check=False)
    logs = "".join(path.read_text(errors="replace")[-3000:] for path in sorted(work.glob("*.log")))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    found: Answers = {}
    for _, asked, code, text in json.loads((work / "transcript.json").read_text()):
        question = asked
        while question in found:
            question += " (again)"
        found[question] = code, _alike(text)
    return found


# The real one here is 26.1; these are answers of ours, which are those of 28.2.
_LATER: Answers = {
    "pause cc (again)": (1, "Error response from daemon: container ID is already paused"),
    "exec cc true": (
        1,
        "Error response from daemon: container ID is paused, unpause the container before exec",
    ),
    "exec ee nosuch": (127, "OCI runtime exec failed:"),
    "exec -w /nosuch ee true": (127, "OCI runtime exec failed:"),
}
KNOWN: dict[str, Answers] = {"below": {}, "above": _LATER}


@pytest.mark.parametrize("kind", ["below", "above"])
def test_the_client_sees_no_difference(kind: str, answers: dict[str, Answers]) -> None:
    ours, peer = answers[kind], answers["peer"]
    assert list(ours) == list(peer)
    assert {question: ours[question] for question in ours if ours[question] != peer[question]} == KNOWN[kind]

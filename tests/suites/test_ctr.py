"""The unmodified `ctr` says the same of this daemon, of the real one, and of the real one above our shim, but
for what is listed here.

Debian's containerd 1.7 (of the release after the host's, where that has 1.6) plays the same script beside
ours, at the same time; nothing of it is installed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.suites import ctr_script
from tests.suites.ctr_differences import KNOWN
from tests.suites.ctr_session import NAMESPACES
from tests.support.debian import REPO
from tests.support.packages import unpacked

pytestmark = pytest.mark.root

SECTIONS = [section.__name__ for section in ctr_script.SECTIONS]
SHIM_SECTIONS = [section.__name__ for section in ctr_script.SHIM_SECTIONS]

Answers = dict[str, tuple[int, str]]
Lines = tuple[list[str], list[str]]


class Played:
    """What one daemon answered to the script: section by section, with ids, times and places alike."""

    def __init__(self, kind: str, work: Path, tools: str) -> None:
        self.kind = kind
        self.work = work
        command = [
            "unshare",
            "-m",
            "-p",
            "-n",
            "-f",
            "--mount-proc",
            "--propagation",
            "private",
            "--kill-child",
        ]
        command += [sys.executable, "-m", "tests.suites.ctr_session", kind, tools, str(work)]
        self._process = subprocess.Popen(
            command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def end(self) -> None:
        """Wait for the end of the script; a failure has the daemon's log."""
        try:
            output, _ = self._process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            self._process.kill()
            output, _ = self._process.communicate()
        log = self.work / "daemon.log"
        assert self._process.returncode == 0, output + (log.read_text()[-3000:] if log.exists() else "")

    def section(self, name: str) -> Answers:
        """What was asked → exit code and answer. A question that comes again is numbered."""
        found: Answers = {}
        for section, asked, code, text in json.loads((self.work / "transcript.json").read_text()):
            if section != name:
                continue
            question = self._alike(asked)
            while question in found:
                question += " (again)"
            answer = self._alike(text)
            if " label " in question:  # a map, in no order
                answer = ",".join(sorted(answer.split(",")))
            found[question] = code, answer
        return found

    def _alike(self, text: str) -> str:
        place = (self.work / "place").read_text()
        text = text.replace(place, "PLACE").replace(str(self.work), "WORK")
        text = text.replace(NAMESPACES[self.kind], "NAMESPACE")
        for pattern, shown in _ALIKE:
            text = re.sub(pattern, shown, text)
        return text.strip()


_ALIKE = [
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| \+0000 UTC)", "TIME"),
    (r'"seconds":\d+(,"nanos":\d+)?', "SECONDS"),
    (r"Less than a second|\d+ seconds?( ago)?|\ba second\b", "AGE"),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID"),
    (r'("pid(ns)?": ?)\d+', r"\1PID"),
    (r"(?m)^(\w+ +)\d+( +[A-Z]+)$", r"\1PID\2"),  # tasks ls
    (r"(?m)^\d+ +(-|exec_id:.*)$", r"PID \1"),  # tasks ps
    (r"/run/containerd/fifo/\d+/", "/run/containerd/fifo/N/"),
    (r"/tmp/containerd-mount\d+", "/tmp/containerd-mountN"),
    (r"PLACE/lib/(io.containerd.snapshotter.v1.\w+/snapshots|snapshots)/\d+/", "SNAPSHOT/"),
    (r"PLACE/state/(io.containerd.runtime.v2.task/)?", "STATE/"),
    (r"(?m)^\.blkio\.io_.*\n", ""),  # there once a disk was read
    (
        r"(?m)^\.(cpu\.usage|memory)\..*(kernel|user|_file|cache|swap|dirty|maj_fault|mapped|writeback|unevictable).*\n",
        "",
    ),  # left out while it is 0
    # What a runtime says differs from version to version: its own tests hold it.
    (r"(OCI runtime (create|exec) failed: ).*(: unknown)", r"\1...\3"),
    (r"(?m)^.*resize pty.*\n?", ""),  # the client's own race
    (r"[ \t]+", " "),
    (r"(?m) +$", ""),
]


def _crun(place: Path) -> Path:
    """A folder with a crun that finds the one library which a host may lack."""
    (place / "crun").mkdir()
    libraries = ":".join(str(path.parent) for path in unpacked("libyajl2").glob("usr/lib/*/libyajl.so.2"))
    script = place / "crun/crun"
    script.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={libraries} exec {unpacked("crun")}/usr/bin/crun "$@"\n')
    script.chmod(0o755)
    return place / "crun"


@pytest.fixture(scope="module")
def played() -> Iterator[dict[str, Played]]:
    """Both transcripts."""
    tools = f"{unpacked('containerd')}/usr/bin:{unpacked('runc')}/usr/sbin"
    shared = Path("/run/containerd")
    mine = not shared.exists()
    shared.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ctr-", dir="/tmp") as folder:
        works = {kind: Path(folder) / kind for kind in NAMESPACES}
        for work in works.values():
            work.mkdir()
        ours = Path(folder) / "bin"
        ours.mkdir()
        (ours / "containerd-shim-runc-v2").symlink_to(Path(sys.executable).with_name("shim-svc"))
        tools = f"{tools}:{_crun(Path(folder))}"
        paths = {"ours": tools, "peer": tools, "shim": f"{ours}:{tools}"}
        all_of_them = {kind: Played(kind, work, paths[kind]) for kind, work in works.items()}
        for one in all_of_them.values():
            one.end()
        yield all_of_them
    if mine:
        os.rmdir(shared)


def difference(ours: tuple[int, str], peer: tuple[int, str]) -> Lines:
    """The lines that only one of both has; for the exit code, a line of its own."""
    mine, theirs = ([f"exit {code}", *text.splitlines()] for code, text in (ours, peer))
    return (
        [line for line in mine if line not in theirs],
        [line for line in theirs if line not in mine],
    )


def _lost(question: str, answer: tuple[int, str]) -> bool:
    """Whether the real one lost the output of an exec, as it does at times under load."""
    return question.startswith("tasks exec") and answer == (0, "")


def differing(kind: str, section: str, played: dict[str, Played]) -> dict[str, Lines]:
    """The questions of a section that a daemon answers otherwise than the real one."""
    ours, peer = played[kind].section(section), played["peer"].section(section)
    assert list(ours) == list(peer)
    assert len(ours) > 1
    return {
        question: difference(ours[question], peer[question])
        for question in ours
        if ours[question] != peer[question] and not _lost(question, peer[question])
    }


@pytest.mark.parametrize("section", SECTIONS)
def test_the_client_sees_no_difference(section: str, played: dict[str, Played]) -> None:
    known = {each.question: (each.ours, each.peer) for each in KNOWN if each.section == section}
    assert differing("ours", section, played) == known


@pytest.mark.parametrize("section", SHIM_SECTIONS)
def test_the_real_daemon_above_our_shim(section: str, played: dict[str, Played]) -> None:
    known = {each.question: (each.ours, each.peer) for each in KNOWN if each.section == section and each.shim}
    assert differing("shim", section, played) == known

"""After the first step into a container only named files are opened, until its program runs (strace(1))."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.runtime.bundle import Bundle

pytestmark = pytest.mark.root

ALLOWED = [
    line.split("#")[0].split()
    for line in Path(__file__).with_name("opened_files.txt").read_text().splitlines()
    if line.split("#")[0].strip()
]
_CALL = re.compile(r"(\d+) +(?:<\.\.\. )?(\w+)(?:\(| resumed>)(.*)")
_PATH = re.compile(r'"((?:[^"\\]|\\.)*)"')


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    made = Bundle(tmp_path)
    try:
        yield made
    finally:
        made.close()


def traced(bundle: Bundle, *words: str) -> str:
    """Run a verb of the runtime under strace; what it called."""
    trace = bundle.folder / "trace"
    calls = "trace=open,openat,openat2,creat,setns,pivot_root,execve,execveat,clone,clone3,fork,vfork"
    done = subprocess.run(
        ["strace", "-f", "-qq", "-s", "4096", "-e", calls, "-o", str(trace), *bundle.command(*words)],
        cwd=bundle.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return trace.read_text()


def opened_inside(trace: str) -> tuple[list[str], list[str]]:
    """Paths that were opened between a process's first setns or pivot_root, or that of the process which made
    it, and its execve; and the programs that were executed then.
    """
    inside: set[str] = set()
    paths: list[str] = []
    programs: list[str] = []
    for line in trace.splitlines():
        found = _CALL.match(line)
        if not found:
            continue
        pid, call, rest = found.groups()
        if call in ("setns", "pivot_root"):
            inside.add(pid)
        elif pid not in inside:
            continue
        elif call in ("clone", "clone3", "fork", "vfork"):
            if made := re.search(r"= (\d+)", rest):
                inside.add(made[1])
        elif path := _PATH.search(rest):
            if call in ("execve", "execveat"):
                programs.append(path[1])
                inside.discard(pid)
            else:
                paths.append(path[1])
    return paths, programs


def unexpected(paths: list[str], verb: str) -> list[str]:
    patterns = [pattern for verbs, pattern in ALLOWED if verb in verbs.split(",")]
    return sorted({path for path in paths if not any(re.fullmatch(p, path) for p in patterns)})


def test_run(bundle: Bundle) -> None:
    bundle.process["args"] = ["/bin/true"]
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    bundle.linux["sysctl"] = {"net.ipv4.ip_forward": "1"}
    paths, programs = opened_inside(traced(bundle, "run", bundle.new_id()))
    assert programs == ["/bin/true"]
    assert "/etc/passwd" in paths, "nothing was traced"
    assert unexpected(paths, "run") == []


def test_exec(bundle: Bundle) -> None:
    container, _ = bundle.start("sleep", "60")
    paths, programs = opened_inside(traced(bundle, "exec", "--user", "7:8", container, "/bin/true"))
    assert programs == ["/bin/true"]
    assert "/etc/passwd" in paths, "nothing was traced"
    assert unexpected(paths, "exec") == []


def test_a_program_that_is_missing(bundle: Bundle) -> None:
    """The way of errors loads nothing either."""
    container, _ = bundle.start("sleep", "60")
    with pytest.raises(AssertionError, match="executable file not found"):
        traced(bundle, "exec", container, "nosuch")
    paths, programs = opened_inside((bundle.folder / "trace").read_text())
    assert programs == []
    assert unexpected(paths, "exec") == []

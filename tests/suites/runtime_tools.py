"""The programs of opencontainers/runtime-tools' `validation` folder, each run on one runtime and judged.

The suite is not part of this project: `OCI_RUNTIME_TOOLS` names the folder where it was built
(docs/runtime-validation.md).
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.hierarchies import in_full_view

_SECONDS = 100

# Some programs want control groups that the host has but mounts nowhere. What a program leaves is removed in
# the same view of them.
_SCRIPT = """
program=$2 runtime=$3 root=$4
"$program"
code=$?
for path in "$root"/*; do
    [ -d "$path" ] && "$runtime" delete --force "${path##*/}"
done >/dev/null 2>&1
for group in testdir/cgrouptest testdir cgrouptest; do
    rmdir /sys/fs/cgroup/$group /sys/fs/cgroup/*/$group
done 2>/dev/null
exit $code
"""


def folder() -> Path | None:
    """Where the suite was built; None when no place is named."""
    named = os.environ.get("OCI_RUNTIME_TOOLS")
    return Path(named) if named else None


def mountable(controller: str) -> bool:
    """Whether the host can show a controller as a v1 hierarchy: not once its v2 tree has taken it."""
    words = ["mount", "-t", "cgroup", "-o", controller, controller, "/mnt"]
    return subprocess.run(["unshare", "-m", *words], capture_output=True).returncode == 0


def programs() -> list[str]:
    """The names of the programs that were built, in order."""
    base = folder()
    return sorted(path.stem for path in base.glob("validation/*/*.t")) if base else []


@dataclass(frozen=True)
class Verdict:
    """What a program found; `why` is empty when it passed."""

    why: str
    output: str

    @property
    def passed(self) -> bool:
        return not self.why


def run(suite: Path, name: str, runtime: str, place: Path) -> Verdict:
    """Run one program to its end, on a runtime that keeps its containers in `<place>/state`.

    What it leaves is removed. Everybody must be able to go through `place`.
    """
    wrapper = place / Path(runtime).name
    wrapper.write_text(f'#!/bin/sh\nexec {runtime} --root {place}/state "$@"\n')
    wrapper.chmod(0o755)
    bundles = place / "bundles"
    bundles.mkdir()
    program = str(suite / "validation" / name / f"{name}.t")
    words = [str(place / "cgroups"), program, str(wrapper), str(place / "state")]
    done = subprocess.run(
        in_full_view(_SCRIPT, *words),
        cwd=suite,
        env={**os.environ, "RUNTIME": str(wrapper), "TMPDIR": str(bundles)},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_SECONDS,
    )
    return Verdict(_complaint(done.returncode, done.stdout), done.stdout + done.stderr)


def _complaint(code: int, tap: str) -> str:
    """What a program's exit code and its TAP output hold against the runtime; empty when nothing."""
    failed = [line for line in tap.splitlines() if line.startswith("not ok")]
    if failed:
        return "; ".join(failed)
    if code:
        return f"exit code {code}"
    # The programs that test hooks count nothing: they write a block with the error, or none.
    if "\n1..0" in tap and "\n  ---\n" in tap:
        block = tap.split("\n  ---\n", 1)[1].split("\n  ...", 1)[0]
        return str(json.loads(block).get("error", ""))
    return ""

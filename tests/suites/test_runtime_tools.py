"""`runc-bin` passes what others wrote to validate OCI runtimes, where that suite is installed.

`OCI_RUNTIME` names another runtime to be judged in its place, which proves the set-up; `OCI_RUNTIME_PEERS`
(paths with colons between) names runtimes of which none may pass what ours does not.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from linux.interpreter import remove_mounts

from tests.suites.runtime_tools import folder, mountable, programs, run

OURS = str(Path(sys.executable).with_name("runc-bin"))

# Neither runc nor crun passes these, or only when it wins a race: docs/runtime-validation.md has the reasons.
UNPASSABLE = (
    *("delete", "delete_resources", "hooks", "linux_cgroups_blkio", "linux_cgroups_memory"),
    *("linux_cgroups_pids", "linux_cgroups_relative_blkio", "linux_cgroups_relative_memory"),
    *("linux_cgroups_relative_pids", "linux_process_apparmor_profile", "misc_props", "pidfile", "prestart"),
    *("process_capabilities", "process_capabilities_fail", "process_rlimits"),
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.suite,
    pytest.mark.skipif(folder() is None, reason="OCI_RUNTIME_TOOLS names no built runtime-tools"),
]


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that a container's mapped root can go through, as it cannot through pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="buoy-suite-"))
    path.chmod(0o755)
    yield path
    for mounts in path.glob("*/state/@python"):
        remove_mounts(str(mounts))
    shutil.rmtree(path)


def judge(runtime: str, name: str, place: Path) -> str:
    """What the program `name` says against a runtime, with its whole output; empty when it passes."""
    suite = folder()
    assert suite is not None
    place.mkdir()
    verdict = run(suite, name, runtime, place)
    return "" if verdict.passed else f"{verdict.why}\n{verdict.output}"


@cache
def works_here(peer: str) -> bool:
    """Whether a runtime runs anything on this host: one that refuses the host passes what wants a refusal."""
    with tempfile.TemporaryDirectory(prefix="buoy-suite-") as folder:
        Path(folder).chmod(0o755)
        return not judge(peer, "default", Path(folder) / "peer")


@pytest.mark.parametrize("name", programs())
def test_validation(name: str, place: Path) -> None:
    complaint = judge(os.environ.get("OCI_RUNTIME", OURS), name, place / "ours")
    if not complaint:
        return
    named = os.environ.get("OCI_RUNTIME_PEERS", "").split(":")
    peers = [path for path in named if path and works_here(path)]
    passing = [peer for index, peer in enumerate(peers) if not judge(peer, name, place / f"peer{index}")]
    assert not passing, f"{passing} pass: {complaint}"
    if "hugetlb" in name and not mountable("hugetlb"):
        pytest.skip("hugetlb is a controller of the host's v2 tree; the program reads it on v1 only")
    if name in UNPASSABLE:
        pytest.xfail(complaint.partition("\n")[0])
    raise AssertionError(complaint)

"""CVE-2021-30465: a directory of a shared volume is swapped for a link to the host while another container is
started with mounts below it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kernel.runtime.bundle import Bundle

pytestmark = pytest.mark.root

STARTS = 25
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class Swapper(threading.Thread):
    """Exchanges two names (renameat2(2)) as fast as it can, until stopped."""

    def __init__(self, one: Path, other: Path) -> None:
        super().__init__(daemon=True)
        self._names = os.fsencode(one), os.fsencode(other)
        self.swaps = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        while not self.stopped.is_set():
            if libc.renameat2(_AT_FDCWD, self._names[0], _AT_FDCWD, self._names[1], _RENAME_EXCHANGE) == 0:
                self.swaps += 1


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Bundle]:
    made = Bundle(tmp_path / "bundle")
    try:
        yield made
    finally:
        made.close()


def test_nothing_is_mounted_or_made_outside(bundle: Bundle, tmp_path: Path) -> None:
    volume, host = tmp_path / "volume", tmp_path / "host"
    for path in (volume / "target/in", host / "in"):
        path.mkdir(parents=True)
    (host / "canary").write_text("kept")
    (volume / "link").symlink_to(f"{'../' * 30}{str(host).lstrip('/')}")
    (tmp_path / "data").mkdir()
    bundle.spec["mounts"] += [
        {"destination": "/vol", "source": str(volume), "options": ["bind"]},
        {"destination": "/vol/target/in", "type": "tmpfs", "source": "t", "options": ["size=4k"]},
        {"destination": "/vol/target/new/deep", "source": str(tmp_path / "data"), "options": ["bind"]},
        {"destination": "/vol/target/file", "source": "/etc/hostname", "options": ["bind"]},
    ]
    before = sorted(str(path) for path in host.rglob("*"))
    swapper = Swapper(volume / "target", volume / "link")
    swapper.start()
    started = 0
    try:
        for _ in range(STARTS):
            done = bundle.run("true", check=False)
            started += done.returncode == 0
            # Two of the mount points are to be made: outside they would stay.
            assert sorted(str(path) for path in host.rglob("*")) == before
            assert str(host) not in Path("/proc/self/mountinfo").read_text()
    finally:
        swapper.stopped.set()
        swapper.join()
    assert swapper.swaps > STARTS
    assert started, "no start came through between two swaps"
    assert (host / "canary").read_text() == "kept"

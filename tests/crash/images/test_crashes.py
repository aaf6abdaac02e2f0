"""Killed at every step of an image's life, the stores start again with nothing lost, leaked or in the way."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import errdefs
import pytest

from tests.crash.images.driver import life
from tests.support.stores import Stores, serve_stores

pytestmark = [pytest.mark.root, pytest.mark.crash]

SERVICES = Path(__file__).parents[3] / "services"
SOURCES = [
    *(SERVICES / "containerd_svc").glob("*.py"),
    *(SERVICES / "containerd_svc/snapshots").glob("*.py"),
    *(SERVICES / "dockerd_api/images").glob("*.py"),
]
ELSEWHERE = {"images.pulled"}  # wants a registry: test_points.py
POINTS = sorted(
    {
        name
        for source in SOURCES
        for name in re.findall(
            r'crashpoint\("((?:content|snapshots|diff|gc|images)\.[^"]+)"\)', source.read_text()
        )
    }
    - ELSEWHERE
)


def run(root: Path, point: str) -> int:
    """The driver's exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.images.driver", root],
        env=os.environ | {"BUOY_CRASH_AT": point},
        cwd=SERVICES.parent,
        timeout=60,
        check=False,
    )
    return done.returncode


async def check_empty(stores: Stores) -> None:
    """No blob, ingest, snapshot, image or lease, in the rows or on disk."""
    await stores.snapshots.cleanup("overlayfs")
    assert await stores.content.list("moby") == []
    assert await stores.content.statuses("moby") == []
    assert await stores.snapshots.list("moby", "overlayfs") == []
    assert await stores.images.list("moby") == []
    assert await stores.leases.list("moby") == []
    folders = ("content/blobs/sha256", "content/ingest", "snapshots")
    assert [path for folder in folders for path in (stores.root / folder).iterdir()] == []


@pytest.mark.parametrize("point", POINTS)
async def test_killed_at(point: str, tmp_path: Path) -> None:
    assert run(tmp_path, point) == -signal.SIGKILL, "the point was not reached"
    async with serve_stores(tmp_path) as stores:
        with contextlib.suppress(errdefs.NotFound):
            await stores.snapshots.remove("moby", "overlayfs", "container")
        await life(stores)
        await check_empty(stores)


async def test_not_killed(tmp_path: Path) -> None:
    assert len(POINTS) >= 14
    assert run(tmp_path, "") == 0
    async with serve_stores(tmp_path) as stores:
        await check_empty(stores)

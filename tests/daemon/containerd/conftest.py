"""One root file system for the session, one world for each module that shares it."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.daemon.containerd.world import World, running
from tests.support.busybox import busybox_rootfs_tar


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked busybox."""
    folder = tmp_path_factory.mktemp("busybox")
    busybox_rootfs_tar(folder / "rootfs.tar")
    (folder / "rootfs").mkdir()
    subprocess.run(["tar", "-C", folder / "rootfs", "-xf", folder / "rootfs.tar"], check=True)
    return folder / "rootfs"


@pytest.fixture
async def world(rootfs: Path) -> AsyncIterator[World]:
    """A nursery and a containerd-svc of this test's own."""
    async with running(rootfs) as made:
        yield made

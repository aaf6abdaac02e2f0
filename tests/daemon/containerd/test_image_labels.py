"""What an image's author wrote does not control the containers that are made of it (CVE-2026-53488)."""

from __future__ import annotations

from pathlib import Path

import pytest
from pb.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    CreateContainerRequest,
    DeleteContainerRequest,
    GetContainerRequest,
)
from pb.containerd.types.transfer import ImageReference, ImageStore

from tests.daemon.containerd.world import World, until
from tests.support.archives import saved_image
from tests.support.transfer import import_image

pytestmark = pytest.mark.root

NAME = "docker.io/library/hostile:1"
STORE = ImageStore(extra_references=[ImageReference(name="import", is_prefix=True, allow_overwrite=True)])


def restart_labels(folder: Path, name: str) -> dict[str, str]:
    """Labels by which the restart monitor runs a program, which leaves a mark."""
    program = folder / name
    program.write_text('#!/bin/sh\n: > "$0.ran"\nexec 5>&-\nexec cat <&3 >/dev/null\n')
    program.chmod(0o755)
    return {
        "containerd.io/restart.status": "running",
        "containerd.io/restart.policy": "always",
        "containerd.io/restart.loguri": f"binary://{program}",
    }


async def create(world: World, name: str, image: str, labels: dict[str, str]) -> dict[str, str]:
    """A container of an image; the labels that it got."""
    container = Container(
        id=name,
        labels=labels,
        image=image,
        runtime=ContainerRuntime(name="io.containerd.runc.v2"),
        spec=world.spec(["true"], name),
    )
    await world.containers.create(CreateContainerRequest(container=container))
    found = (await world.containers.get(GetContainerRequest(id=name))).container
    assert found is not None
    return found.labels


async def test_control_labels_of_an_image_are_not_its_containers(world: World, tmp_path: Path) -> None:
    hostile = restart_labels(tmp_path, "hostile")
    more = {"containerd.io/gc.root": "now", "dev.buoy.restart.boot-id": "x"}
    plain = {"maintainer": "somebody", "io.containerd.image.config.stop-signal": "SIGQUIT"}
    _, archive = saved_image(["hostile:1"], [{"f": b"1"}], config={"Labels": hostile | more | plain})
    await import_image(world.channel, archive, STORE)
    # As a client copies them.
    assert await create(world, "copied", NAME, hostile | more | plain) == plain
    own = restart_labels(tmp_path, "own")
    assert await create(world, "own", "", own | plain) == own | plain
    await world.restart_daemon()
    await until(lambda: (tmp_path / "own.ran").exists(), "the client's own logger is run")
    assert not (tmp_path / "hostile.ran").exists()
    for name in ("copied", "own"):
        await world.containers.delete(DeleteContainerRequest(id=name))

"""SIGKILL at every registered point: what is left can be cleaned up by `delete`, or is taken up again."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import errdefs
import pytest

from tests.kernel.shim.harness import Box, Place, a_place, gone, until

pytestmark = [pytest.mark.root, pytest.mark.crash]

SHIM_POINTS = {
    "shim.create.recorded": False,
    "shim.create.mounted": False,
    "shim.create.made": False,
    "shim.start.begun": False,
    "shim.start.done": False,
    "shim.exit.reaped": False,
    "shim.exit.recorded": True,
    "shim.delete.runtime": True,
    "shim.delete.unmounted": True,
}
WRITER_POINTS = (
    "writer.append.written",
    "writer.rotate.moved",
    "writer.compress.linked",
    "writer.record.synced",
)
NURSERY_POINTS = ("nursery.start.bound", "nursery.start.asked", "nursery.start.forked")


@contextlib.asynccontextmanager
async def crashing(point: str, *, once: bool = False) -> AsyncIterator[tuple[Place, Box]]:
    with a_place() as place:
        more = {"BUOY_CRASH_ONCE": str(place.root / "crashed")} if once else {}
        place.start_nursery(BUOY_CRASH_AT=point, **more)
        box = Box(place, uuid.uuid4().hex * 2)
        try:
            yield place, box
        finally:
            await box.clean()


async def whole_life(box: Box) -> None:
    await box.create()
    await box.start()
    await box.wait()
    await box.delete()


@pytest.mark.parametrize(("point", "exit_known"), SHIM_POINTS.items())
async def test_a_shim_dies(point: str, exit_known: bool) -> None:
    async with crashing(point) as (place, box):
        box.write(["sh", "-c", "exit 3"])
        await box.shim()
        with pytest.raises(errdefs.Unavailable):
            await whole_life(box)
        await until(lambda: gone(box.shim_pid))
        response = box.delete_command()
        assert response.exit_status == (3 if exit_known else 137)
        if response.pid:
            await until(lambda: gone(response.pid))
        assert not os.path.ismount(box.bundle / "rootfs")
        assert not (place.runtime_root / "moby" / box.id).exists()
        assert not Path(box.address.removeprefix("unix://")).exists()
        # the same bundle runs again in a new shim
        place.stop_nursery()
        place.start_nursery()
        assert box.client is not None
        await box.client.close()
        await box.shim()
        await box.create()
        await box.start()
        assert await box.wait() == 3
        assert box.record()["run"] == (1 if exit_known else 0)


@pytest.mark.parametrize("point", WRITER_POINTS)
async def test_the_writer_dies(point: str) -> None:
    """Another one goes on: no line is lost or doubled, and the exit is on record."""
    async with crashing(point, once=True) as (place, box):
        options = {"dev.buoy.log.max-size": "5000", "dev.buoy.log.max-file": "99"}
        if "compress" in point:
            options["dev.buoy.log.compress"] = "true"
        box.write(["sh", "-c", "seq 1 1000; exit 3"], annotations=options)
        await box.shim()
        await box.create()
        await box.start()
        assert await box.wait() == 3
        await until((place.root / "crashed").exists)  # files are compressed when there is time
        assert [int(text) for _, text in box.rotated_entries()] == list(range(1, 1001))
        assert box.record()["exit_status"] == 3
        assert await box.delete() == 3


@pytest.mark.parametrize("point", NURSERY_POINTS)
async def test_the_nursery_dies(point: str) -> None:
    async with crashing(point, once=True) as (place, box):
        box.write(["true"])
        if point == "nursery.start.forked":  # the template dies, the shim is there
            await box.shim()
            assert box.client is not None
            await box.client.close()
        else:
            with pytest.raises(errdefs.Unavailable):
                await box.shim()
        assert place.nursery is not None
        assert place.nursery.wait(10) != 0  # for the service manager to start it again
        place.nursery = None
        before = box.shim_pid
        place.start_nursery()
        await box.shim()
        assert before in (0, box.shim_pid)
        await box.create()
        await box.start()
        assert await box.wait() == 0


async def test_the_register_has_no_other_points() -> None:
    source = "".join(path.read_text() for path in Path("services/shim_svc").glob("*.py"))
    named = {part.split('"')[0] for part in source.split('crashpoint("')[1:]}
    assert named == {*SHIM_POINTS, *WRITER_POINTS, *NURSERY_POINTS}

"""A task checkpointed, and another made of the images, by the shim's own runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import errdefs
import pytest
from pb.containerd.runc.v1 import CheckpointOptions
from pb.containerd.task import v2 as task
from pb.containerd.v1.types import Status
from pb.google.protobuf import Any as PbAny
from runc_bin.libcontainer.checkpoint import criu

from tests.kernel.shim.harness import Box, until

pytestmark = pytest.mark.root

COUNTING = ["sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"]


def request(box: Box, path: Path, options: CheckpointOptions | None = None) -> task.CheckpointTaskRequest:
    packed = PbAny(type_url="containerd.runc.v1.CheckpointOptions", value=bytes(options)) if options else None
    return task.CheckpointTaskRequest(id=box.id, path=str(path), options=packed)


async def test_bad_checkpoints(box: Box, tmp_path: Path) -> None:
    box.write(["sleep", "60"])
    await box.shim()
    await box.create()
    with pytest.raises(errdefs.FailedPrecondition, match="cannot checkpoint a created process"):
        await box.call("Checkpoint", request(box, tmp_path / "images"))
    await box.start()
    with pytest.raises(errdefs.InvalidArgument, match="without a path"):
        await box.call("Checkpoint", task.CheckpointTaskRequest(id=box.id))
    other = request(box, tmp_path / "images")
    other.options = PbAny(type_url="containerd.runc.v1.Options", value=b"\x08\x01")
    with pytest.raises(errdefs.InvalidArgument, match="unknown checkpoint options"):
        await box.call("Checkpoint", other)
    wrong = request(box, tmp_path / "images", CheckpointOptions(cgroups_mode="nonsense"))
    with pytest.raises(errdefs.BuoyError, match="invalid manage-cgroups-mode value"):
        await box.call("Checkpoint", wrong)
    assert not (tmp_path / "images").exists()
    assert (await box.state()).status == Status.RUNNING


async def test_a_count_goes_on_in_another_task(boxes: Callable[[], Box], tmp_path: Path) -> None:
    try:
        criu.check()
    except errdefs.BuoyError as error:
        pytest.skip(error.message)
    images = tmp_path / "images"
    first, second = boxes(), boxes()
    for box in (first, second):
        box.write(COUNTING)
        await box.shim()
    await first.create()
    await first.start()
    await until(lambda: len(first.log_entries()) > 3)
    await first.call("Checkpoint", request(first, images))
    assert (await first.state()).status == Status.RUNNING
    await first.call("Checkpoint", request(first, images, CheckpointOptions(exit=True)))
    assert await first.wait() == 137
    await first.delete()
    reached = [int(text) for _, text in first.log_entries()]
    assert reached == list(range(1, len(reached) + 1))

    assert await second.create(checkpoint=str(images)) == 0
    assert (await second.state()).status == Status.CREATED
    with pytest.raises(errdefs.NotFound):
        await second.kill()
    pid = await second.start()
    assert pid > 0
    assert (await second.state()).pid == pid
    await until(lambda: len(second.log_entries()) > 3)
    numbers = [int(text) for _, text in second.log_entries()]
    # What was in the pipe at the time is in the images too, and is read again.
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert reached[-1] - 2 <= numbers[0] <= reached[-1] + 1
    await second.kill()
    assert await second.wait() == 137
    assert await second.delete() == 137

"""The life of tasks through a real containerd-svc, a real nursery and real shims."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import errdefs
import pytest
from pb.containerd.runc.v1 import CheckpointOptions
from pb.containerd.services.tasks.v1 import (
    CheckpointTaskRequest,
    DeleteProcessRequest,
    ExecProcessRequest,
    ListPidsRequest,
    ListTasksRequest,
    PauseTaskRequest,
    ResumeTaskRequest,
    StartRequest,
)
from pb.containerd.types import Descriptor
from pb.containerd.v1.types import Status
from pb.google.protobuf import Any as AnyMessage
from runc_bin.libcontainer.checkpoint import criu

from tests.daemon.containerd.world import Follower, World, until

pytestmark = pytest.mark.root


def ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that waits for the host's init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


async def test_a_task_from_create_to_delete(world: World) -> None:
    output = world.dir / "out"
    async with Follower(world) as follower:
        container_id = await world.container("sh", "-c", "echo hi; exit 3")
        created = await world.tasks.create(world.task_request(container_id, f"file://{output}"))
        assert await world.status(container_id) == Status.CREATED
        started = await world.tasks.start(StartRequest(container_id=container_id))
        assert started.pid == created.pid > 1
        assert await world.wait(container_id) == 3
        stopped = await world.get(container_id)
        assert (stopped.status, stopped.exit_status, stopped.pid) == (Status.STOPPED, 3, created.pid)
        assert stopped.exited_at is not None
        assert await world.delete(container_id) == 3
        await until(lambda: "/tasks/delete" in follower.topics(), "the deletion is told")
        assert follower.topics() == [
            "/containers/create",
            "/tasks/create",
            "/tasks/start",
            "/tasks/exit",
            "/tasks/delete",
        ]
    assert output.read_text() == "hi\n"
    assert not (world.state / "moby" / container_id).exists()
    with pytest.raises(errdefs.NotFound, match=f"task {container_id} not found"):
        await world.get(container_id)
    await until(lambda: not list(world.sockets.glob("*.t")), "the shim is gone")


async def test_the_same_container_runs_again_at_once(world: World) -> None:
    container_id = await world.container("true")
    for _ in range(3):
        await world.tasks.create(world.task_request(container_id))
        await world.tasks.start(StartRequest(container_id=container_id))
        assert await world.wait(container_id) == 0
        await world.delete(container_id)


async def test_errors_are_containerd_s_and_change_nothing(world: World) -> None:
    with pytest.raises(errdefs.NotFound, match='container "x" in namespace "moby": not found'):
        await world.tasks.create(world.task_request("x"))
    with pytest.raises(errdefs.NotFound, match='container "x" in namespace "moby": not found'):
        await world.get("x")
    container_id = await world.run("sleep", "100")
    with pytest.raises(errdefs.AlreadyExists, match=f"task {container_id}: already exists"):
        await world.tasks.create(world.task_request(container_id))
    with pytest.raises(errdefs.FailedPrecondition):
        await world.delete(container_id)
    with pytest.raises(errdefs.FailedPrecondition):
        await world.tasks.start(StartRequest(container_id=container_id))
    with pytest.raises(errdefs.NotFound):
        await world.get(container_id, "no-such-exec")
    other = AnyMessage(type_url="containerd.runc.v1.Options", value=b"\x08\x01")
    with pytest.raises(errdefs.InvalidArgument, match="invalid task checkpoint option"):
        await world.tasks.checkpoint(CheckpointTaskRequest(container_id=container_id, options=other))
    restore = world.task_request(await world.container("true"))
    restore.checkpoint = Descriptor(media_type="text/plain", digest=f"sha256:{'0' * 64}", size=1)
    with pytest.raises(errdefs.InvalidArgument, match='unsupported checkpoint type "text/plain"'):
        await world.tasks.create(restore)
    restore.checkpoint.media_type = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
    with pytest.raises(errdefs.NotFound):
        await world.tasks.create(restore)
    assert await world.status(container_id) == Status.RUNNING
    await world.kill(container_id)
    assert await world.wait(container_id) == 137
    await world.remove(container_id)


async def test_a_create_that_fails_leaves_nothing(world: World) -> None:
    container_id = await world.container("/no/such/program")
    with pytest.raises(errdefs.BuoyError):  # noqa: PT012 - either may say so, as with runc
        await world.tasks.create(world.task_request(container_id))
        await world.tasks.start(StartRequest(container_id=container_id))
    await world.remove(container_id)
    await until(lambda: not list(world.sockets.glob("*.t")), "the shim is gone")
    assert not (world.state / "moby" / container_id).exists()
    broken = await world.container("true")
    request = world.task_request(broken)
    request.rootfs[0].source = "/no/such/folder"
    with pytest.raises(errdefs.BuoyError):
        await world.tasks.create(request)
    assert not (world.state / "moby" / broken).exists()
    assert (await world.tasks.list(ListTasksRequest())).tasks == []
    await world.tasks.create(world.task_request(broken))  # and the next one works
    await world.tasks.start(StartRequest(container_id=broken))
    assert await world.wait(broken) == 0
    await world.remove(broken)


async def test_exec_pause_and_pids(world: World) -> None:
    container_id = await world.run("sleep", "100")
    output = world.dir / "exec-out"
    process = b'{"args":["sh","-c","echo in; exit 4"],"cwd":"/","env":["PATH=/bin"],"user":{"uid":0,"gid":0}}'
    spec = AnyMessage(type_url="types.containerd.io/opencontainers/runtime-spec/1/Process", value=process)
    request = ExecProcessRequest(
        container_id=container_id, exec_id="e1", spec=spec, stdout=f"file://{output}"
    )
    await world.tasks.exec(request)
    with pytest.raises(errdefs.AlreadyExists):
        await world.tasks.exec(request)
    with pytest.raises(errdefs.InvalidArgument, match="exec id cannot be empty"):
        await world.tasks.exec(ExecProcessRequest(container_id=container_id, spec=spec))
    waiting = asyncio.create_task(world.wait(container_id, "e1"))
    await world.tasks.start(StartRequest(container_id=container_id, exec_id="e1"))
    assert await waiting == 4
    assert (await world.get(container_id, "e1")).status == Status.STOPPED
    done = await world.tasks.delete_process(DeleteProcessRequest(container_id=container_id, exec_id="e1"))
    assert (done.id, done.exit_status) == ("e1", 4)
    assert output.read_text() == "in\n"

    await world.tasks.pause(PauseTaskRequest(container_id=container_id))
    assert await world.status(container_id) == Status.PAUSED
    await world.tasks.resume(ResumeTaskRequest(container_id=container_id))
    assert await world.status(container_id) == Status.RUNNING
    pids = (await world.tasks.list_pids(ListPidsRequest(container_id=container_id))).processes
    assert (await world.get(container_id)).pid in [entry.pid for entry in pids]
    await world.remove(container_id)


async def test_without_a_nursery_a_shim_starts_by_itself(world: World) -> None:
    assert world.nursery is not None
    world.nursery.kill()
    world.nursery.wait()
    (world.dir / "shim.sock").unlink()
    container_id = await world.run("sh", "-c", "exit 5")
    assert await world.wait(container_id) == 5
    await world.remove(container_id)


async def test_many_at_once(world: World) -> None:
    async def one(number: int) -> int:
        container_id = await world.run("sh", "-c", f"exit {number}")
        status = await world.wait(container_id)
        await world.remove(container_id)
        return status

    assert await asyncio.gather(*(one(number) for number in range(10))) == list(range(10))


async def test_a_stopped_shim_delays_nobody(world: World) -> None:
    stuck = await world.run("sleep", "100")
    shim = int((world.state / "moby" / stuck / "shim.pid").read_text())
    os.kill(shim, signal.SIGSTOP)
    try:
        began = time.monotonic()
        assert await world.status(stuck) == Status.RUNNING
        assert len((await world.tasks.list(ListTasksRequest())).tasks) == 1
        assert time.monotonic() - began < 2  # a call to the shim would take its deadline
        other = await world.run("true")
        assert await world.wait(other) == 0
        await world.remove(other)
    finally:
        os.kill(shim, signal.SIGCONT)
    await world.remove(stuck)


async def test_a_dead_shim_is_reported_and_its_container_ended(world: World) -> None:
    async with Follower(world, "topic~=|^/tasks/|") as follower:
        container_id = await world.run("sleep", "100")
        pid = (await world.get(container_id)).pid
        waiting = asyncio.create_task(world.wait(container_id))
        os.kill(int((world.state / "moby" / container_id / "shim.pid").read_text()), signal.SIGKILL)
        assert await waiting == 137
        await until(lambda: follower.of("/tasks/delete"), "the deletion is told")
        assert follower.topics() == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    assert ended(pid)
    await until(lambda: not (world.state / "moby" / container_id).exists(), "the bundle is gone")
    await world.remove(container_id)


COUNTING = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done"


async def test_a_task_goes_on_from_a_checkpoint(world: World) -> None:
    try:
        criu.check()
    except errdefs.BuoyError as error:
        pytest.skip(error.message)
    before, after = world.dir / "before", world.dir / "after"
    first = await world.run("sh", "-c", COUNTING, stdout=f"file://{before}")
    await until(lambda: before.read_text().count("\n") > 3, "the count has begun")
    options = AnyMessage(
        type_url="containerd.runc.v1.CheckpointOptions", value=bytes(CheckpointOptions(exit=True))
    )
    made = await world.tasks.checkpoint(
        CheckpointTaskRequest(container_id=first, options=options), timeout=60
    )
    assert await world.wait(first) == 137
    await world.remove(first)
    images, spec = made.descriptors
    assert images.media_type == "application/vnd.containerd.container.criu.checkpoint.criu.tar"
    assert spec.media_type == "application/vnd.containerd.container.checkpoint.config.v1+proto"
    assert os.listdir(world.dir / "lib/checkpoints") == []

    second = await world.container("sh", "-c", COUNTING)
    request = world.task_request(second, f"file://{after}")
    request.checkpoint = images
    created = await world.tasks.create(request)
    assert created.pid == 0
    started = await world.tasks.start(StartRequest(container_id=second), timeout=60)
    assert started.pid == (await world.get(second)).pid > 0
    await until(lambda: after.read_text().count("\n") > 3, "the count goes on")
    reached, goes_on = int(before.read_text().split()[-1]), int(after.read_text().split()[0])
    assert reached - 2 <= goes_on <= reached + 1
    assert not (world.state / "moby" / second / "checkpoint").exists()
    await world.kill(second)
    assert await world.wait(second) == 137
    await world.remove(second)

"""containerd-svc killed and started again: containers go on, no fact is lost and none is told twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time

import errdefs
import pytest
from pb.containerd.events import TaskExit, TaskStart
from pb.containerd.services.tasks.v1 import CreateTaskRequest, ListTasksRequest, StartRequest
from pb.containerd.v1.types import Status

from tests.daemon.containerd.world import Follower, World, until

pytestmark = pytest.mark.root


def started(follower: Follower, container_id: str) -> bool:
    events = [envelope.event for envelope in follower.of("/tasks/start")]
    return any(
        event is not None and TaskStart.parse(event.value).container_id == container_id for event in events
    )


def exits(follower: Follower) -> list[tuple[str, int]]:
    found = []
    for envelope in follower.of("/tasks/exit"):
        assert envelope.event is not None
        message = TaskExit.parse(envelope.event.value)
        found.append((message.container_id, message.exit_status))
    return found


async def test_a_running_task_is_found_again_untouched(world: World) -> None:
    container_id = await world.run("sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.05; done")
    before = await world.get(container_id)
    for _ in range(3):
        await world.restart_daemon()
        assert await world.get(container_id) == before
    await world.kill(container_id, signal.SIGTERM)
    assert await world.wait(container_id) == 7
    assert await world.delete(container_id) == 7
    await world.remove(container_id)


async def test_exits_while_it_was_down_are_told_exactly_once(world: World) -> None:
    ids = [await world.run(*world.gated(f"exit {number}")) for number in (0, 3)]
    async with Follower(world, "topic~=|^/tasks/|") as follower:
        early = await world.run("true")
        await until(lambda: exits(follower), "the first exit is told")
        cursor = follower.cursor
    world.kill_daemon()
    world.open_gate()
    records = [world.dir / "containers" / container_id / "exit.json" for container_id in ids]
    await until(lambda: all(record.exists() for record in records), "both have ended")
    await world.restart_daemon()
    async with Follower(world, "topic~=|^/tasks/|", after=cursor) as follower:
        assert follower.resumed
        await until(lambda: len(exits(follower)) == 2, "both exits are told")
        assert sorted(exits(follower)) == sorted(zip(ids, (0, 3), strict=True))
    await world.restart_daemon()
    async with Follower(world, "topic~=|^/tasks/|", after=cursor) as follower:
        last = await world.run("true")
        await until(lambda: last in [one for one, _ in exits(follower)], "a new exit is told")
        assert [one for one, _ in exits(follower)].count(ids[0]) == 1
        assert early not in [one for one, _ in exits(follower)]
    for container_id, status in zip(ids, (0, 3), strict=True):
        assert await world.wait(container_id) == status
    for container_id in (*ids, early, last):
        await world.remove(container_id)


async def test_events_are_seen_exactly_once_through_kills(world: World) -> None:
    """Tasks end while the daemon is killed again and again; a subscriber resumes each time."""
    seen: list[tuple[str, int]] = []
    async with Follower(world, 'topic=="/tasks/exit"') as follower:
        ids = [await world.run("sh", "-c", f"sleep 0.{1 + number}; exit {number}") for number in range(9)]
        await until(lambda: exits(follower), "the first exit")
        seen += exits(follower)
        cursor = follower.cursor
    for _ in range(4):
        await world.restart_daemon()
        async with Follower(world, 'topic=="/tasks/exit"', after=cursor) as follower:
            assert follower.resumed
            await asyncio.sleep(0.05)
            seen += exits(follower)
            if follower.seen:
                cursor = follower.cursor
    async with Follower(world, 'topic=="/tasks/exit"', after=cursor) as follower:
        await until(lambda: len(seen) + len(exits(follower)) >= 9, "all exits")
        seen += exits(follower)
    assert sorted(seen) == sorted((container_id, number) for number, container_id in enumerate(ids))
    for container_id in ids:
        await world.remove(container_id)


async def test_a_shim_that_died_meanwhile_is_reported(world: World) -> None:
    dead = await world.run("sleep", "100")
    told = await world.run(*world.gated("exit 6"))
    async with Follower(world) as follower:
        marker = await world.container("true")
        await until(lambda: follower.seen, "an event")
        cursor = follower.cursor
    world.kill_daemon()
    world.open_gate()
    record = world.dir / "containers" / told / "exit.json"
    await until(record.exists, "one has ended by itself")
    for pid in world.shim_pids():
        os.kill(pid, signal.SIGKILL)
    await world.restart_daemon()
    async with Follower(world, "topic~=|^/tasks/|", after=cursor) as follower:
        await until(lambda: len(follower.of("/tasks/delete")) == 2, "both deletions are told")
        assert sorted(exits(follower)) == sorted([(dead, 137), (told, 6)])
    await until(lambda: not list(world.state.glob("moby/*")), "the bundles are gone")
    for container_id in (dead, told, marker):
        await world.remove(container_id)


@pytest.mark.crash
async def test_a_kill_during_a_burial_tells_nothing_twice(world: World) -> None:
    world.kill_daemon()
    await world.restart_daemon({"BUOY_CRASH_AT": "containerd.bury.published"})
    daemon = world.daemon
    assert daemon is not None
    dead = await world.run("sleep", "100")
    async with Follower(world, "topic~=|^/tasks/|") as follower:
        other = await world.run("sleep", "100")
        # The first one's events may come so late that this follower sees them too.
        await until(lambda: started(follower, other), "it runs")
        cursor = follower.cursor
        os.kill(int((world.state / "moby" / dead / "shim.pid").read_text()), signal.SIGKILL)
        await until(lambda: daemon.poll() is not None, "the daemon has killed itself")
    await world.restart_daemon()
    await until(lambda: not (world.state / "moby" / dead).exists(), "the bundle is gone")
    async with Follower(world, "topic~=|^/tasks/|", after=cursor) as follower:
        await world.kill(other)
        await until(lambda: len(exits(follower)) == 2, "both exits are told")
        assert exits(follower) == [(dead, 137), (other, 137)]
        assert follower.topics() == ["/tasks/exit", "/tasks/delete", "/tasks/exit"]
    await world.remove(dead)
    await world.remove(other)


async def test_a_stuck_shim_does_not_delay_the_start(world: World) -> None:
    stuck = await world.run("sleep", "100")
    others = [await world.run("sleep", "100") for _ in range(3)]
    before = await world.get(stuck)
    pid = int((world.state / "moby" / stuck / "shim.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        world.kill_daemon()
        began = time.monotonic()
        await world.restart_daemon()
        assert time.monotonic() - began < 6
        assert len((await world.tasks.list(ListTasksRequest())).tasks) == 4
        found = await world.get(stuck)
        assert (found.status, found.pid) == (Status.RUNNING, before.pid)
        with pytest.raises(errdefs.DeadlineExceeded):
            await world.tasks.start(StartRequest(container_id=stuck, exec_id="x"), timeout=0.5)
    finally:
        os.kill(pid, signal.SIGCONT)
    await world.kill(stuck)
    assert await world.wait(stuck) == 137
    for container_id in (stuck, *others):
        await world.remove(container_id)


@pytest.mark.crash
@pytest.mark.parametrize(
    "point",
    [
        "containerd.bundle.made",
        "containerd.bundle.written",
        "containerd.create.shim-started",
        "containerd.create.created",
        "containerd.facts.taken",
        "containerd.delete.shut-down",
    ],
)
async def test_a_kill_in_the_middle_of_a_call(world: World, point: str) -> None:
    """A client that repeats what was not answered gets through, and nothing is left over."""
    container_id = await world.container("sh", "-c", "sleep 0.3; exit 5")
    world.kill_daemon()
    await world.restart_daemon({"BUOY_CRASH_AT": point, "BUOY_CRASH_ONCE": str(world.dir / "crashed")})
    daemon = world.daemon
    assert daemon is not None

    async def revive() -> None:
        await until(lambda: daemon.poll() is not None, "it kills itself")
        assert daemon.returncode == -signal.SIGKILL
        await world.restart_daemon()

    reviving = asyncio.create_task(revive())
    made, started = {"buoy-call-key": "c"}, {"buoy-call-key": "s"}  # of calls that are not harmless twice
    await repeat(world, lambda: world.tasks.create(world.task_request(container_id), metadata=made))
    await repeat(world, lambda: world.tasks.start(StartRequest(container_id=container_id), metadata=started))
    assert await repeat(world, lambda: world.wait(container_id)) == 5
    with contextlib.suppress(errdefs.NotFound):  # deleted by the call that got no answer
        await repeat(world, lambda: world.delete(container_id))
    async with asyncio.timeout(10):
        await reviving
    assert (world.dir / "crashed").exists()
    assert (await world.tasks.list(ListTasksRequest())).tasks == []
    await until(lambda: not list(world.sockets.glob("*.t")), "the shim is gone")
    assert not (world.state / "moby" / container_id).exists()
    await world.remove(container_id)


async def repeat(world: World, call):  # type: ignore[no-untyped-def]
    """The call's result, repeated while the daemon is away."""
    deadline = time.monotonic() + 15
    while True:
        try:
            return await call()
        except errdefs.Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)


async def test_a_repeated_call_with_its_key_gets_its_answer(world: World) -> None:
    container_id = await world.container("sleep", "100")
    key = {"buoy-call-key": "k1"}
    first = await world.tasks.create(world.task_request(container_id), metadata=key)
    again = await world.tasks.create(world.task_request(container_id), metadata=key)
    assert again.pid == first.pid
    with pytest.raises(errdefs.AlreadyExists):
        await world.tasks.create(world.task_request(container_id), metadata={"buoy-call-key": "k2"})
    with pytest.raises(errdefs.AlreadyExists):
        await world.tasks.create(CreateTaskRequest(container_id=container_id), metadata=key)
    await world.tasks.start(StartRequest(container_id=container_id), metadata=key)
    assert (await world.tasks.start(StartRequest(container_id=container_id), metadata=key)).pid == first.pid
    with pytest.raises(errdefs.FailedPrecondition):
        await world.tasks.start(StartRequest(container_id=container_id))
    await world.remove(container_id)


async def test_a_second_daemon_on_the_same_root_is_refused(world: World) -> None:
    assert world.daemon is not None
    done = await asyncio.to_thread(
        subprocess.run,
        world.command(address=str(world.dir / "other.sock")),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"is in use by another containerd-svc, process {world.daemon.pid}" in done.stderr


async def test_sigterm_ends_it_quickly_and_touches_no_container(world: World) -> None:
    container_id = await world.run("sleep", "100")
    assert world.daemon is not None
    async with Follower(world):
        began = time.monotonic()
        world.daemon.terminate()
        await asyncio.to_thread(world.daemon.wait, 5)
        assert time.monotonic() - began < 1.5
    assert world.daemon.returncode == 0
    world.daemon = None
    world.start_daemon()
    await world.answers()
    assert await world.status(container_id) == Status.RUNNING
    await world.remove(container_id)


async def test_without_root_it_says_so(world: World) -> None:
    script = "import os; os.setuid(65534); from containerd_svc.__main__ import main; raise SystemExit(main())"
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "needs root" in done.stderr

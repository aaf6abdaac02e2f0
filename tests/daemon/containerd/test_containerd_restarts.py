"""Restarts by policy: decided by containerd-svc alone, from labels, also across its own death."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import errdefs
import pytest
from pb.buoy.events.v1 import RestartDecision
from pb.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    CreateContainerRequest,
    UpdateContainerRequest,
)
from pb.containerd.services.tasks.v1 import ListTasksRequest
from pb.containerd.v1.types import Status
from pb.google.protobuf import FieldMask

from tests.daemon.containerd.world import Follower, World, until

pytestmark = pytest.mark.root

BOOT_ID = Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def labels(policy: str, **changes: str) -> dict[str, str]:
    return {
        "containerd.io/restart.status": "running",
        "containerd.io/restart.policy": policy,
        "dev.buoy.restart.boot-id": changes.get("boot", BOOT_ID),
    }


def decisions(follower: Follower) -> list[tuple[bool, int]]:
    found = []
    for envelope in follower.of("/buoy/restart"):
        assert envelope.event is not None
        assert envelope.event.type_url == "buoy.events.v1.RestartDecision"
        message = RestartDecision.parse(envelope.event.value)
        assert (message.due is not None) == message.restart
        found.append((message.restart, message.count))
    return found


async def test_on_failure_restarts_as_often_as_it_may_in_the_same_shim(world: World) -> None:
    async with Follower(world) as follower:
        container_id = await world.run("false", labels=labels("on-failure:2"))
        shim = world.shim_pids()
        await until(lambda: len(decisions(follower)) == 3, "three exits are decided")
        assert decisions(follower) == [(True, 1), (True, 2), (False, 2)]
        assert world.shim_pids() == shim
        topics = [topic for topic in follower.topics() if topic.startswith(("/tasks", "/buoy"))]
        one_run = ["/tasks/create", "/tasks/start", "/tasks/exit", "/buoy/restart"]
        assert topics == [*one_run, "/tasks/delete", *one_run, "/tasks/delete", *one_run]
        exits, starts = follower.of("/tasks/exit"), follower.of("/tasks/start")
        waits = [
            (start.timestamp - end.timestamp).total_seconds()  # type: ignore[operator]
            for end, start in zip(exits, starts[1:], strict=False)
        ]
        assert 0.1 <= waits[0] < 1
        assert 0.2 <= waits[1] < 1.5
    record = (world.dir / "containers" / container_id / "exit.json").read_text()
    assert '"run": 2' in record
    assert await world.status(container_id) == Status.STOPPED
    await world.remove(container_id)


async def test_a_good_end_is_not_restarted_on_failure(world: World) -> None:
    async with Follower(world) as follower:
        container_id = await world.run("true", labels=labels("on-failure"))
        await until(lambda: decisions(follower), "the exit is decided")
        assert decisions(follower) == [(False, 0)]
        plain = await world.run("true")
        other_boot = await world.run("false", labels=labels("always", boot="another"))
        await until(lambda: len(decisions(follower)) == 2, "the exit is decided")
        assert decisions(follower)[1] == (False, 0)
    for one in (container_id, plain, other_boot):
        await world.remove(one)


async def test_a_stop_holds_also_during_the_wait(world: World) -> None:
    async with Follower(world) as follower:
        container_id = await world.run("sh", "-c", "sleep 0.1; exit 1", labels=labels("always"))
        await until(lambda: len(decisions(follower)) == 3, "it is in its third wait")
        await world.stop_label(container_id)
        await until(lambda: len(decisions(follower)) == 4, "the stop is told")
        assert decisions(follower)[-1] == (False, 2)
        await asyncio.sleep(0.6)
        assert await world.status(container_id) == Status.STOPPED
    await world.remove(container_id)


async def test_a_stopped_container_is_not_restarted(world: World) -> None:
    async with Follower(world) as follower:
        container_id = await world.run("sleep", "100", labels=labels("always"))
        await world.stop_label(container_id)
        await world.kill(container_id)
        await until(lambda: decisions(follower), "the exit is decided")
        assert decisions(follower) == [(False, 0)]
    assert await world.delete(container_id) == 137
    await world.remove(container_id)


async def test_a_wait_goes_on_after_the_daemon_was_killed(world: World) -> None:
    """Three exits make a wait of 400 ms; the daemon is dead when it ends."""
    async with Follower(world) as follower:
        container_id = await world.run("sh", "-c", "sleep 0.05; exit 1", labels=labels("always"))
        await until(lambda: len(decisions(follower)) == 3, "it is in its third wait")
        cursor = follower.cursor
    world.kill_daemon()
    await asyncio.sleep(0.6)
    await world.restart_daemon()
    async with Follower(world, after=cursor) as follower:
        await until(lambda: len(follower.of("/tasks/start")) >= 2, "it is started again, twice")
        assert decisions(follower)[0] == (True, 4)
    await world.remove(container_id)


async def test_an_exit_while_the_daemon_is_dead_is_decided_afterwards(world: World) -> None:
    container_id = await world.run(*world.gated("sleep 0.2; exit 1"), labels=labels("on-failure:1"))
    first = await world.get(container_id)
    world.kill_daemon()
    world.open_gate()
    record = world.dir / "containers" / container_id / "exit.json"
    await until(record.exists, "it has ended")
    await world.restart_daemon()
    async with Follower(world):

        async def again() -> bool:
            task = await world.get(container_id)
            return task.status == Status.RUNNING and task.pid != first.pid

        await until(again, "it runs again")
    await world.remove(container_id)


async def test_the_labels_alone_start_and_stop_after_a_boot(world: World) -> None:
    """Nothing is left of the tasks, as after a boot; no client comes back."""
    running = {"containerd.io/restart.status": "running"}
    output = world.dir / "said"
    told = {"containerd.io/restart.loguri": f"file://{output}", **running}
    spec = world.spec(["sh", "-c", "echo up; sleep 100"], "wanted")
    root = json.loads(spec.value)
    root["root"]["path"] = str(world.rootfs)
    spec.value = json.dumps(root).encode()
    for name, own in {
        "wanted": told,
        "stopped": {"containerd.io/restart.explicitly-stopped": "true", **running},
        "failed": {"containerd.io/restart.policy": "on-failure", **running},
        "docker": labels("always"),
    }.items():
        container = Container(
            id=name, labels=own, spec=spec, runtime=ContainerRuntime(name="io.containerd.runc.v2")
        )
        await world.containers.create(CreateContainerRequest(container=container))
    surplus = await world.run("sleep", "100")
    key = "containerd.io/restart.status"
    await world.containers.update(
        UpdateContainerRequest(
            container=Container(id=surplus, labels={key: "stopped"}),
            update_mask=FieldMask(paths=[f"labels.{key}"]),
        )
    )
    await world.restart_daemon()

    async def tasks() -> list[str]:
        return [each.container_id for each in (await world.tasks.list(ListTasksRequest())).tasks]

    async def settled() -> bool:
        return await tasks() == ["wanted"] and await world.status("wanted") == Status.RUNNING

    await until(settled, "one is started, the other stopped")
    await until(lambda: output.exists() and output.read_text() == "up\n", "it writes where its label says")
    for name in ("wanted", "stopped", "failed", "docker", surplus):
        await world.remove(name)


@pytest.mark.crash
@pytest.mark.parametrize(
    "point", ["containerd.restart.deleted", "containerd.restart.created", "containerd.restart.started"]
)
async def test_a_kill_in_the_middle_of_a_restart(world: World, point: str) -> None:
    world.kill_daemon()
    await world.restart_daemon({"BUOY_CRASH_AT": point})
    daemon = world.daemon
    assert daemon is not None
    command = f"test -e {world.dir}/no && exit 0; sleep 0.2; exit 1"
    container_id = await world.run("sh", "-c", command, labels=labels("on-failure:1"))
    await until(lambda: daemon.poll() is not None, "the daemon has killed itself")
    assert daemon.returncode == -signal.SIGKILL
    await world.restart_daemon()
    record = world.dir / "containers" / container_id / "exit.json"
    await until(lambda: '"run": 1' in record.read_text(), "the second run has ended")

    async def stopped() -> bool:
        return await world.status(container_id) == Status.STOPPED

    await until(stopped, "it stays stopped")
    await asyncio.sleep(0.3)
    assert '"run": 1' in record.read_text()
    await world.remove(container_id)


async def test_a_container_whose_shim_died_gets_a_new_one(world: World) -> None:
    async with Follower(world) as follower:
        container_id = await world.run("sleep", "100", labels=labels("always"))
        first = await world.get(container_id)
        (shim,) = world.shim_pids()
        os.kill(shim, signal.SIGKILL)
        await until(lambda: len(follower.of("/tasks/start")) == 2, "it runs again")
        assert decisions(follower) == [(True, 1)]
        again = await world.get(container_id)
        assert again.pid != first.pid
        assert again.status == Status.RUNNING
        assert world.shim_pids() != [shim]
    await world.remove(container_id)


async def test_a_restart_that_fails_is_given_up_and_told(world: World) -> None:
    async with Follower(world) as follower:
        container_id = await world.run("sh", "-c", "sleep 0.2; exit 1", labels=labels("always"))
        config = world.state / "moby" / container_id / "config.json"
        config.write_text(config.read_text().replace('"sh"', '"/no/such/program"'))
        await until(lambda: (False, 0) in decisions(follower), "it is given up")
        assert decisions(follower) == [(True, 1), (False, 0)]
    with pytest.raises(errdefs.NotFound):
        await world.delete("nothing")
    await world.delete(container_id)
    await world.remove(container_id)

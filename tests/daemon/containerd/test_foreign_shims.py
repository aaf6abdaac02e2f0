"""Shims that are not ours, driven as ours are: containerd's, with runc; and our own as containerd starts it,
which knows the newer answers, but tells no facts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import errdefs
import pytest
from pb.containerd.events import TaskExit
from pb.containerd.services.tasks.v1 import (
    DeleteProcessRequest,
    ExecProcessRequest,
    ListPidsRequest,
    PauseTaskRequest,
    ResumeTaskRequest,
    StartRequest,
)
from pb.containerd.v1.types import Status
from pb.google.protobuf import Any as AnyMessage

from tests.daemon.containerd.test_containerd_recovery import exits
from tests.daemon.containerd.test_containerd_tasks import ended
from tests.daemon.containerd.world import BIN, Follower, World, running, until
from tests.support.packages import unpacked

pytestmark = pytest.mark.root

EXITS = 'topic=="/tasks/exit"'


@pytest.fixture
def sockets() -> Iterator[None]:
    """containerd's shim has its sockets in a place that cannot be chosen."""
    places = [Path("/run/containerd"), Path("/run/containerd/s")]
    made = [place for place in places if not place.exists()]
    before = set(places[1].glob("*"))
    yield
    left = set(places[1].glob("*")) - before
    for place in reversed(made):
        with contextlib.suppress(FileNotFoundError):
            place.rmdir()
    assert not left


@pytest.fixture
async def foreign(
    request: pytest.FixtureRequest, rootfs: Path, tmp_path: Path, sockets: None
) -> AsyncIterator[World]:
    """A world in which the runtime that clients name by default is such a shim: `containerd`'s, `ours`, or a
    `silent` one, which is told of nobody to tell its events.
    """
    kind = getattr(request, "param", "containerd")
    shim = tmp_path / "containerd-shim-test-v1"
    if kind == "containerd":
        shim.symlink_to(unpacked("containerd") / "usr/bin/containerd-shim-runc-v2")
    else:
        environment = "env -u TTRPC_ADDRESS" if kind == "silent" else "env"
        options = '-sockets "$work/s" -runtime-root "$work/runc"'
        shim.write_text(
            f'#!/bin/sh\nwork=$(cd ../../.. && pwd)\nexec {environment} {BIN}/shim-svc {options} "$@"\n'
        )
        shim.chmod(0o755)
    config = tmp_path / "config.toml"
    config.write_text(
        f'version = 2\n[plugins."io.containerd.runtime.v2.task".shims]\n"io.containerd.runc.v2" = "{shim}"\n'
    )
    path = f"{unpacked('runc')}/usr/sbin:{os.environ['PATH']}"
    async with running(rootfs, {"PATH": path}, config=str(config)) as world:
        yield world
        assert list(world.state.glob("*/*")) == []
        await until(lambda: not list(world.sockets.iterdir()), "no socket is left")


@pytest.mark.parametrize("foreign", ["containerd", "ours", "silent"], indirect=True)
async def test_a_task_from_create_to_delete(foreign: World) -> None:
    output = foreign.dir / "out"
    async with Follower(foreign, "topic~=|^/tasks/|") as follower:
        container_id = await foreign.container(*foreign.gated("echo hi; exit 3"))
        created = await foreign.tasks.create(foreign.task_request(container_id, f"file://{output}"))
        assert await foreign.status(container_id) == Status.CREATED
        with pytest.raises(errdefs.AlreadyExists):
            await foreign.tasks.create(foreign.task_request(container_id))
        started = await foreign.tasks.start(StartRequest(container_id=container_id))
        assert started.pid == created.pid > 1
        await foreign.tasks.pause(PauseTaskRequest(container_id=container_id))
        assert await foreign.status(container_id) == Status.PAUSED
        await foreign.tasks.resume(ResumeTaskRequest(container_id=container_id))
        pids = await foreign.tasks.list_pids(ListPidsRequest(container_id=container_id))
        assert created.pid in [process.pid for process in pids.processes]
        await executed(foreign, container_id)
        foreign.open_gate()
        assert await foreign.wait(container_id) == 3
        stopped = await foreign.get(container_id)
        assert (stopped.status, stopped.exit_status, stopped.pid) == (Status.STOPPED, 3, created.pid)
        assert exits(follower) == [(container_id, 4), (container_id, 3)]
        assert await foreign.delete(container_id) == 3
        await until(lambda: told(follower), "all is told")
    assert output.read_text() == "hi\n"
    with pytest.raises(errdefs.NotFound, match=f"task {container_id} not found"):
        await foreign.get(container_id)
    await foreign.remove(container_id)


def told(follower: Follower) -> bool:
    """Whether the shim has told all of a task's life, or nothing but its ends, which were found out."""
    topics = [topic.removeprefix("/tasks/") for topic in follower.topics()]
    whole = ["create", "start", "paused", "resumed", "exec-added", "exec-started", "exit", "exit", "delete"]
    return topics in (whole, ["exit", "exit"])


async def executed(world: World, container_id: str) -> None:
    """An exec of the container is run, and ends with 4."""
    process = {"args": ["sh", "-c", "exit 4"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}}
    spec = AnyMessage(
        type_url="types.containerd.io/opencontainers/runtime-spec/1/Process",
        value=json.dumps(process).encode(),
    )
    await world.tasks.exec(ExecProcessRequest(container_id=container_id, exec_id="e", spec=spec))
    await world.tasks.start(StartRequest(container_id=container_id, exec_id="e"))
    assert await world.wait(container_id, "e") == 4
    done = await world.tasks.delete_process(DeleteProcessRequest(container_id=container_id, exec_id="e"))
    assert done.exit_status == 4


@pytest.mark.parametrize("foreign", ["containerd", "silent"], indirect=True)
async def test_a_restart_finds_it_and_tells_its_end_once(foreign: World) -> None:
    staying = await foreign.run("sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.05; done")
    ending = await foreign.run(*foreign.gated("exit 5"))
    before = await foreign.get(staying)
    async with Follower(foreign) as follower:
        marker = await foreign.container("true")
        await until(lambda: follower.seen, "an event")
        cursor = follower.cursor
    foreign.kill_daemon()
    foreign.open_gate()
    await until(
        lambda: ended(int((foreign.state / "moby" / ending / "init.pid").read_text())), "it has ended"
    )
    await foreign.restart_daemon()
    async with Follower(foreign, EXITS, after=cursor) as follower:
        assert await foreign.get(staying) == before
        assert await foreign.wait(ending) == 5
        assert await foreign.delete(ending) == 5
        await foreign.restart_daemon()
    async with Follower(foreign, EXITS, after=cursor) as follower:
        await executed(foreign, staying)
        await foreign.kill(staying, signal.SIGTERM)
        assert await foreign.wait(staying) == 7
        assert exits(follower) == [(ending, 5), (staying, 4), (staying, 7)]
        assert await foreign.delete(staying) == 7
    for container_id in (staying, ending, marker):
        await foreign.remove(container_id)


async def test_a_killed_shim_is_noticed(foreign: World) -> None:
    one, other = await foreign.run("sleep", "100"), await foreign.run("sleep", "100")
    pid = (await foreign.get(one)).pid
    async with Follower(foreign, "topic~=|^/tasks/|") as follower:
        os.kill(shim_of(foreign, one), signal.SIGKILL)
        await until(lambda: "/tasks/delete" in follower.topics(), "the deletion is told")
        assert exits(follower) == [(one, 137)]
    await until(lambda: ended(pid), "its process has ended")
    await until(lambda: not (foreign.state / "moby" / one).exists(), "its bundle is gone")
    foreign.kill_daemon()
    os.kill(shim_of(foreign, other), signal.SIGKILL)
    await foreign.restart_daemon()
    await until(lambda: not (foreign.state / "moby" / other).exists(), "the other's too")
    for container_id in (one, other):
        await foreign.remove(container_id)


async def stopped(world: World, container_id: str) -> bool:
    return await world.status(container_id) == Status.STOPPED


def shim_of(world: World, container_id: str) -> int:
    return int((world.state / "moby" / container_id / "shim.pid").read_text())


async def test_what_cannot_be_created_leaves_nothing(foreign: World) -> None:
    container_id = await foreign.container("true")
    request = foreign.task_request(container_id)
    request.rootfs[0].source = "/no/such"
    for _ in range(2):
        with pytest.raises(errdefs.BuoyError, match=r"failed to create shim task: .*no such file"):
            await foreign.tasks.create(request)
        assert not (foreign.state / "moby" / container_id).exists()
    await foreign.remove(container_id)


async def test_restarts_by_policy(foreign: World) -> None:
    labels = {"containerd.io/restart.status": "running", "containerd.io/restart.policy": "on-failure:2"}
    async with Follower(foreign, EXITS) as follower:
        container_id = await foreign.run("sh", "-c", "exit 6", labels=labels)
        await until(lambda: len(exits(follower)) == 3, "it has run three times")
        await until(lambda: stopped(foreign, container_id), "it is over")
        assert exits(follower) == [(container_id, 6)] * 3
    await foreign.remove(container_id)


async def test_an_event_by_the_command_that_shims_are_told_of(foreign: World) -> None:
    exited = TaskExit(container_id="elsewhere", id="elsewhere", pid=9, exit_status=4)
    event = AnyMessage(type_url="containerd.events.TaskExit", value=bytes(exited))
    command = [str(BIN / "containerd-svc"), "--address", foreign.address, "publish", "--namespace", "moby"]
    async with Follower(foreign, EXITS) as follower:
        for options, code in (([], 1), (["--topic", "/tasks/exit"], 0)):
            process = await asyncio.create_subprocess_exec(*command, *options, stdin=asyncio.subprocess.PIPE)
            await process.communicate(bytes(event))
            assert process.returncode == code
        await until(lambda: follower.seen, "it is told")
        assert exits(follower) == [("elsewhere", 4)]

"""A container's life in a shim that the nursery forked: states, facts, records, errors."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import errdefs
import pytest
from pb.containerd.events import TaskExit
from pb.containerd.task import v2 as task
from pb.containerd.types import Mount
from pb.containerd.v1.types import Status
from pb.google.protobuf import Any as PbAny

from tests.kernel.shim.harness import (
    Box,
    gone,
    make_rootfs,
    read_all,
    unframe,
    until,
    writers,
)

pytestmark = pytest.mark.root

TASK_TOPICS = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children]


async def test_from_create_to_shutdown(box: Box) -> None:
    box.write(["sh", "-c", "echo out; echo err >&2; exit 3"])
    await box.shim()
    pid = await box.create()
    assert (await box.state()).status == Status.CREATED
    assert Path(f"/proc/{pid}").exists()
    client = box.attach(attach_id="a")
    assert await box.start() == pid
    assert await box.wait() == 3
    record = box.record()
    assert (record["exit_status"], record["pid"], record["run"], record["oom_killed"]) == (3, pid, 0, False)
    assert record["started_at"] < record["exited_at"]
    state = await box.state()
    assert (state.status, state.exit_status, state.pid) == (Status.STOPPED, 3, pid)
    with client:
        assert unframe(await asyncio.to_thread(read_all, client)) == {1: b"out\n", 2: b"err\n"}
    assert sorted(box.log_entries()) == [("stderr", "err\n"), ("stdout", "out\n")]
    assert await box.delete() == 3
    facts = await box.facts()
    assert [fact.topic for fact in facts] == TASK_TOPICS
    assert [fact.seq for fact in facts] == [1, 2, 3, 4]
    times = [fact.timestamp for fact in facts if fact.timestamp is not None]
    assert times == sorted(set(times))
    assert facts[2].event is not None
    exit_ = TaskExit.parse(facts[2].event.value)
    assert (exit_.id, exit_.container_id, exit_.exit_status) == (box.id, box.id, 3)
    assert not os.path.ismount(box.bundle / "rootfs")
    assert not (box.place.runtime_root / "moby" / box.id).exists()
    await box.shutdown()
    await until(lambda: gone(box.shim_pid))
    assert not Path(box.attach_path).exists()
    assert list(box.place.sockets.iterdir()) == []


async def test_the_same_shim_runs_the_task_again(box: Box) -> None:
    for run in range(3):
        if run == 0:
            box.write(["sh", "-c", f"echo {run}; exit {run}"])
            await box.shim()
        await box.create()
        await box.start()
        assert await box.wait() == 0
        await box.delete()
        assert box.record()["run"] == run
    assert [fact.topic for fact in await box.facts()] == TASK_TOPICS * 3
    assert [text for _, text in box.log_entries()] == ["0\n"] * 3


async def test_a_signal_is_the_exit_status(box: Box) -> None:
    box.write(["sleep", "1000"])
    await box.shim()
    await box.create()
    await box.start()
    await box.kill(signal.SIGKILL)
    assert await box.wait() == 137
    with pytest.raises(errdefs.NotFound, match="process already finished"):
        await box.kill()


async def test_a_created_container_can_be_killed_and_deleted(box: Box) -> None:
    box.write(["sleep", "1000"])
    await box.shim()
    await box.create()
    await box.kill(signal.SIGKILL)
    assert await box.wait() == 137
    await box.delete()
    topics = [fact.topic for fact in await box.facts()]
    assert topics == ["/tasks/create", "/tasks/exit", "/tasks/delete"]


async def test_what_the_runtime_says_reaches_the_caller_and_nothing_is_left(box: Box) -> None:
    box.write(["/no/such/program"])
    await box.shim()
    with pytest.raises(errdefs.Internal) as caught:
        await box.create()
    text = caught.value.message
    assert text.startswith("OCI runtime create failed: runc create failed: unable to start container process")
    assert 'exec: "/no/such/program": stat /no/such/program: no such file or directory' in text
    assert not os.path.ismount(box.bundle / "rootfs")
    with pytest.raises(errdefs.NotFound, match="container not created"):
        await box.state()
    box.write(["true"])
    await box.create()  # the shim is as good as new
    await box.start()
    assert await box.wait() == 0


async def test_a_mount_that_fails_is_told_and_undone(box: Box) -> None:
    box.write(["true"])
    await box.shim()
    mounts = [Mount(type="bind", source=str(box.place.rootfs), options=["rbind"])]
    with pytest.raises(errdefs.Internal, match="failed to mount rootfs component"):
        await box.create(rootfs=[*mounts, Mount(type="bind", source="/no/such", options=["rbind"])])
    assert not os.path.ismount(box.bundle / "rootfs")


async def test_an_overlay_of_more_layers_than_fit_into_a_page(box: Box) -> None:
    layers = []
    base = box.place.root / ("long" * 40)
    for number in range(60):
        layer = base / str(number) / "fs"
        layer.mkdir(parents=True)
        layers.append(str(layer))
    make_rootfs(base / "busybox")
    for name in ("upper", "work"):
        (box.place.root / name).mkdir()
    options = [
        f"workdir={box.place.root}/work",
        f"upperdir={box.place.root}/upper",
        f"lowerdir={':'.join([str(base / 'busybox'), *layers])}",
    ]
    box.write(["sh", "-c", "echo written > /file"])
    await box.shim()
    await box.create(rootfs=[Mount(type="overlay", source="overlay", options=options)])
    await box.start()
    assert await box.wait() == 0
    await box.delete()
    assert (box.place.root / "upper" / "file").read_text() == "written\n"


async def test_retries_do_no_harm(box: Box) -> None:
    box.write(["sleep", "1000"])
    await box.shim()
    await box.create()
    with pytest.raises(errdefs.AlreadyExists):
        await box.create()
    await box.start()
    with pytest.raises(errdefs.FailedPrecondition, match="cannot start a running process"):
        await box.start()
    with pytest.raises(errdefs.FailedPrecondition, match="cannot delete a running process"):
        await box.delete()
    await box.shutdown()  # it has a task: nothing
    assert (await box.state()).status == Status.RUNNING
    await box.kill()
    await box.wait()
    await box.delete()
    with pytest.raises(errdefs.NotFound):
        await box.delete()


async def test_a_caller_that_goes_away_does_not_stop_a_create(box: Box) -> None:
    box.write(["sleep", "1000"])
    await box.shim()
    assert box.client is not None
    create = asyncio.ensure_future(box.create())
    await asyncio.sleep(0.005)
    await box.client.close()
    with pytest.raises(errdefs.Unavailable):
        await create
    await box.connect()
    with pytest.raises(errdefs.AlreadyExists):
        await box.create()
    state = await box.state()
    assert (state.status, state.pid > 0) == (Status.CREATED, True)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"id": "other"}, errdefs.InvalidArgument),
        ({"bundle": "/tmp"}, errdefs.InvalidArgument),
        ({"checkpoint": "/x"}, errdefs.InvalidArgument),
        ({"stdout": "ftp://x"}, errdefs.InvalidArgument),
        ({"stdout": "relative"}, errdefs.InvalidArgument),
        ({"stderr": "attach:///elsewhere.a"}, errdefs.InvalidArgument),
        ({"stdout": f"attach:///{'x' * 108}", "stderr": ""}, errdefs.InvalidArgument),
    ],
)
async def test_a_bad_create_is_refused_before_anything_is_done(
    box: Box, changes: dict[str, Any], kind: type[errdefs.BuoyError]
) -> None:
    box.write(["true"])
    await box.shim()
    before = sorted(path.name for path in box.bundle.iterdir())
    with pytest.raises(kind):
        await box.create(**changes)
    assert sorted(path.name for path in box.bundle.iterdir()) == before
    assert not (box.folder / "exit.json").exists()
    await box.create()


async def test_exec(box: Box) -> None:
    box.write(["sleep", "1000"])
    await box.shim()
    await box.create()
    await box.start()
    await box.facts()
    await box.exec("one", ["sh", "-c", "cat; echo done >&2; exit 5"], stdin=True)
    with pytest.raises(errdefs.AlreadyExists):
        await box.exec("one", ["true"])
    client = box.attach(exec_id="one", attach_id="x", stdin=True, stdin_once=True, leading_input=b"first ")
    pid = await box.start("one")
    state = await box.state("one")
    assert (state.status, state.pid, state.exec_id) == (Status.RUNNING, pid, "one")
    client.sendall(b"second")
    client.shutdown(1)
    assert await box.wait("one") == 5
    with client:
        output = unframe(await asyncio.to_thread(read_all, client))
    assert output == {1: b"first second", 2: b"done\n"}
    assert await box.delete("one") == 5
    with pytest.raises(errdefs.NotFound, match="process does not exist one"):
        await box.state("one")
    facts = await box.facts()
    assert [fact.topic for fact in facts] == ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"]
    assert facts[2].event is not None
    assert TaskExit.parse(facts[2].event.value).id == "one"


async def test_an_exec_that_cannot_run(box: Box) -> None:
    box.write(["sleep", "1000"])
    await box.shim()
    await box.create()
    await box.start()
    await box.exec("bad", ["nosuchcmd"])
    with pytest.raises(errdefs.Internal) as caught:
        await box.start("bad")
    assert caught.value.message == (
        "OCI runtime exec failed: exec failed: unable to start container process: "
        'exec: "nosuchcmd": executable file not found in $PATH'
    )
    await box.delete("bad")
    assert (await box.state()).status == Status.RUNNING


async def test_execs_end_before_init_is_told(box: Box) -> None:
    box.write(["sh", "-c", "trap 'exit 9' TERM; while :; do sleep 0.05; done"])
    await box.shim()
    await box.create()
    await box.start()
    for name in ("a", "b", "c"):
        await box.exec(name, ["sleep", "1000"])
        await box.start(name)
    await box.facts()
    await box.kill(signal.SIGTERM)
    assert await box.wait() == 9
    exits = [fact for fact in await box.facts() if fact.topic == "/tasks/exit"]
    ids = [TaskExit.parse(fact.event.value).id for fact in exits if fact.event is not None]
    assert sorted(ids[:3]) == ["a", "b", "c"]
    assert ids[3] == box.id
    with pytest.raises(errdefs.FailedPrecondition):
        await box.exec("late", ["true"])


async def test_a_container_in_the_hosts_pid_namespace_takes_its_processes_along(box: Box) -> None:
    namespaces = [{"type": kind} for kind in ("mount", "ipc", "uts")]
    box.write(["sh", "-c", "sleep 1000 & echo $!; exec sleep 0.2"], namespaces=namespaces)
    await box.shim()
    await box.create()
    await box.start()
    assert await box.wait() == 0
    child = int(box.log_entries()[0][1])
    await until(lambda: gone(child))
    # killed, then reaped
    await until(lambda: descendants(box.shim_pid) == writers(box.shim_pid))


async def test_orphans_are_reaped(box: Box) -> None:
    namespaces = [{"type": kind} for kind in ("mount", "ipc", "uts")]
    script = "(sleep 0.05 &) ; (sleep 0.06 &) ; sleep 0.4; exec sleep 1000"
    box.write(["sh", "-c", script], namespaces=namespaces)
    await box.shim()
    await box.create()
    pid = await box.start()
    await until(lambda: set(descendants(box.shim_pid)) == {pid, *writers(box.shim_pid)})


async def test_pause_and_resume(box: Box) -> None:
    box.write(["sleep", "1000"])
    await box.shim()
    await box.create()
    with pytest.raises(errdefs.FailedPrecondition):
        await box.call("Pause", task.PauseRequest(id=box.id))
    await box.start()
    await box.call("Pause", task.PauseRequest(id=box.id))
    assert (await box.state()).status == Status.PAUSED
    with pytest.raises(errdefs.FailedPrecondition, match="cannot exec in a paused process"):
        await box.exec("x", ["true"])
    await box.call("Resume", task.ResumeRequest(id=box.id))
    assert (await box.state()).status == Status.RUNNING
    topics = [fact.topic for fact in await box.facts()]
    assert topics[-2:] == ["/tasks/paused", "/tasks/resumed"]
    await box.call("Pause", task.PauseRequest(id=box.id))
    await box.kill(signal.SIGKILL)
    assert await box.wait() == 137


async def test_pids_name_the_execs(box: Box) -> None:
    box.write(["sleep", "1000"])
    await box.shim()
    await box.create()
    pid = await box.start()
    await box.exec("one", ["sleep", "1000"])
    other = await box.start("one")
    reply = await box.call("Pids", task.PidsRequest(id=box.id), task.PidsResponse)
    assert {process.pid for process in reply.processes} == {pid, other}
    assert [bool(process.info) for process in reply.processes if process.pid == other] == [True]


async def test_out_of_memory(box: Box) -> None:
    limit = {"memory": {"limit": 16 << 20, "swap": 16 << 20}}
    box.write(["sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1; exit $?"], resources=limit)
    await box.shim()
    await box.create()
    await box.start()
    status = await box.wait()
    assert status in (137, 1)
    assert box.record()["oom_killed"] is True
    topics = [fact.topic for fact in await box.facts()]
    assert topics.index("/tasks/oom") < topics.index("/tasks/exit")


async def test_a_limit_that_the_shim_itself_is_above(box: Box) -> None:
    limit = {"memory": {"limit": 6 << 20, "swap": 6 << 20}}
    box.write(["sh", "-c", "exit 7"], resources=limit)
    await box.shim()
    await box.create()
    await box.start()
    assert await box.wait() == 7
    assert box.record()["oom_killed"] is False


async def test_sigterm_ends_only_a_shim_without_a_task(box: Box) -> None:
    box.write(["sleep", "1000"])
    await box.shim()
    await box.create()
    await box.start()
    os.kill(box.shim_pid, signal.SIGTERM)
    reply = await box.call("Connect", task.ConnectRequest(id=box.id), task.ConnectResponse)
    assert reply.shim_pid == box.shim_pid
    await box.kill()
    await box.wait()
    await box.delete()
    os.kill(box.shim_pid, signal.SIGTERM)
    await until(lambda: gone(box.shim_pid))


async def test_what_a_shim_is_made_of(box: Box) -> None:
    """One thread, its own session, its own title, no descriptor of the nursery's, nothing leaked to init."""
    box.write(["sh", "-c", "cat /proc/self/status; ls -l /proc/1/fd; sleep 1000"])
    await box.shim()
    await box.create()
    pid = await box.start()
    status = Path(f"/proc/{box.shim_pid}/status").read_text()
    assert "Threads:\t1\n" in status
    assert "Name:\tshim-svc\n" in status
    title = Path(f"/proc/{box.shim_pid}/cmdline").read_bytes().rstrip(b"\0")
    assert title == f"shim-svc -namespace moby -id {box.id}".encode()
    assert os.getsid(box.shim_pid) != os.getsid(0)
    assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] == str(box.shim_pid)
    assert os.readlink(f"/proc/{box.shim_pid}/cwd") == str(box.bundle)
    assert len(os.listdir(f"/proc/{pid}/fd")) == 3
    text = await until(lambda: "CapBnd" in box.log.read_text() and box.log.read_text())
    lines = [json.loads(line)["log"] for line in text.splitlines()]
    signals = {line.split()[0]: line.split()[1] for line in lines if line.startswith("Sig")}
    assert signals["SigBlk:"] == "0" * 16
    # The C library keeps 32 and 33 to itself: what posix_spawn (make's) left ignored no program can reset.
    assert int(signals["SigIgn:"], 16) & ~(0b11 << 31) == 0
    inherited = os.listdir(f"/proc/{box.shim_pid}/fd")
    assert len(inherited) < 20


async def test_facts_wait_for_news(box: Box) -> None:
    box.write(["sleep", "1000"])
    await box.shim()
    assert await box.facts(wait_ms=20) == []
    waiting = asyncio.ensure_future(box.facts(wait_ms=5000))
    await asyncio.sleep(0.01)
    await box.create()
    assert [fact.topic for fact in await waiting] == ["/tasks/create"]
    box.epoch = "of another shim"
    assert [fact.seq for fact in await box.facts()] == [1]


@pytest.mark.parametrize("service", ["containerd.task.v2.Task", "containerd.task.v3.Task"])
async def test_grpc_on_the_same_socket(box: Box, service: str) -> None:
    from rpc.grpc import Channel

    box.write(["true"])
    await box.shim()
    channel = Channel(box.address.removeprefix("unix://"))
    stub = task.TaskStub(channel)
    reply = await stub._unary_unary(
        f"/{service}/Connect", task.ConnectRequest(id=box.id), task.ConnectResponse
    )
    assert reply.shim_pid == box.shim_pid
    with pytest.raises(errdefs.NotFound):
        await stub._unary_unary(f"/{service}/State", task.StateRequest(id=box.id), task.StateResponse)
    channel.close()


async def test_limits_are_changed(box: Box) -> None:
    box.write(["sh", "-c", "read x"], resources={"pids": {"limit": 50}})
    await box.shim()
    await box.create(stdin=True)
    pid = await box.start()
    resources = PbAny(type_url="types.containerd.io/x", value=json.dumps({"pids": {"limit": 70}}).encode())
    await box.call("Update", task.UpdateTaskRequest(id=box.id, resources=resources))
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    paths = [line.split(":", 2)[2] for line in lines if "pids" in line.split(":")[1]]
    folder = f"/sys/fs/cgroup/pids{paths[0]}" if paths else f"/sys/fs/cgroup{lines[-1].split('::')[1]}"
    assert Path(f"{folder}/pids.max").read_text().strip() == "70"

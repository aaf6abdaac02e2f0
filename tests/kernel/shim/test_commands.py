"""containerd's contract for the command: start, delete, -info, -v; events to a containerd that wants them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from pathlib import Path

import pytest
from pb.containerd.services.events.ttrpc.v1 import EventsBase, ForwardRequest
from pb.containerd.task import v2 as task
from pb.google.protobuf import Empty
from rpc import ttrpc
from shim_svc.bundle import start_answer

from tests.kernel.shim.harness import Box, gone, until

pytestmark = pytest.mark.root


async def start(box: Box, **environ: str) -> None:
    """`shim-svc … start` instead of the nursery."""
    done = await asyncio.to_thread(box.command, "start", env={**os.environ, **environ})
    assert done.returncode == 0, done.stderr
    box.address = (box.bundle / "address").read_text()
    assert done.stdout.decode().strip() == start_answer(box.address, environ)
    assert (box.bundle / "bootstrap.json").read_text() == start_answer(box.address, {})
    box.shim_pid = int((box.bundle / "shim.pid").read_text())
    await box.connect()


@pytest.mark.parametrize(
    ("environ", "answer"),
    [
        ({}, '{"version":3,"address":"unix:///a.t","protocol":"ttrpc"}'),
        ({"MAX_SHIM_VERSION": "4"}, '{"version":3,"address":"unix:///a.t","protocol":"ttrpc"}'),
        (
            {"MAX_SHIM_VERSION": "2", "TTRPC_ADDRESS": "/c.ttrpc"},
            '{"version":2,"address":"unix:///a.t","protocol":"ttrpc"}',
        ),
        ({"TTRPC_ADDRESS": "/c.ttrpc"}, "unix:///a.t"),
    ],
)
def test_each_containerd_gets_the_answer_that_it_reads(environ: dict[str, str], answer: str) -> None:
    assert start_answer("unix:///a.t", environ) == answer


async def test_a_containerd_that_knows_no_version_of_ours(box: Box) -> None:
    box.write(["true"])
    environ = os.environ | {"MAX_SHIM_VERSION": "1"}
    done = await asyncio.to_thread(box.command, "start", env=environ)
    assert done.returncode == 1
    assert b"MAX_SHIM_VERSION '1': no version that this shim serves" in done.stderr
    assert not (box.bundle / "shim.pid").exists()


async def test_start_forks_a_shim_by_itself(box: Box) -> None:
    box.write(["sh", "-c", "echo hi; exit 2"])
    await start(box)
    pid = box.shim_pid
    await start(box)  # once more: the same
    assert box.shim_pid == pid
    title = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
    assert title == f"shim-svc -namespace moby -id {box.id} -address /none.sock"
    await box.create()
    await box.start()
    assert await box.wait() == 2
    await box.delete()
    await box.shutdown()
    await until(lambda: gone(pid))


async def test_a_containerd_that_is_a_service_keeps_its_readiness_to_itself(box: Box) -> None:
    box.write(["sh", "-c", 'echo "[$NOTIFY_SOCKET]"; ls -d /run/notify 2>&1'])
    await start(box, NOTIFY_SOCKET="/run/nobody/notify")
    await box.create()
    await box.start()
    assert await box.wait() != 0
    assert [text for _, text in box.log_entries()][:1] == ["[]\n"]
    await box.delete()
    await box.shutdown()


async def test_delete_cleans_up_behind_a_killed_shim(box: Box) -> None:
    box.write(["sleep", "1000"])
    await box.shim()
    await box.create()
    pid = await box.start()
    os.kill(box.shim_pid, signal.SIGKILL)
    await until(lambda: gone(box.shim_pid))
    assert not gone(pid)
    response = await asyncio.to_thread(box.delete_command)
    assert (response.exit_status, response.pid) == (137, pid)
    await until(lambda: gone(pid))
    assert not os.path.ismount(box.bundle / "rootfs")
    assert not Path(box.address.removeprefix("unix://")).exists()
    assert not (box.place.runtime_root / "moby" / box.id).exists()


async def test_delete_knows_an_exit_that_is_on_record(box: Box) -> None:
    assert await box.run(["sh", "-c", "exit 5"]) == 5
    os.kill(box.shim_pid, signal.SIGKILL)
    response = await asyncio.to_thread(box.delete_command)
    assert response.exit_status == 5
    assert response.exited_at is not None
    assert box.record()["exited_at"].startswith(response.exited_at.strftime("%Y-%m-%dT%H:%M:%S.%f"))


async def test_delete_ends_a_shim_that_hangs(box: Box) -> None:
    box.write(["sleep", "1000"])
    await box.shim()
    await box.create()
    os.kill(box.shim_pid, signal.SIGSTOP)
    await asyncio.to_thread(box.delete_command)
    await until(lambda: gone(box.shim_pid))


async def test_delete_of_what_never_was(box: Box) -> None:
    box.write(["true"])
    response = await asyncio.to_thread(box.delete_command)
    assert response.exit_status == 137


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["-v"], 0, b"Version:"),
        (["-info"], 0, b"io.containerd.buoy.v1"),
        (["-nonsense"], 1, b"flag provided but not defined: -nonsense"),
        ([], 1, b"no action"),
        (["frobnicate"], 1, b"unknown action 'frobnicate'"),
        (["-id"], 1, b"flag needs an argument: -id"),
    ],
)
async def test_the_command_line(box: Box, words: list[str], code: int, text: bytes) -> None:
    box.write(["true"])
    done = await asyncio.to_thread(box.command, *words)
    assert done.returncode == code
    assert text in done.stdout + done.stderr


class Events(EventsBase):
    """The end of Forward that a real containerd has."""

    def __init__(self) -> None:
        self.topics: list[str] = []
        self.namespaces: set[str] = set()

    async def forward(self, message: ForwardRequest) -> Empty:
        assert message.envelope is not None
        self.topics.append(message.envelope.topic)
        self.namespaces.add(message.envelope.namespace)
        return Empty()


async def test_events_are_published_to_a_real_containerd_even_when_it_is_late(box: Box) -> None:
    path = box.place.root / f"{box.id[:8]}.sock"
    box.write(["true"])
    await start(box, TTRPC_ADDRESS=str(path))
    await box.create()
    await box.start()
    await box.wait()
    events = Events()
    server = ttrpc.Server([events])
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as sock:
        sock.bind(str(path))
        await server.serve(sock)
        await box.delete()
        await until(lambda: len(events.topics) == 4)
        assert events.topics == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
        assert events.namespaces == {"moby"}
        await box.shutdown()
        await until(lambda: gone(box.shim_pid))
        await server.close()


@pytest.mark.skipif(shutil.which("runc") is None, reason="no runc on this host")
async def test_another_runtime_by_its_command_line(box: Box) -> None:
    box.runtime = "runc"
    box.write(["sh", "-c", "read x; echo got $x; exit 9"])
    await box.shim()
    await box.create(stdin=True)
    with box.attach(attach_id="1", stdin=True, stdin_once=True) as client:
        await box.start()
        await box.exec("e", ["sh", "-c", "exit 4"])
        await box.start("e")
        assert await box.wait("e") == 4
        reply = await box.call("Pids", task.PidsRequest(id=box.id), task.PidsResponse)
        assert len(reply.processes) == 1
        client.sendall(b"it\n")
        assert await box.wait() == 9
    assert box.log_entries() == [("stdout", "got it\n")]
    await box.delete()
    box.write(["/nosuch"])
    with pytest.raises(Exception, match="OCI runtime create failed: runc create failed: unable to start"):
        await box.create()


async def test_a_runtime_that_is_not_there(box: Box) -> None:
    box.runtime = "no-such-runtime"
    box.write(["true"])
    await box.shim()
    with pytest.raises(Exception, match=r'exec: "no-such-runtime": executable file not found in \$PATH'):
        await box.create()

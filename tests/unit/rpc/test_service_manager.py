"""rpc.service_manager against a socket that stands where the manager's is."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import errdefs
import pytest
from rpc import service_manager

SERVICES = str(Path(__file__).parents[3] / "services")


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def receive(manager: socket.socket) -> tuple[str, list[int]]:
    data, ancillary, _, _ = manager.recvmsg(4096, socket.CMSG_SPACE(16 * 4))
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds += array.array("i", payload[: len(payload) // 4 * 4])
    return data.decode(), fds


def test_ready_and_stopping_are_told(manager: socket.socket) -> None:
    service_manager.ready("three tasks")
    assert receive(manager)[0].splitlines() == ["READY=1", "STATUS=three tasks"]
    service_manager.stopping()
    assert receive(manager)[0] == "STOPPING=1"


async def test_stored_descriptors_arrive_in_order_before_the_call_returns(manager: socket.socket) -> None:
    pair = os.pipe()
    storing = asyncio.create_task(service_manager.store_fds("stream-1", pair))
    text, fds = await asyncio.to_thread(receive, manager)
    assert text == "FDSTORE=1\nFDNAME=stream-1"
    assert [os.fstat(a).st_ino == os.fstat(b).st_ino for a, b in zip(fds, pair, strict=True)] == [True, True]
    text, ends = await asyncio.to_thread(receive, manager)
    assert text == "BARRIER=1"
    assert not storing.done()
    for fd in (*fds, *ends, *pair):
        os.close(fd)
    assert await storing is True
    service_manager.remove_fds("stream-1")
    assert receive(manager)[0] == "FDSTOREREMOVE=1\nFDNAME=stream-1"


async def test_a_manager_that_does_not_answer_is_unavailable(manager: socket.socket) -> None:
    with pytest.raises(errdefs.Unavailable):
        await service_manager.barrier(timeout=0.05)


async def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    service_manager.ready()
    assert await service_manager.store_fds("a", [0]) is False
    await service_manager.barrier()
    await service_manager.watchdog()


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "x" * 256])
async def test_a_name_that_the_protocol_cannot_carry_is_refused(manager: socket.socket, name: str) -> None:
    with pytest.raises(errdefs.InvalidArgument):
        await service_manager.store_fds(name, [0])


async def test_the_watchdog_is_fed(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    task = asyncio.create_task(service_manager.watchdog())
    for _ in range(3):
        assert (await asyncio.to_thread(receive, manager))[0] == "WATCHDOG=1"
    task.cancel()


def test_passed_descriptors_come_by_name_and_only_once(tmp_path: Path) -> None:
    script = (
        "import os; os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "from rpc import service_manager as m\n"
        "fds = m.listen_fds(); print(fds, m.listen_fds(), 'LISTEN_FDS' in os.environ)\n"
        "print([os.get_inheritable(f) for v in fds.values() for f in v])\n"
    )
    read_end, write_end = os.pipe()

    def passing() -> None:
        a, b = os.dup(read_end), os.dup(write_end)
        for number, fd in enumerate((a, b, a)):
            os.dup2(fd, 3 + number)

    done = subprocess.run(
        [sys.executable, "-c", script],
        env={
            "PYTHONPATH": SERVICES,
            "LISTEN_FDS": "3",
            "LISTEN_FDNAMES": "stream-1:containerd.sock:stream-1",
        },
        preexec_fn=passing,
        close_fds=False,
        capture_output=True,
        text=True,
        check=True,
    )
    os.close(read_end)
    os.close(write_end)
    assert done.stdout.splitlines() == [
        "{'stream-1': [3, 5], 'containerd.sock': [4]} {} False",
        "[False, False, False]",
    ]


def test_a_listening_socket_replaces_a_dead_one_and_respects_a_living_one(tmp_path: Path) -> None:
    path = str(tmp_path / "run" / "s")
    first = service_manager.listening_socket({}, "s", path)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    with pytest.raises(errdefs.FailedPrecondition, match="listens"):
        service_manager.listening_socket({}, "s", path)
    first.close()
    service_manager.listening_socket({}, "s", path).close()
    with pytest.raises(errdefs.InvalidArgument, match="107"):
        service_manager.listening_socket({}, "s", "/" + "x" * 107)

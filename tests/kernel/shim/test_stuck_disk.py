"""A disk that hangs: a file system is frozen (FIFREEZE), so that writes to it wait until it is thawed."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import errdefs
import pytest
from linux.syscalls import umount2
from pb.containerd.v1.types import Status

from tests.kernel.shim.harness import Box, Place, check_gap, read_all, until, writers

pytestmark = pytest.mark.root

FIFREEZE = 0xC0045877  # linux/fs.h
FITHAW = 0xC0045878


class Disk:
    """A small file system of its own, that can be frozen."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)

    def freeze(self) -> None:
        fcntl.ioctl(self._fd, FIFREEZE, 0)

    def thaw(self) -> None:
        """Thaw it, if it is frozen."""
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._fd, FITHAW, 0)

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture(scope="module")
def mounted(place: Place) -> Iterator[Disk]:
    image, folder = place.root / "disk.img", place.root / "disk"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    for command in (["mkfs.ext4", "-q", "-F", str(image)], ["mount", "-o", "loop", str(image), str(folder)]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
        except FileNotFoundError:
            pytest.skip(f"no {command[0]} on this host")
        if done.returncode:
            pytest.skip(f"no loop-mounted ext4 on this host: {done.stderr.strip()}")
    disk = Disk(folder)
    try:
        yield disk
    finally:
        disk.thaw()
        disk.close()
        umount2(str(folder))


@pytest.fixture
async def disk(mounted: Disk, box: Box) -> AsyncIterator[Disk]:
    """The disk, with the box's container folder on it; thawed at the end, whatever came."""
    box.folder = mounted.folder / box.id
    box.folder.mkdir()
    box.log = box.folder / "x.log"
    try:
        yield mounted
    finally:
        mounted.thaw()
        await box.clean()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


async def stuck(box: Box) -> None:
    """Wait until a writer waits for the disk."""
    await until(lambda: any(state_of(pid) == "D" for pid in writers(box.shim_pid)))


def receive_until(client: object, text: bytes) -> bytes:
    data = b""
    while text not in data:
        chunk = client.recv(65536)  # type: ignore[attr-defined]
        assert chunk, data[-100:]
        data += chunk
    return bytes(data)


async def answers_at_once(box: Box, number: int) -> None:
    """State, an exec with its output, an attach: each well below a second."""
    begun = time.monotonic()
    assert (await box.state()).status == Status.RUNNING
    assert time.monotonic() - begun < 1
    name = f"probe{number}"
    await box.exec(name, ["echo", "here"])
    with box.attach(attach_id=name, exec_id=name, multiplexed=False) as client:
        await box.start(name)
        assert await asyncio.to_thread(read_all, client) == b"here\n"
    assert await box.wait(name) == 0
    assert time.monotonic() - begun < 2
    await box.delete(name)


async def test_a_stuck_disk_stops_neither_the_container_nor_its_shim(box: Box, disk: Disk) -> None:
    script = "seq 1 10; read x; seq 11 20; read x; seq 21 60000; read x; seq 60001 60010; exit 5"
    box.write(["sh", "-c", script])
    await box.shim()
    await box.create(stdin=True)
    with box.attach(attach_id="1", stdin=True, multiplexed=False) as client:
        await box.start()
        await until(lambda: len(box.log_entries()) == 10)
        disk.freeze()
        client.sendall(b"go\n")
        await asyncio.to_thread(receive_until, client, b"\n20\n")
        await stuck(box)
        await answers_at_once(box, 1)
        # More than the queue holds: the container waits for a moment, then lines are dropped.
        client.sendall(b"go\n")
        await asyncio.to_thread(receive_until, client, b"\n60000\n")
        await answers_at_once(box, 2)
        assert len(box.log_entries()) == 10
        disk.thaw()
        await until(lambda: "are missing here" in box.log.read_text())
        client.sendall(b"go\n")
        await asyncio.to_thread(receive_until, client, b"60010\n")
        assert await box.wait() == 5
    check_gap([text for _, text in box.log_entries()], 60010)
    assert box.record()["exit_status"] == 5


async def test_an_exit_is_told_when_it_is_on_record(box: Box, disk: Disk) -> None:
    """The disk hangs when the container ends: the shim answers, the exit is told after the thaw."""
    box.write(["sh", "-c", "seq 1 10; read x; seq 11 100; exit 6"])
    await box.shim()
    pid = await box.create(stdin=True)
    with box.attach(attach_id="1", stdin=True, multiplexed=False) as client:
        await box.start()
        await until(lambda: len(box.log_entries()) == 10)
        disk.freeze()
        waiting = asyncio.create_task(box.wait())
        client.sendall(b"go\n")
        await asyncio.to_thread(receive_until, client, b"\n100\n")
        await until(lambda: not Path(f"/proc/{pid}").exists())
        with box.attach(attach_id="2", logs=True, stream=False, multiplexed=False) as reader:
            lines = (await asyncio.to_thread(read_all, reader)).split()
        assert [int(line) for line in lines] == list(range(1, 101))
        assert (await box.state()).status == Status.RUNNING
        with pytest.raises(errdefs.NotFound):
            await box.kill(signal.SIGTERM)
        assert not waiting.done()
        assert not (box.folder / "exit.json").exists()
        disk.thaw()
        assert await waiting == 6
    assert [int(text) for _, text in box.log_entries()] == list(range(1, 101))
    assert box.record()["exit_status"] == 6


async def test_a_backlog_does_not_wait_for_the_disk(box: Box, disk: Disk) -> None:
    """The backlog of a client that does not read: in memory while the disk hangs, moved there after."""
    box.write(
        ["sh", "-c", "read x; dd if=/dev/zero bs=1M count=25 2>/dev/null; read x; exit 4"], driver="none"
    )
    await box.shim()
    await box.create(stdin=True)
    stopped = box.attach(attach_id="1", multiplexed=False)
    with stopped, box.attach(attach_id="2", stdin=True, stdout=False) as client:
        await box.start()
        disk.freeze()
        client.sendall(b"go\n")
        await until(lambda: _memory_files(box.shim_pid) >= 4)
        await answers_at_once(box, 1)
        disk.thaw()
        await until(lambda: _memory_files(box.shim_pid) == 2)
        client.sendall(b"go\n")
        assert await asyncio.to_thread(read_all, stopped) == bytes(25 << 20)
    assert await box.wait() == 4


def _memory_files(pid: int) -> int:
    """How many files of a backlog the shim has in memory."""
    links = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    return sum("attach-spill" in link for link in links)


async def test_a_shim_that_dies_leaves_what_it_took_to_its_writer(box: Box, disk: Disk) -> None:
    box.write(["sh", "-c", "seq 1 10; read x; seq 11 2000; sleep 1000"])
    await box.shim()
    await box.create(stdin=True)
    with box.attach(attach_id="1", stdin=True, multiplexed=False) as client:
        await box.start()
        await until(lambda: len(box.log_entries()) == 10)
        disk.freeze()
        client.sendall(b"go\n")
        await asyncio.to_thread(receive_until, client, b"\n2000\n")
        await stuck(box)
    os.kill(box.shim_pid, signal.SIGKILL)
    disk.thaw()
    await until(lambda: box.log.read_text().count("\n") == 2000)
    assert [int(text) for _, text in box.log_entries()] == list(range(1, 2001))


async def test_writers_that_are_killed_lose_and_double_nothing(box: Box, disk: Disk) -> None:
    """Killed while it waits for the disk, and again and again while it rotates."""
    options = {"dev.buoy.log.max-size": "100000", "dev.buoy.log.max-file": "999"}
    script = "seq 1 10; read x; for i in $(seq 0 99); do seq ${i}11 ${i}99; done; exit 7"
    box.write(["sh", "-c", script], annotations=options)
    await box.shim()
    await box.create(stdin=True)
    with box.attach(attach_id="1", stdin=True, multiplexed=False) as client:
        await box.start()
        await until(lambda: len(box.log_entries()) == 10)
        disk.freeze()
        client.sendall(b"go\n")
        await stuck(box)
        for pid in writers(box.shim_pid):
            os.kill(pid, signal.SIGKILL)
        disk.thaw()
        waiting = asyncio.create_task(box.wait())
        killed = 0
        while not waiting.done():
            for pid in writers(box.shim_pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
            await asyncio.sleep(0.005)
        assert await waiting == 7
    assert killed
    found = [int(text) for _, text in box.rotated_entries()]
    wanted = [int(f"{tens}{rest}") for tens in range(100) for rest in range(11, 100)]
    assert found == [*range(1, 11), *wanted]
    assert box.record()["exit_status"] == 7


async def test_a_writer_that_has_nothing_to_do_is_let_go(box: Box) -> None:
    """It costs memory; what comes later has another one."""
    box.write(["sh", "-c", "echo one; read x; echo two; sleep 1000"])
    await box.shim()
    await box.create(stdin=True)
    with box.attach(attach_id="1", stdin=True) as client:
        await box.start()
        await until(lambda: box.log_entries() == [("stdout", "one\n")])
        (first,) = writers(box.shim_pid)
        await until(lambda: not writers(box.shim_pid))
        client.sendall(b"go\n")
        await until(lambda: len(box.log_entries()) == 2)
        assert writers(box.shim_pid) != [first]
    assert json.loads(box.log.read_text().splitlines()[1])["log"] == "two\n"

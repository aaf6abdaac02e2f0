"""The nursery: what it is asked for, its rehearsal, its death, its service manager."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import uuid
from collections.abc import Callable
from pathlib import Path

import errdefs
import pytest

from tests.kernel.shim.harness import (
    Box,
    Place,
    a_place,
)

pytestmark = pytest.mark.root


async def test_a_bad_nursery_request(box: Box) -> None:
    with pytest.raises(errdefs.InvalidArgument, match=r"config\.json"):
        await box.shim()
    box.write(["true"])
    box.id = "../x"
    with pytest.raises(errdefs.InvalidArgument, match="identifier"):
        await box.shim()
    box.id = box.bundle.name


async def test_the_nursery_is_killed_and_comes_back(place: Place, box: Box) -> None:
    box.write(["sh", "-c", "i=0; while [ $i -lt 20 ]; do echo $i; i=$((i+1)); sleep 0.02; done; exit 4"])
    await box.shim()
    await box.create()
    await box.start()
    before = box.shim_pid
    place.stop_nursery(signal.SIGKILL)
    assert await box.wait() == 4
    assert [text for _, text in box.log_entries()] == [f"{number}\n" for number in range(20)]
    place.start_nursery()
    await box.shim()  # asked again: the same shim
    assert box.shim_pid == before
    assert (await box.state()).exit_status == 4


async def test_many_requests_for_one_bundle_make_one_shim(boxes: Callable[[], Box]) -> None:
    box, *others = [boxes() for _ in range(6)]
    box.write(["true"])
    for other in others:
        other.id, other.bundle = box.id, box.bundle
    await asyncio.gather(*(one.shim() for one in [box, *others]))
    assert len({one.shim_pid for one in [box, *others]}) == 1


async def test_the_nursery_rehearses_and_leaves_nothing_of_it(place: Place, box: Box) -> None:
    """The life that is played before the first fork: what it opened, made and started is gone again."""
    assert await box.run(["true"]) == 0  # the nursery is up
    assert "rehearsal" not in place.stderr.read_text()
    assert not (place.sockets / "r").exists()
    assert place.nursery is not None
    pid = place.nursery.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    titles = [Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0] for child in children]
    assert titles == [b"shim-svc nursery-template"]
    # stdio, the listener, the template's socket, and the loop's three; a client's connection comes and goes.
    assert len(os.listdir(f"/proc/{pid}/fd")) <= 9


async def test_a_nursery_that_cannot_rehearse_says_so_and_serves() -> None:
    with a_place() as place:
        (place.sockets / "r").touch()  # where the rehearsal's folder is to be
        place.start_nursery()
        box = Box(place, uuid.uuid4().hex * 2)
        assert await box.run(["true"]) == 0
        await box.clean()
        assert "no rehearsal" in place.stderr.read_text()


async def test_a_service_manager_passes_the_socket_and_is_told(tmp_path: Path) -> None:
    """sd_listen_fds(3) and sd_notify(3), through the executions that the nursery begins with."""
    with a_place() as place, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place.nursery_path))
            listener.listen()
            environ = {
                "LISTEN_FDS": "1",
                "LISTEN_FDNAMES": "shim.sock",
                "NOTIFY_SOCKET": str(tmp_path / "notify"),
                "WATCHDOG_USEC": "300000",
            }
            place.spawn_with_listener(listener, environ)
        told = [await asyncio.to_thread(manager.recv, 100) for _ in range(3)]
        assert b"READY=1" in told
        assert told.count(b"WATCHDOG=1") == 2
        box = Box(place, uuid.uuid4().hex * 2)
        assert await box.run(["true"]) == 0
        await box.clean()
        place.stop_nursery()
        manager.setblocking(False)
        last = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                last = manager.recv(100)
        assert last == b"STOPPING=1"

"""The log drivers beside json-file, and the mode non-blocking, in a shim."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from container_log.entries import Entries, RunEncoder
from shim_svc.journald import JournaldFile

from tests.kernel.shim.harness import Box, read_all, unframe, until, writers

pytestmark = pytest.mark.root


async def test_local(box: Box) -> None:
    script = "seq 1 20000; echo err >&2; printf unfinished"
    assert await box.run(["sh", "-c", script], driver="local") == 0
    assert await box.delete() == 0
    wanted = b"".join(b"%d\n" % number for number in range(1, 20001))
    found = box.read_log("local")
    assert found.replace(b"err\n", b"", 1) == wanted + b"unfinished"
    assert box.log.stat().st_size < len(wanted)


@pytest.mark.parametrize("driver", ["json-file", "local"])
async def test_replay_of_rotated_and_compressed_files(box: Box, driver: str) -> None:
    """Nothing is missing or doubled where the replay ends and the live output begins."""
    limits = {"max-size": "30000" if driver == "json-file" else "2000", "max-file": "50", "compress": "true"}
    script = "for i in 1 2 3 4 5 6; do seq $((i*1000)) $((i*1000+999)); sleep 0.05; done"
    script += "; printf unfin; read x; seq 7000 9000"
    box.write(
        ["sh", "-c", script],
        driver=driver,
        annotations={f"dev.buoy.log.{name}": value for name, value in limits.items()},
    )
    await box.shim()
    await box.create(stdin=True)
    await box.start()
    await until(lambda: list(box.log.parent.glob("*.gz")))
    early = box.attach(attach_id="1", logs=True)
    await until(lambda: box.read_log(driver).endswith(b"6999\n"))
    late = box.attach(attach_id="2", logs=True, stdin=True)
    late.sendall(b"\n")
    wanted = b"".join(b"%d\n" % number for number in range(1000, 7000)) + b"unfin"
    wanted += b"".join(b"%d\n" % number for number in range(7000, 9001))
    for client in (early, late):
        output = await asyncio.to_thread(read_all, client)
        client.close()
        assert unframe(output)[1] == wanted


async def test_a_client_that_leaves_ends_its_replay(box: Box) -> None:
    script = "seq 1 100000; echo done >&2; read x"
    box.write(["sh", "-c", script])
    await box.shim()
    await box.create(stdin=True)
    await box.start()
    await until(lambda: b'"done\\n"' in box.log.read_bytes())
    client = box.attach(attach_id="1", logs=True)
    await until(lambda: _children(box.shim_pid, "shim-replay"))
    client.close()
    await until(lambda: not _children(box.shim_pid, "shim-replay"))


def _children(pid: int, name: str) -> list[str]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in children if Path(f"/proc/{child}/comm").read_text() == f"{name}\n"]


async def test_non_blocking_drops_at_once(box: Box) -> None:
    """The writer is stopped: a container in this mode does not wait for it, and what is missing is told."""
    box.write(
        ["sh", "-c", "echo ready; read x; seq 1 100000; echo end"],
        annotations={"dev.buoy.log.buffer": "65536"},
    )
    await box.shim()
    await box.create(stdin=True)
    await box.start()
    await until(lambda: box.log.stat().st_size)  # so that the writer is not let go just now
    (writer,) = writers(box.shim_pid)
    os.kill(writer, signal.SIGSTOP)
    try:
        with box.attach(attach_id="1", stdin=True) as client:
            began = time.monotonic()
            client.sendall(b"\n")
            output = b""
            while not output.endswith(b"end\n"):
                output += await asyncio.to_thread(client.recv, 1 << 20)
            assert time.monotonic() - began < 0.9  # in the other mode a second goes by first
    finally:
        os.kill(writer, signal.SIGCONT)
    assert await box.wait() == 0
    assert [fact.topic for fact in await box.facts()].count("/buoy/log-dropped") == 1
    texts = [text for _, text in box.log_entries()]
    dropped = sum(int(text.split()[0]) for text in texts if "are missing here" in text)
    assert dropped > 50_000, (len(texts), [text for text in texts if "missing" in text])
    assert dropped + sum("are missing here" not in text for text in texts) == 100_002


def test_journald_gets_a_datagram_a_line(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        file = JournaldFile({"CONTAINER_NAME": "t", "LABEL": "two\nlines"}, str(path))
        entries = Entries(RunEncoder())
        queue = entries.of("stdout", b"one\n\ntwo\n") + entries.of("stderr", b"x" * 40_000 + b"\n")
        with pytest.raises(FileNotFoundError):
            file.append(queue)
        journald.bind(str(path))
        while queue:
            queue = queue[file.append(queue) :]
        journald.settimeout(1)
        found = [_fields(journald.recv(1 << 20)) for _ in range(6)]
        file.close()
    assert [entry[b"MESSAGE"][:3] for entry in found] == [b"one", b"", b"two", b"xxx", b"xxx", b"xxx"]
    assert [entry[b"PRIORITY"] for entry in found] == [b"6"] * 3 + [b"3"] * 3
    assert {entry[b"LABEL"] for entry in found} == {b"two\nlines"}
    assert [entry[b"CONTAINER_LOG_ORDINAL"] for entry in found] == [b"%d" % number for number in range(1, 7)]
    parts = found[3:]
    assert len({entry[b"CONTAINER_PARTIAL_ID"] for entry in parts}) == 1
    assert [entry[b"CONTAINER_PARTIAL_ORDINAL"] for entry in parts] == [b"1", b"2", b"3"]
    assert [entry[b"CONTAINER_PARTIAL_LAST"] for entry in parts] == [b"false", b"false", b"true"]
    assert all(entry[b"CONTAINER_PARTIAL_MESSAGE"] == b"true" for entry in parts)
    assert b"CONTAINER_PARTIAL_MESSAGE" not in found[0]


def _fields(datagram: bytes) -> dict[bytes, bytes]:
    """The fields of journald's native protocol."""
    found = {}
    while datagram:
        line, _, rest = datagram.partition(b"\n")
        name, separator, value = line.partition(b"=")
        if not separator:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[9 + size :]
        found[name] = value
        datagram = rest
    return found

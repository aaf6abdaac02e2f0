"""Output to the log and to clients, input from clients, terminals, named pipes, files."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable

import errdefs
import pytest
from linux.mounts import MS_REMOUNT
from linux.syscalls import mount, umount2
from pb.containerd.task import v2 as task

from tests.kernel.shim.harness import Box, Place, check_gap, read_all, unframe, until

pytestmark = pytest.mark.root


async def started(box: Box, args: list[str], *, stdin: bool = False, **more: object) -> None:
    """Fork, create and start."""
    box.write(args, **more)  # type: ignore[arg-type]
    await box.shim()
    await box.create(stdin=stdin)
    await box.start()


def receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            break
        data += chunk
    return data


def receive_until(sock: socket.socket, text: bytes) -> bytes:
    data = b""
    while text not in data:
        chunk = sock.recv(65536)
        assert chunk, data
        data += chunk
    return data


async def test_several_clients_get_everything_in_order(box: Box) -> None:
    box.write(["sh", "-c", "seq 1 20000; exit 1"])
    await box.shim()
    await box.create()
    clients = [box.attach(attach_id=str(number), multiplexed=number % 2 == 0) for number in range(4)]
    await box.start()
    outputs = await asyncio.gather(*(asyncio.to_thread(read_all, client) for client in clients))
    wanted = b"".join(b"%d\n" % number for number in range(1, 20001))
    for number, (client, output) in enumerate(zip(clients, outputs, strict=True)):
        client.close()
        assert (unframe(output)[1] if number % 2 == 0 else output) == wanted
    assert await box.wait() == 1
    assert "".join(text for _, text in box.log_entries()).encode() == wanted


async def test_only_the_wanted_streams(box: Box) -> None:
    box.write(["sh", "-c", "echo out; echo err >&2"])
    await box.shim()
    await box.create()
    with box.attach(attach_id="1", stdout=False) as client:
        await box.start()
        assert unframe(await asyncio.to_thread(read_all, client)) == {1: b"", 2: b"err\n"}


async def test_stdin_goes_in_and_its_end_too(box: Box) -> None:
    box.write(["sh", "-c", "cat; echo over >&2"])
    await box.shim()
    await box.create(stdin=True)
    client = box.attach(attach_id="1", stdin=True, stdin_once=True, leading_input=b"lead ")
    await box.start()
    payload = os.urandom(3 << 20)
    sending = asyncio.create_task(asyncio.to_thread(client.sendall, payload))
    reading = asyncio.create_task(asyncio.to_thread(read_all, client))
    await sending
    client.shutdown(socket.SHUT_WR)
    streams = unframe(await reading)
    client.close()
    assert streams[2] == b"over\n"
    assert streams[1] == b"lead " + payload
    assert await box.wait() == 0


async def test_without_stdin_once_the_clients_end_leaves_stdin_open(box: Box) -> None:
    await started(box, ["sh", "-c", "while read x; do echo got $x; done"], stdin=True)
    with box.attach(attach_id="1", stdin=True) as client:
        client.sendall(b"one\n")
        assert unframe(receive(client, 8 + 8))[1] == b"got one\n"
        client.shutdown(socket.SHUT_WR)
        assert await asyncio.to_thread(read_all, client) == b""
    with box.attach(attach_id="2", stdin=True) as client:
        client.sendall(b"two\n")
        assert unframe(receive(client, 8 + 8))[1] == b"got two\n"
    await box.call("CloseIO", task.CloseIoRequest(id=box.id, stdin=True))
    assert await box.wait() == 0


async def test_a_client_without_stdin_may_close_its_writing_side(box: Box) -> None:
    await started(box, ["sh", "-c", "sleep 0.3; echo late"])
    with box.attach(attach_id="1") as client:
        client.shutdown(socket.SHUT_WR)
        assert unframe(await asyncio.to_thread(read_all, client))[1] == b"late\n"


async def test_an_attach_id_is_taken_once(box: Box) -> None:
    await started(box, ["sh", "-c", "sleep 0.2; echo once"])
    with box.attach(attach_id="same") as first, box.attach(attach_id="same") as second:
        assert await asyncio.to_thread(read_all, second) == b""
        assert unframe(await asyncio.to_thread(read_all, first))[1] == b"once\n"


async def test_a_client_that_does_not_read_holds_up_nobody(box: Box) -> None:
    """Ten megabytes go by a stopped client; it gets them all when it reads at last."""
    box.write(["sh", "-c", "dd if=/dev/zero bs=1M count=10 2>/dev/null; exit 6"], driver="none")
    await box.shim()
    await box.create()
    stopped = box.attach(attach_id="1", multiplexed=False)
    await box.start()
    assert await box.wait() == 6
    assert await box.delete() == 6
    assert len(await asyncio.to_thread(read_all, stopped)) == 10 << 20
    stopped.close()


async def test_a_client_with_too_much_backlog_is_dropped(box: Box) -> None:
    """In memory (driver none, bundle as the container's folder) 64 MiB are kept."""
    box.write(
        ["sh", "-c", "dd if=/dev/zero bs=1M count=80 2>/dev/null; exit 6"],
        driver="none",
        annotations={"dev.buoy.container-dir": str(box.bundle)},
    )
    await box.shim()
    await box.create()
    stopped = box.attach(attach_id="1", multiplexed=False)
    await box.start()
    assert await box.wait() == 6
    with stopped:
        assert len(await asyncio.to_thread(read_all, stopped)) < 1 << 20


async def test_a_client_that_dies_is_forgotten(box: Box) -> None:
    await started(box, ["sh", "-c", "while :; do echo x; sleep 0.01; done"])
    await until(lambda: box.log.stat().st_size)
    before = len(os.listdir(f"/proc/{box.shim_pid}/fd"))
    for number in range(10):
        box.attach(attach_id=str(number)).close()
    await until(lambda: len(os.listdir(f"/proc/{box.shim_pid}/fd")) <= before)


async def test_logs_are_replayed_then_followed(box: Box) -> None:
    await started(box, ["sh", "-c", "seq 1 5000; printf unfin; sleep 0.5; echo ished; seq 5001 9000"])
    await until(lambda: box.log.read_text().count("\n") == 5000)
    with box.attach(attach_id="1", logs=True) as client:
        output = unframe(await asyncio.to_thread(read_all, client))[1]
    wanted = b"".join(b"%d\n" % number for number in range(1, 5001)) + b"unfinished\n"
    assert output == wanted + b"".join(b"%d\n" % number for number in range(5001, 9001))


async def test_logs_without_follow_end(box: Box) -> None:
    await started(box, ["sh", "-c", "seq 1 3; sleep 1000"])
    await until(lambda: box.log.read_text().count("\n") == 3)
    with box.attach(attach_id="1", logs=True, stream=False) as client:
        assert unframe(await asyncio.to_thread(read_all, client))[1] == b"1\n2\n3\n"


async def test_replay_while_the_log_is_rotated(box: Box) -> None:
    """Files that are rotated away under the reader are read to their end; a deleted one is missing whole."""
    options = {"dev.buoy.log.max-size": "20000", "dev.buoy.log.max-file": "3"}
    await started(box, ["sh", "-c", "seq 1 4000; sleep 0.2; seq 4001 8000"], annotations=options)
    await until(lambda: box.log.exists() and box.log.stat().st_size)
    with box.attach(attach_id="1", logs=True) as client:
        lines = unframe(await asyncio.to_thread(read_all, client))[1].split()
    numbers = [int(line) for line in lines]
    assert numbers == list(range(numbers[0], 8001))
    await box.wait()
    names = sorted(path.name for path in box.folder.glob("*.log*"))
    assert names == [f"{box.log.name}{suffix}" for suffix in ("", ".1", ".2")]


async def test_the_log_is_what_docker_writes(box: Box) -> None:
    script = r"""printf 'a"<b>&\\\t\033[1m\n'; printf 'no newline'"""
    assert await box.run(["sh", "-c", script]) == 0
    first, second = box.log.read_text().splitlines()
    assert first.startswith(
        r'{"log":"a\"\u003cb\u003e\u0026\\\u0009\u001b[1m\n","stream":"stdout","time":"20'
    )
    assert first.endswith('Z"}')
    assert json.loads(second)["log"] == "no newline"


async def test_a_full_disk_neither_blocks_nor_tears_lines(box: Box) -> None:
    """The log lies on a tmpfs of 64 KiB; the container writes more than that and the queue hold."""
    small = box.place.root / "small"
    small.mkdir(exist_ok=True)
    mount("tmpfs", str(small), "tmpfs", 0, "size=64k")
    try:
        log = small / "x.log"
        options = {"dev.buoy.log.path": str(log)}
        script = "seq 1 30000; read x; seq 30001 30010"
        box.write(["sh", "-c", script], annotations=options)
        await box.shim()
        await box.create(stdin=True)
        with box.attach(attach_id="1", stdin=True, multiplexed=False) as client:
            await box.start()
            await asyncio.to_thread(receive_until, client, b"30000\n")
            whole = log.read_bytes()
            assert len(whole) > 60000
            numbers = [json.loads(line)["log"] for line in whole[: whole.rfind(b"\n")].splitlines()]
            assert numbers == [f"{number}\n" for number in range(1, len(numbers) + 1)]
            mount("tmpfs", str(small), "tmpfs", MS_REMOUNT, "size=64m")
            await until(lambda: "are missing here" in log.read_text())
            client.sendall(b"go\n")
            assert await box.wait() == 0
        check_gap([json.loads(line)["log"] for line in log.read_text().splitlines()], 30010)
        assert "lines dropped" in box.place.stderr.read_text()
    finally:
        await box.clean()
        umount2(str(small))


async def test_a_container_ends_while_its_disk_is_full(box: Box) -> None:
    small = box.place.root / "small"
    small.mkdir(exist_ok=True)
    mount("tmpfs", str(small), "tmpfs", 0, "size=64k")
    try:
        options = {"dev.buoy.log.path": str(small / "x.log")}
        assert await box.run(["sh", "-c", "seq 1 5000; exit 4"], annotations=options) == 4
        assert box.record()["exit_status"] == 4
        assert await box.delete() == 4
    finally:
        await box.clean()
        umount2(str(small))


async def test_a_terminal(box: Box) -> None:
    box.write(["sh"], terminal=True)
    await box.shim()
    await box.create(stdin=True)
    await box.call("ResizePty", task.ResizePtyRequest(id=box.id, width=91, height=33))
    with box.attach(attach_id="1", stdin=True, multiplexed=False, detach_keys="ctrl-p,ctrl-q") as client:
        await box.start()
        client.sendall(b"stty size\n")
        assert b"33 91" in await asyncio.to_thread(receive_until, client, b"33 91")
        client.sendall(b"\x10")  # the first key alone, then the second: detached
        await asyncio.sleep(0.05)
        client.sendall(b"\x11and this is not typed")
        await asyncio.to_thread(read_all, client)
    await box.call("ResizePty", task.ResizePtyRequest(id=box.id, width=20, height=10))
    with box.attach(attach_id="2", stdin=True, multiplexed=False, detach_keys="ctrl-p,ctrl-q") as client:
        client.sendall(b"echo a\x10b; stty size; exit 7\n")
        output = await asyncio.to_thread(read_all, client)
    assert b"10 20" in output
    assert b"not typed" not in output
    assert await box.wait() == 7
    assert all(stream == "stdout" for stream, _ in box.log_entries())


async def test_an_exec_with_a_terminal(box: Box) -> None:
    await started(box, ["sleep", "1000"])
    await box.exec("t", ["sh", "-c", "read x; echo got $x; stty size"], stdin=True, terminal=True)
    await box.call("ResizePty", task.ResizePtyRequest(id=box.id, exec_id="t", width=77, height=11))
    with box.attach(attach_id="1", exec_id="t", stdin=True, multiplexed=False) as client:
        await box.start("t")
        client.sendall(b"typed\n")
        output = await asyncio.to_thread(read_all, client)
    assert b"got typed\r\n11 77\r\n" in output
    assert await box.wait("t") == 0


@pytest.mark.parametrize(
    ("fields", "kind"),
    [({"exec_id": "none"}, "NotFound"), ({"detach_keys": "ctrl-!"}, "InvalidArgument")],
)
async def test_a_bad_attach(box: Box, fields: dict[str, str], kind: str) -> None:
    await started(box, ["sleep", "1000"], terminal=True)
    with pytest.raises(RuntimeError, match=kind):
        box.attach(attach_id="1", **fields)


async def test_named_pipes_both_ways(box: Box) -> None:
    names = {name: str(box.place.root / f"{box.id[:8]}-{name}") for name in ("in", "out", "err")}
    for path in names.values():
        os.mkfifo(path)
    out = os.open(names["out"], os.O_RDONLY | os.O_NONBLOCK)
    box.write(["sh", "-c", "cat; exit 8"])
    await box.shim()
    assert box.client is not None
    request = task.CreateTaskRequest(
        id=box.id,
        bundle=str(box.bundle),
        rootfs=[],
        stdin=names["in"],
        stdout=f"fifo://{names['out']}",
        stderr=names["err"],
    )
    os.symlink(box.place.rootfs, box.bundle / "rootfs")
    await box.call("Create", request, task.CreateTaskResponse)
    await box.start()
    into = os.open(names["in"], os.O_WRONLY)
    os.write(into, b"through")
    os.close(into)

    def come() -> bytes:
        try:
            return os.read(out, 100)
        except BlockingIOError:
            return b""

    assert await until(come) == b"through"
    await box.call("CloseIO", task.CloseIoRequest(id=box.id, stdin=True))
    assert await box.wait() == 8
    os.close(out)


async def test_output_to_a_file(box: Box) -> None:
    path = box.place.root / box.id[:8] / "out"
    box.write(["sh", "-c", "echo one; echo two >&2"])
    await box.shim()
    await box.create(stdio=f"file://{path}")
    await box.start()
    await box.wait()
    await box.delete()
    assert sorted(path.read_text().split()) == ["one", "two"]


async def test_output_that_others_keep_open_is_not_waited_for(box: Box) -> None:
    """An exec leaves a child behind that holds its stdout: the client goes two seconds after the exit."""
    await started(box, ["sleep", "1000"])
    await box.exec("x", ["sh", "-c", "sleep 1000 & echo left"])
    with box.attach(attach_id="1", exec_id="x") as client:
        await box.start("x")
        begun = time.monotonic()
        assert await box.wait("x") == 0
        assert time.monotonic() - begun < 1.5
        assert unframe(await asyncio.to_thread(read_all, client))[1] == b"left\n"
        assert 1.5 < time.monotonic() - begun < 4
    await box.delete("x")


async def test_a_daemon_may_be_gone_while_clients_are_served(place: Place, boxes: Callable[[], Box]) -> None:
    """The Task connection is closed, the container prints on, its client reads on."""
    box = boxes()
    await started(box, ["sh", "-c", "i=0; while [ $i -lt 50 ]; do echo $i; i=$((i+1)); sleep 0.01; done"])
    with box.attach(attach_id="1", logs=True) as client:
        assert box.client is not None
        await box.client.close()
        output = unframe(await asyncio.to_thread(read_all, client))[1]
    assert output == b"".join(b"%d\n" % number for number in range(50))
    await box.connect()
    assert await box.wait() == 0


async def test_stdin_closed_by_the_process(box: Box) -> None:
    """Input that nobody reads any more is dropped; the client sees the output's end."""
    box.write(["sh", "-c", "exec <&-; sleep 0.3; echo still"])
    await box.shim()
    await box.create(stdin=True)
    with box.attach(attach_id="1", stdin=True, stdin_once=True) as client:
        await box.start()
        await asyncio.sleep(0.1)
        client.sendall(b"x" * 100000)
        assert unframe(await asyncio.to_thread(read_all, client))[1] == b"still\n"


async def test_kill_of_an_exec(box: Box) -> None:
    await started(box, ["sleep", "1000"])
    await box.exec("x", ["sleep", "1000"])
    with pytest.raises(errdefs.FailedPrecondition):
        await box.kill(signal.SIGTERM, "x")
    await box.start("x")
    await box.kill(signal.SIGKILL, "x")
    assert await box.wait("x") == 137
    with pytest.raises(errdefs.NotFound):
        await box.kill(signal.SIGKILL, "x")
    with pytest.raises(errdefs.InvalidArgument):
        await box.kill(99)

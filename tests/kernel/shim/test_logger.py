"""Output to a program, `binary://`: what it is given, and that its faults are not the container's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import errdefs
import pytest
from pb.containerd.task import v2 as task
from pb.google.protobuf import Any as PbAny
from shim_svc import logger as module
from shim_svc.logger import Logger
from shim_svc.reaper import Reaper

from tests.kernel.shim.harness import Box, make_spec, until

pytestmark = pytest.mark.root

KEEPER = """#!/bin/sh
dir=$(dirname "$0")
env | grep -v -e ^PWD= -e ^SHLVL= -e ^_= | sort > "$dir/env"
echo "$0 $*" > "$dir/words"
exec 5>&-
cat <&3 > "$dir/out.$CONTAINER_ID" &
cat <&4 > "$dir/err.$CONTAINER_ID" &
exec 3<&- 4<&-
wait
"""


def write_program(folder: Path, text: str) -> Path:
    path = folder / "logger"
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def keeper(tmp_path: Path) -> Path:
    """A program that writes what it is given beside itself."""
    return write_program(tmp_path, KEEPER)


async def exec_with(box: Box, exec_id: str, args: list[str], uri: str) -> None:
    spec = PbAny(type_url="types.containerd.io/spec", value=json.dumps(make_spec(args)["process"]).encode())
    request = task.ExecProcessRequest(id=box.id, exec_id=exec_id, stdout=uri, stderr=uri, spec=spec)
    await box.call("Exec", request)
    await box.start(exec_id)


async def test_a_logger_gets_both_streams_its_arguments_and_two_variables(box: Box, keeper: Path) -> None:
    box.write(["sh", "-c", "echo out; echo err >&2; sleep 1000"])
    await box.shim()
    uri = f"binary://{keeper}?one=1&two=a%20b&one=3&none"
    await box.create(stdio=uri)
    await box.start()
    await exec_with(box, "more", ["sh", "-c", "seq 1 30000; echo bad >&2"], uri)
    assert await box.wait("more") == 0
    await box.delete("more")
    await box.kill()
    assert await box.wait() == 128 + signal.SIGKILL
    await box.delete()
    # Delete has waited for the logger, so that its files are whole.
    folder = keeper.parent
    assert (folder / f"out.{box.id}").read_text() == "out\n"
    assert (folder / f"err.{box.id}").read_text() == "err\n"
    assert (folder / "out.more").read_text() == "".join(f"{number}\n" for number in range(1, 30001))
    assert (folder / "err.more").read_text() == "bad\n"
    assert (folder / "words").read_text() == f"{keeper} one 1 two a b none \n"
    assert (folder / "env").read_text() == "CONTAINER_ID=more\nCONTAINER_NAMESPACE=moby\n"


async def test_a_terminal_goes_to_a_logger(box: Box, keeper: Path) -> None:
    box.write(["echo", "seen"], terminal=True)
    await box.shim()
    await box.create(stdio=f"binary://{keeper}")
    await box.start()
    assert await box.wait() == 0
    await box.delete()
    assert (keeper.parent / f"out.{box.id}").read_bytes() == b"seen\r\n"


async def test_a_logger_that_dies_stops_nothing(box: Box, tmp_path: Path) -> None:
    path = write_program(tmp_path, "#!/bin/sh\nexit 1\n")
    box.write(["dd", "if=/dev/zero", "bs=64k", "count=64"])
    await box.shim()
    await box.create(stdio=f"binary://{path}")
    await box.start()
    assert await box.wait() == 0


async def test_a_logger_that_cannot_be_run_refuses_the_create(box: Box, tmp_path: Path) -> None:
    box.write(["true"])
    await box.shim()
    with pytest.raises(errdefs.Internal, match=r"fork/exec .*/none: no such file or directory"):
        await box.create(stdio=f"binary://{tmp_path}/none")
    for bad in ("binary://logger", "binary-v3:///logger", "binary:///a%00b"):
        with pytest.raises(errdefs.InvalidArgument):
            await box.create(stdio=bad)
    assert await box.create(stdio="")  # nothing was left behind


# The bounds, in this process: a shim's are seconds.


@pytest.fixture
def reaper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reaper]:
    """One that waits for this process's children when it is asked to."""
    for name, seconds in (("READY", 0.2), ("STALL", 0.1), ("_FINISH", 0.2), ("_TERMINATE", 0.2)):
        monkeypatch.setattr(module, name, seconds)
    before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    yield Reaper()
    signal.signal(signal.SIGPIPE, before)


async def finish(logger: Logger, reaper: Reaper) -> None:
    """End a logger while its end is waited for."""
    logger.close()
    task = asyncio.ensure_future(logger.finish())
    while not task.done():
        reaper.reap()
        await asyncio.sleep(0.01)
    await task


async def test_a_logger_that_is_never_ready(tmp_path: Path, reaper: Reaper) -> None:
    path = write_program(tmp_path, "#!/bin/sh\nexec sleep 60\n")
    logger = Logger((str(path),), process="c", namespace="n", reaper=reaper)
    with pytest.raises(errdefs.DeadlineExceeded, match="was not ready"):
        await logger.start()
    began = time.monotonic()
    await finish(logger, reaper)
    assert time.monotonic() - began < 0.15, "it was not killed at once"


async def test_a_logger_that_reads_nothing_holds_a_process_up_for_a_while_only(
    tmp_path: Path, reaper: Reaper
) -> None:
    path = write_program(
        tmp_path,
        "#!/bin/sh\nexec 5>&-\nexec 3<&3\ntrap '' TERM\n"
        f"while ! test -e {tmp_path}/go; do sleep 0.01; done\ncat <&3 >{tmp_path}/out\nsleep 60\n",
    )
    logger = Logger((str(path),), process="c", namespace="n", reaper=reaper)
    await logger.start()
    resumed = asyncio.Event()
    sink = logger.sink("stdout", resumed.set)
    chunk = b"x" * 65536
    written = 0
    while sink.write(chunk):
        written += len(chunk)
    resumed.clear()
    await asyncio.wait_for(resumed.wait(), 5)  # what comes now is dropped
    assert sink.write(b"dropped\n")
    (tmp_path / "go").touch()
    resumed.clear()
    await asyncio.wait_for(resumed.wait(), 5)
    assert sink.write(b"the end\n")
    out = tmp_path / "out"
    wanted = written + len(chunk) + len(b"the end\n")
    await until(lambda: out.exists() and out.stat().st_size == wanted)
    assert out.read_bytes().endswith(b"xthe end\n")
    sink.close()
    await finish(logger, reaper)  # it sleeps, and takes no SIGTERM


async def test_the_shims_descriptors_are_not_the_loggers(tmp_path: Path, reaper: Reaper) -> None:
    path = write_program(tmp_path, f"#!/bin/sh\nls -l /proc/$$/fd > {tmp_path}/fds\nexec 5>&-\n")
    with (tmp_path / "secret").open("w") as held:
        os.set_inheritable(held.fileno(), True)
        logger = Logger((str(path),), process="c", namespace="n", reaper=reaper)
        await logger.start()
        os.set_inheritable(held.fileno(), False)
    await finish(logger, reaper)
    listed = (tmp_path / "fds").read_text()
    assert "secret" not in listed
    assert listed.count("pipe:") == 3

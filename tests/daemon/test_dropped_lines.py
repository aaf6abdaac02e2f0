"""Lines that the disk did not take: told as an event, and in the log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.engine import Engine

pytestmark = [pytest.mark.root]


def writer_of(container: str) -> int:
    """The process with which the container's shim writes; 0 while there is none."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text() != "shim-writer\n":
                continue
            parent = comm.with_name("stat").read_text().rpartition(")")[2].split()[1]
            if container in Path(f"/proc/{parent}/cmdline").read_text():
                return int(comm.parent.name)
        except OSError:
            continue
    return 0


def test_a_writer_that_stands_still(engine: Engine) -> None:
    run = (
        "run",
        "-d",
        "--name",
        "drops",
        "--log-opt",
        "mode=non-blocking",
        "--log-opt",
        "max-buffer-size=64k",
    )
    script = "while [ ! -e /go ]; do echo tick; sleep 0.1; done; seq 1 100000; echo said > /done; sleep 1000"
    id = engine.out(*run, "busybox", "sh", "-c", script)
    writer = 0

    def found() -> int:
        nonlocal writer
        writer = writer_of(id)
        return writer

    engine.until("a writer", found)
    events = engine.start(
        *(
            "events",
            "--since",
            str(time.time() - 1),
            "--filter",
            "event=log-dropped",
            "--format",
            "{{json .}}",
        ),
        stdout=subprocess.PIPE,
    )
    os.kill(writer, signal.SIGSTOP)
    try:
        engine.out("exec", "drops", "touch", "/go")
        engine.until("the end", lambda: engine.docker("exec", "drops", "cat", "/done").stdout == "said\n")
        assert events.stdout is not None
        assert json.loads(events.stdout.readline())["Actor"]["ID"] == id
    finally:
        os.kill(writer, signal.SIGCONT)
        events.kill()
        events.communicate()
    engine.until("the mark", lambda: "are missing here" in engine.docker("logs", "drops").stderr)
    engine.out("rm", "-f", "drops")

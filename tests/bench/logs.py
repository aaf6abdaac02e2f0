"""256 MB of 65-byte lines, printed by a container, logged, and read back with `docker logs`.

What is read back is counted and hashed; a wrong count or hash ends the run.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.engine import DOCKER

IMAGE = "buoy-bench-lines"
DRIVERS = ("json-file", "local")
_LINE = 65
_TIMES = 256  # how often the file of a megabyte is printed
_MEGABYTE = b"".join(b"%0*d\n" % (_LINE - 1, number * 7919) for number in range((1 << 20) // _LINE))
_SCRIPT = f"i=0; while [ $i -lt {_TIMES} ]; do cat /lines; i=$((i+1)); done"
_NAME = "buoy-bench-printer"


def add_lines(archive: Path) -> Path:
    """The archive of a root file system with the file of lines added; a new archive beside it."""
    made = archive.with_name("lines.tar")
    made.write_bytes(archive.read_bytes())
    with tarfile.open(made, "a") as tar:
        entry = tarfile.TarInfo("lines")
        entry.size, entry.mode = len(_MEGABYTE), 0o644
        tar.addfile(entry, io.BytesIO(_MEGABYTE))
    return made


def _check(host: str) -> None:
    done = hashlib.sha256()
    count = 0
    command = [DOCKER, "-H", host, "logs", _NAME]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while data := process.stdout.read(1 << 20):
            done.update(data)
            count += data.count(b"\n")
    wanted = hashlib.sha256(_MEGABYTE * _TIMES)
    if (count, done.digest()) != (_MEGABYTE.count(b"\n") * _TIMES, wanted.digest()):
        raise SystemExit(f"{host}: {count} lines came back, or others than were printed")


def rows(
    hosts: list[str], docker: Callable[[int, tuple[str, ...]], str], rounds: int
) -> Iterator[tuple[str, list[list[float]]]]:
    """Name and times in milliseconds, one list a host. docker: runs a command on the host of that number."""
    for driver in DRIVERS:
        printed: list[list[float]] = [[] for _ in hosts]
        read: list[list[float]] = [[] for _ in hosts]
        for turn in range(rounds):
            for index, host in enumerate(hosts):
                began = time.perf_counter()
                # All of it is to be kept: local rotates by default, and drops the oldest files.
                kept = ("--log-opt", "max-size=1g") if driver == "local" else ()
                options = ("--name", _NAME, "--log-driver", driver, *kept)
                docker(index, ("run", "-d", *options, IMAGE, "sh", "-c", _SCRIPT))
                try:
                    docker(index, ("wait", _NAME))
                    printed[index].append((time.perf_counter() - began) * 1000)
                    began = time.perf_counter()
                    command = [DOCKER, "-H", host, "logs", _NAME]
                    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
                    read[index].append((time.perf_counter() - began) * 1000)
                    if not turn:
                        _check(host)
                finally:
                    docker(index, ("rm", "-f", _NAME))
        yield f"256 MB of lines printed, {driver}", printed
        yield f"docker logs of them, {driver}", read

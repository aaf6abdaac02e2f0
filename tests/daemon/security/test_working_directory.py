"""CVE-2024-21626: no descriptor of the engine's is a way to the host, neither for a working directory nor for
the program itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.daemon.security import images
from tests.support.engine import Engine

pytestmark = pytest.mark.root

NUMBERS = range(3, 15)
# Of a directory outside of the root the kernel says `(unreachable)`, and its parents lead to the host's root.
PROBE = "readlink /proc/$$/cwd; ls -a ../../../../../../.."


@pytest.fixture
def http(engine: Engine) -> Iterator[httpx.Client]:
    with engine.http() as client:
        yield client


@pytest.mark.parametrize("place", ["/proc/self/fd/{}", "/dev/fd/{}"])
def test_of_a_container(http: httpx.Client, place: str) -> None:
    for number in NUMBERS:
        command = ["sh", "-c", PROBE]
        document = {"Image": "busybox", "Cmd": command, "WorkingDir": place.format(number), "Tty": True}
        container = http.post("/containers/create", json=document).json()["Id"]
        reply = http.post(f"/containers/{container}/start")
        if reply.status_code == 204:
            http.post(f"/containers/{container}/wait")
            cwd, *root = http.get(f"/containers/{container}/logs?stdout=1").text.split()
            assert cwd.startswith("/")
            assert ".dockerenv" in root
        else:
            assert reply.status_code in (400, 500)
        assert http.delete(f"/containers/{container}?force=1").status_code == 204


@pytest.mark.parametrize("place", ["/proc/self/fd/{}", "/proc/self/fd/{}/..", "/link{}"])
def test_of_an_exec(engine: Engine, place: str) -> None:
    script = "for n in $(seq 3 14); do ln -s /proc/self/fd/$n /link$n; done; exec sleep 60"
    container = engine.out("run", "-d", "busybox", "sh", "-c", script)
    engine.until(
        "the links", lambda: not engine.docker("exec", container, "test", "-L", "/link14").returncode
    )
    root = engine.out("exec", container, "ls", "-a", "/").split()
    for number in NUMBERS:
        done = engine.docker("exec", "-w", place.format(number), container, "sh", "-c", PROBE)
        if done.returncode == 0:
            cwd, *listed = done.stdout.split()
            assert cwd.startswith("/")
            assert listed == root


def test_of_an_image_by_a_link(engine: Engine) -> None:
    entries = [images.link(f"work{number}", f"/proc/self/fd/{number}") for number in NUMBERS]
    images.make(engine, "linked", entries, ["WORKDIR /work8"])
    for number in NUMBERS:
        options = () if number == 8 else ("-w", f"/work{number}")
        done = engine.docker("run", "--rm", *options, "linked", "sh", "-c", PROBE)
        assert done.returncode or (done.stdout.startswith("/") and "work8" in done.stdout.split())


@pytest.mark.parametrize("options", [(), ("-t",), ("-i",)])
def test_what_is_open(engine: Engine, options: tuple[str, ...]) -> None:
    container = engine.out("run", "-d", *options, "busybox", "sleep", "60")
    assert engine.out("exec", container, "ls", "/proc/1/fd").split() == ["0", "1", "2"]
    # `ls` has one more, the directory that it reads.
    assert engine.out("exec", container, "ls", "/proc/self/fd").split() == ["0", "1", "2", "3"]
    assert engine.docker("exec", container, "/proc/self/fd/5").returncode in (126, 127)

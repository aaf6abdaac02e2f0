"""Whom `USER` means, and files of the image that say so."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest

from tests.daemon.security import images
from tests.support.engine import Engine

pytestmark = pytest.mark.root

NOT_ROOT = (
    *("4294967296", "2147483648", "4294967295", "18446744073709551616", "-1", "-0", "+0", "00", "0x0"),
    *("0 ", " 0", "0\t", "0\n", "0.0", "\u0660", "0,0", "root ", "Root"),
)


def test_no_other_way_to_write_root(engine: Engine) -> None:
    """CVE-2024-40635, CVE-2026-46680."""
    running = engine.out("run", "-d", "busybox", "sleep", "600")

    def said(http: httpx.Client, user: str) -> Iterator[tuple[int, str]]:
        document = {"Image": "busybox", "Cmd": ["id"], "User": user}
        container = http.post("/containers/create", json=document).json()["Id"]
        reply = http.post(f"/containers/{container}/start")
        yield reply.status_code, reply.json()["message"] if reply.content else ""
        http.delete(f"/containers/{container}?force=1")
        process = http.post(f"/containers/{running}/exec", json={"Cmd": ["id"], "User": user}).json()["Id"]
        reply = http.post(f"/exec/{process}/start", json={"Detach": True})
        yield reply.status_code, reply.json()["message"] if reply.content else ""

    with engine.http() as http:
        for text in NOT_ROOT:
            for user in (text, f"1000:{text}"):
                for status, message in said(http, user):
                    assert status == 500, (user, message)
                    assert "no matching entries in" in message or "in range 0-2147483647" in message


def test_an_image_s_user(engine: Engine) -> None:
    for text in ("+0", "4294967296"):
        images.make(engine, "zero", [], [f"USER {text}"])
        assert engine.docker("run", "--rm", "zero", "id").returncode == 125
    passwd = "root:x:0:0::/:\n1000:x:0:0::/:\nhuge:x:4294967296:0::/:\nnone:x::0::/:\nodd:x:+0:0::/:\n"
    images.make(engine, "zero", [images.file("etc/passwd", passwd)], ["USER 1000"])
    assert engine.out("run", "--rm", "zero", "id", "-u") == "1000"
    for name in ("huge", "none", "odd"):
        assert engine.docker("run", "--rm", "-u", name, "zero", "id").returncode == 125


KINDS = {
    "fifo": "mkfifo {}",
    "device": "mknod {} c 1 5",
    "endless": "mknod {} c 1 8",
    "link out": "ln -s ../../../../../../../etc/hostname {}",
    "link to a link": "ln -s {0} {0}",
    "deep link": "ln -s $(printf '../%.0s' $(seq 600))etc/hostname {}",
    "process": "ln -s /proc/self/mem {}",
    "folder": "mkdir {}",
    "sparse": "truncate -s 1G {}",
    "long line": "head -c 1000000 /dev/zero | tr '\\0' x > {}",
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_do_not_end(engine: Engine, kind: str) -> None:
    """CVE-2026-47262: each is answered soon, running or not, with the name unknown or the file refused."""
    container = engine.out("run", "-d", "busybox", "sleep", "600")
    for name in ("passwd", "group"):
        make = KINDS[kind].format(f"/etc/{name}")
        engine.out("exec", "-u", "0", container, "sh", "-c", f"rm /etc/{name}; {make}")
        began = time.monotonic()
        done = engine.docker("exec", "-u", "0:wheel" if name == "group" else "nobody", container, "id")
        assert time.monotonic() - began < 2
        assert done.returncode != 0
        # By numbers it goes on, unless the file is too large to be looked into.
        numbers = engine.docker("exec", "-u", "7:7", container, "true")
        assert numbers.returncode == 0 or "larger than" in numbers.stdout
        if kind == "sparse":
            break
    engine.out("stop", "-t", "0", container)
    began = time.monotonic()
    done = engine.docker("start", container)
    assert time.monotonic() - began < 2
    assert done.returncode == 0 or "larger than" in done.stderr

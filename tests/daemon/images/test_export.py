"""`docker export`: the tree of a container, running or stopped, as another engine imports it."""

from __future__ import annotations

import contextlib
import io
import stat
import tarfile
from pathlib import Path

import httpx
import pytest

from tests.support.engine import Engine

pytestmark = pytest.mark.root

MAKE = """
echo kept >/new
ln /new /hard
ln -s /new /soft
mkfifo /pipe
mkdir -p /folder/below
chmod 1770 /folder
rm /bin/vi
echo hidden >/shown/file
echo done >/done
"""


# More than the pipes and sockets on the way take; not a hole, of which an archive has a note only.
BIG = "dd if=/dev/zero of=/big bs=1M count=64 2>/dev/null;"


def exported(engine: Engine, container: str) -> tarfile.TarFile:
    with engine.http() as http:
        answer = http.get(f"/containers/{container}/export")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
    return tarfile.open(fileobj=io.BytesIO(answer.content))


def check(found: tarfile.TarFile) -> None:
    content = found.extractfile("new")
    assert content is not None
    assert content.read() == b"kept\n"
    assert sorted([found.getmember("new").islnk(), found.getmember("hard").islnk()]) == [False, True]
    assert found.getmember("soft").linkname == "/new"
    assert found.getmember("pipe").isfifo()
    assert found.getmember("folder").mode == 0o1770
    names = found.getnames()
    assert {"folder/below", "bin/busybox", "shown"} <= set(names)
    assert not {"bin/vi", "shown/file", "proc/self", ""} & set(names)
    assert len(names) == len(set(names))


def test_running_and_stopped(engine: Engine, tmp_path: Path) -> None:
    container = engine.out("run", "-d", "--tmpfs", "/shown", "busybox", "sh", "-c", f"{MAKE}exec sleep 1000")
    engine.until("made", lambda: engine.docker("exec", container, "test", "-s", "/done").returncode == 0)
    check(exported(engine, container))
    engine.out("kill", container)
    check(exported(engine, container))
    archive = str(tmp_path / "tree.tar")
    engine.out("export", "-o", archive, container)
    engine.out("import", archive, "again:1")
    assert engine.out("run", "--rm", "again:1", "cat", "/hard") == "kept"
    engine.out("rmi", "again:1")
    with engine.http() as http:
        query = {"since": "1", "until": http.get("/info").json()["SystemTime"]}
        assert http.get("/events", params=query).text.count('"Action":"export"') == 3


def test_never_started(engine: Engine) -> None:
    container = engine.out("create", "busybox", "true")
    assert exported(engine, container).getmember("bin/busybox").mode & stat.S_IXUSR


def test_the_client_goes_away(engine: Engine) -> None:
    """The worker goes with it, and the container can be removed."""
    container = engine.out("run", "-d", "busybox", "sh", "-c", f"{BIG}touch /done; exec sleep 1000")
    engine.until("made", lambda: engine.docker("exec", container, "test", "-e", "/done").returncode == 0)
    worker = "dockerd_api.engine.export_worker"

    def workers() -> list[Path]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
                if parent == str(engine.pid("dockerd-api")) and worker in (process / "cmdline").read_text():
                    found.append(process)
        return found

    with engine.http() as http, http.stream("GET", f"/containers/{container}/export") as answer:
        pieces = answer.iter_bytes()  # its end would end the answer
        assert next(pieces)
        assert len(workers()) == 1
    engine.until("the worker gone", lambda: not workers())


def test_removed_meanwhile(engine: Engine) -> None:
    """Whoever reads the archive is told that it is not whole."""
    engine.out("run", "--name", "big", "busybox", "truncate", "-s", "100000000", "/big")
    with engine.http() as http, http.stream("GET", "/containers/big/export") as answer:
        pieces = answer.iter_bytes()
        next(pieces)
        engine.out("rm", "big")
        with pytest.raises(httpx.RemoteProtocolError):
            list(pieces)


def test_what_is_refused(engine: Engine) -> None:
    with engine.http() as http:
        answer = http.get("/containers/nope/export")
    assert (answer.status_code, answer.json()["message"]) == (404, "No such container: nope")

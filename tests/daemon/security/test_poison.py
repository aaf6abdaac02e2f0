"""CVE-2019-14271: nothing of an image is loaded by what enters the container: no module, no codec, no shared
library, whatever the image and its environment offer.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.security import images
from tests.support.engine import Engine

pytestmark = pytest.mark.root

_IN_NONBLOCK, _IN_ACCESS, _IN_OPEN = os.O_NONBLOCK, 0x1, 0x20
_LIBRARIES = ("libnss_files.so.2", "libnss_compat.so.2", "libnss_dns.so.2", "libc.so.6", "evil.so")
_MODULES = (
    *("sitecustomize.py", "usercustomize.py", "json/__init__.py", "encodings/__init__.py", "_socket.py"),
    *("encodings/idna.py", "encodings/latin_1.py", "encodings/cp437.py", "pwd.py", "grp.py", "traceback.py"),
)
ENVIRONMENT = (
    *("PYTHONPATH=/poison", "PYTHONSTARTUP=/poison/sitecustomize.py", "PYTHONHOME=/poison"),
    *("LD_LIBRARY_PATH=/poison", "LD_PRELOAD=/poison/evil.so", "LD_AUDIT=/poison/evil.so"),
    *("GCONV_PATH=/poison", "LOCPATH=/poison", "NLSPATH=/poison/%N", "PYTHONUSERBASE=/poison"),
)


def _folders() -> list[str]:
    """Where the engine's interpreter would look, were it to load something after it has entered."""
    own = {path for path in sys.path if path.startswith("/") and not path.endswith(".zip")}
    return sorted(own | {"/poison", "/lib/x86_64-linux-gnu", "/usr/lib/gconv"})


class Watch:
    """What is opened or read in some host folders, by whatever process and over whatever bind mount.

    inotify(7).
    """

    def __init__(self, folders: list[Path]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(_IN_NONBLOCK)
        for path in folders:
            assert libc.inotify_add_watch(self._fd, os.fsencode(path), _IN_OPEN | _IN_ACCESS) > 0

    def taken(self) -> list[str]:
        """Names of the entries that were touched since the last call."""
        names: list[str] = []
        while True:
            try:
                data = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return names
            while data:
                (length,) = struct.unpack_from("I", data, 12)
                names.append(data[16 : 16 + length].rstrip(b"\0").decode())
                data = data[16 + length :]

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def poison(tmp_path: Path) -> Path:
    for name in (*_LIBRARIES, *_MODULES):
        path = tmp_path / "poison" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('poisoned')\n")
    for outer in _folders():  # one may lie in another
        for inner in _folders():
            if inner.startswith(f"{outer}/"):
                (tmp_path / "poison" / inner.removeprefix(f"{outer}/")).mkdir(parents=True, exist_ok=True)
    return tmp_path / "poison"


@pytest.fixture
def watch(poison: Path) -> Iterator[Watch]:
    made = Watch([poison, poison / "json", poison / "encodings"])
    yield made
    made.close()


def test_nothing_is_even_opened(engine: Engine, poison: Path, watch: Watch) -> None:
    mounts = [word for path in _folders() for word in ("-v", f"{poison}:{path}:ro")]
    given = [word for text in ENVIRONMENT for word in ("-e", text)]
    options = (*mounts, *given, "--user", "nobody:wheel", "--group-add", "daemon")
    engine.out("run", "--rm", *options, "busybox", "true")
    engine.out("run", "--rm", "-t", *options, "busybox", "true")
    for wrong in ("nosuch", "/etc", "/etc/passwd"):
        assert engine.docker("run", "--rm", *options, "busybox", wrong).returncode in (126, 127)
    container = engine.out("run", "-d", *options, "--name", "sick", "busybox", "sleep", "60")
    engine.out("exec", container, "true")
    engine.out("exec", *given, "--user", "www-data", "-w", "/var/www", container, "true")
    assert engine.docker("exec", container, "nosuch").returncode == 127
    engine.out("top", container)
    engine.out("stop", "-t", "0", container)
    assert watch.taken() == []
    # The watch would have seen it.
    engine.out("run", "--rm", *mounts, "busybox", "cat", "/poison/evil.so")
    assert "evil.so" in watch.taken()


def test_an_image_of_poison(engine: Engine, tmp_path: Path) -> None:
    """The same as files of the image, that would leave a mark on the host and in the container."""
    mark = tmp_path / "marked"
    code = f"open({str(mark)!r}, 'w'); open('/marked', 'w')\n"
    folders = [path.lstrip("/") for path in _folders()]
    entries = [images.file(f"{folder}/{name}", code) for folder in folders for name in _MODULES]
    entries += [
        images.file(f"{folder}/{name}", b"\x7fELF poison") for folder in folders for name in _LIBRARIES
    ]
    entries += [
        images.file("etc/nsswitch.conf", "passwd: evil files\ngroup: evil files\nhosts: evil\n"),
        images.file("etc/ld.so.preload", "/poison/evil.so\n"),
        images.file("etc/ld.so.cache", b"poison"),
    ]
    images.make(engine, "poison", entries, [f"ENV {text}" for text in ENVIRONMENT])
    assert engine.out("run", "--rm", "--user", "nobody", "poison", "ls", "/").count("marked") == 0
    container = engine.out("run", "-d", "poison", "sleep", "60")
    engine.out("exec", "-t", "--user", "nobody", container, "true")
    assert "marked" not in engine.out("exec", container, "ls", "/").split()
    assert not mark.exists()

"""An image that brings something else in the place of /proc, /dev, /sys and what lies in them.

CVE-2019-16884, CVE-2019-19921, CVE-2023-27561, CVE-2023-28642, CVE-2025-52881: /proc replaced, so that what
is written there goes astray. CVE-2025-31133, CVE-2025-52565: masks and the console made from what an image
put at /dev/null and /dev/pts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.security import images
from tests.support.engine import Engine

pytestmark = pytest.mark.root

_TARGETS = ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/panic", "/proc/sys/vm/drop_caches")


@pytest.fixture(autouse=True)
def host_kept() -> Iterator[None]:
    """The host's kernel parameters are what they were."""

    def state() -> list[str]:
        return [Path(path).read_text() for path in _TARGETS[:2]]

    before = state()
    yield
    assert state() == before


def types(engine: Engine, image: str, *options: str) -> str:
    script = "stat -f -c '%n %T' /proc /dev /sys; stat -c '%n %t:%T' /dev/null /proc/interrupts"
    return engine.out("run", "--rm", *options, image, "sh", "-c", script)


RIGHT = ["/proc proc", "/dev tmpfs", "/sys sysfs", "/dev/null 1:3", "/proc/interrupts 1:3"]


@pytest.mark.parametrize("target", ["elsewhere", "/tmp", "../../../../../../tmp", "/nowhere", "proc"])
@pytest.mark.parametrize("name", ["proc", "sys"])
def test_a_link_in_the_place_of(engine: Engine, name: str, target: str) -> None:
    images.make(engine, "swapped", [images.folder("elsewhere"), images.link(name, target)])
    done = engine.docker("run", "--rm", "swapped", "true")
    assert done.returncode == 125
    assert "must be mounted on ordinary directory" in done.stderr


@pytest.mark.parametrize("target", ["elsewhere", "../../../../../../buoy-no-such"])
def test_a_link_from_dev(engine: Engine, target: str) -> None:
    """It leads to a place inside the root, which everything of /dev is then mounted on."""
    images.make(engine, "swapped", [images.folder("elsewhere"), images.link("dev", target)])
    assert types(engine, "swapped").splitlines()[1:4:2] == RIGHT[1:4:2]
    assert not Path("/buoy-no-such").exists()


def test_a_link_from_dev_to_proc(engine: Engine) -> None:
    images.make(engine, "swapped", [images.link("dev", "proc")])
    done = engine.docker("run", "--rm", "swapped", "true")
    assert done.returncode == 125
    assert "is not of type proc" in done.stderr


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
def test_a_file_in_the_place_of(engine: Engine, name: str) -> None:
    images.make(engine, "swapped", [images.file(name, "x")])
    assert engine.docker("run", "--rm", "swapped", "true").returncode == 125


def test_entries_of_dev_and_proc(engine: Engine) -> None:
    """All of them are covered by the file systems that are mounted there."""
    links = [
        images.link(f"{place}", target)
        for target in _TARGETS[:1]
        for place in ("dev/null", "dev/console", "dev/pts", "dev/ptmx", "dev/tty", "dev/shm", "dev/fd",
                      "proc/self", "proc/kcore", "proc/sys", "sys/firmware")
    ]  # fmt: skip
    images.make(engine, "swapped", links)
    assert types(engine, "swapped").splitlines() == RIGHT
    assert types(engine, "swapped", "-t").split() == " ".join(RIGHT).split()
    script = "tty; stat -c %t /dev/console; stat -f -c %T /dev/pts /dev/console"
    terminal, major, *kinds = engine.out("run", "--rm", "-t", "swapped", "sh", "-c", script).split()
    assert terminal == "/dev/pts/0"
    assert int(major, 16) in range(136, 144)  # Unix 98 terminals
    assert kinds == ["devpts", "devpts"] or kinds == ["0x1cd1", "0x1cd1"]


@pytest.mark.parametrize("target", ["/proc", "/proc/sys", "/proc/self", "/proc/sys/kernel/core_pattern"])
@pytest.mark.parametrize("how", ["bind", "tmpfs"])
def test_a_volume_in_the_place_of(engine: Engine, tmp_path: Path, how: str, target: str) -> None:
    (tmp_path / "self/attr").mkdir(parents=True)
    option = ("-v", f"{tmp_path}:{target}") if how == "bind" else ("--tmpfs", target)
    done = engine.docker("run", "--rm", *option, "busybox", "true")
    assert done.returncode == 125
    assert "proc" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["self"]


@pytest.mark.parametrize("name", ["null", "pts/ptmx", "console"])
def test_a_volume_in_the_place_of_dev(engine: Engine, tmp_path: Path, name: str) -> None:
    """Its links are never what a mask or a terminal is made from."""
    for path in ("null", "pts/ptmx", "console"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).symlink_to(_TARGETS[0] if path == name else "/etc/passwd")
    for options in ((), ("-t",)):
        done = engine.docker("run", "--rm", *options, "-v", f"{tmp_path}:/dev", "busybox", "true")
        assert done.returncode != 0
        assert "/dev/null" in done.stdout + done.stderr or "terminal" in done.stdout + done.stderr


def test_a_container_cannot_write_the_host_s_parameters(engine: Engine) -> None:
    paths = [path for path in (*_TARGETS, "/proc/sysrq-trigger") if Path(path).exists()]
    script = f"exec 2>&1; for path in {' '.join(paths)}; do echo x > $path; done; true"
    printed = engine.out("run", "--rm", "busybox", "sh", "-c", script)
    assert printed.count("Read-only file system") == len(paths)

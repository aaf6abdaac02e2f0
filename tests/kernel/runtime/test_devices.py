"""/dev: default devices, those of the spec, and what an image may put in their place."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.runtime.bundle import Bundle

pytestmark = pytest.mark.root

NODE = "%n %F %t:%T %a %u:%g"


def _device(path: str, kind: str, major: int, minor: int, **more: Any) -> dict[str, Any]:
    return {"path": path, "type": kind, "major": major, "minor": minor, **more}


def _without_dev(bundle: Bundle) -> Path:
    """The image's own /dev instead of a new one."""
    bundle.spec["mounts"] = [
        mount for mount in bundle.spec["mounts"] if not mount["destination"].startswith("/dev")
    ]
    bundle.spec["root"]["readonly"] = False
    dev = bundle.rootfs / "dev"
    dev.mkdir()
    return dev


def test_default_devices_and_links(bundle: Bundle) -> None:
    names = ("null", "zero", "full", "random", "urandom", "tty")
    links = ("fd", "stdin", "stdout", "stderr", "ptmx")
    script = f"cd /dev; stat -c '{NODE}' {' '.join(names)}; for i in {' '.join(links)}; do readlink $i; done"
    lines = bundle.run("sh", "-c", script).stdout.splitlines()
    numbers = ("1:3", "1:5", "1:7", "1:8", "1:9", "5:0")
    assert lines[:6] == [
        f"{name} character special file {number} 666 0:0" for name, number in zip(names, numbers, strict=True)
    ]
    assert lines[6:] == ["/proc/self/fd", *(f"/proc/self/fd/{number}" for number in range(3)), "pts/ptmx"]


def test_devices_of_the_spec(bundle: Bundle) -> None:
    bundle.spec["root"]["readonly"] = False
    (bundle.rootfs / "way").symlink_to("/far")
    bundle.linux["devices"] = [
        _device("/dev/fuse", "c", 10, 229, fileMode=0o640, uid=5, gid=6),
        _device("/dev/net/tun", "u", 10, 200),
        _device("/dev/a/disk", "b", 8, 1, fileMode=0o100600, uid=7),
        {"path": "/dev/fifo", "type": "p", "fileMode": 0o6755, "uid": 3},
        _device("/dev/zero", "c", 1, 5, fileMode=0o444),
        _device("/way/null/", "c", 1, 3),
        _device("/dev/./full", "c", 1, 7, gid=9),
        _device("/dev/full", "c", 1, 7, gid=9),
    ]
    paths = ("/dev/fuse", "/dev/net/tun", "/dev/a/disk", "/dev/fifo", "/dev/zero", "/far/null", "/dev/full")
    assert bundle.run("stat", "-c", NODE, *paths).stdout.splitlines() == [
        "/dev/fuse character special file a:e5 640 5:6",
        "/dev/net/tun character special file a:c8 666 0:0",
        "/dev/a/disk block special file 8:1 600 7:0",
        "/dev/fifo fifo 0:0 6755 3:0",
        "/dev/zero character special file 1:5 444 0:0",
        "/far/null character special file 1:3 666 0:0",
        "/dev/full character special file 1:7 666 0:9",
    ]


def test_a_device_that_is_there_already(bundle: Bundle) -> None:
    """It may be the one that is wanted; anything else is an error (runtime spec, "Devices")."""
    bundle.spec["mounts"].append({"destination": "/dev/null", "source": "/dev/null", "options": ["bind"]})
    bundle.run("true")
    bundle.spec["mounts"][-1]["source"] = "/dev/zero"
    done = bundle.run("true", check=False)
    assert "device /dev/null: what is there already does not match c 1:3" in done.stderr
    bundle.spec["mounts"].pop()
    (bundle.rootfs / "etc/file").write_text("kept")
    bundle.linux["devices"] = [_device("/etc/file", "c", 1, 3)]
    done = bundle.run("true", check=False)
    assert "device /etc/file: what is there already does not match c 1:3" in done.stderr
    assert (bundle.rootfs / "etc/file").read_text() == "kept"


def test_an_image_with_devices_of_its_own(bundle: Bundle) -> None:
    dev = _without_dev(bundle)
    os.mknod(dev / "null", 0o20600, os.makedev(1, 3))
    (dev / "stdin").symlink_to("elsewhere")
    done = bundle.run(
        "sh", "-c", f"stat -c '{NODE}' /dev/null /dev/zero; readlink /dev/stdin; readlink /dev/ptmx"
    )
    assert done.stdout.splitlines() == [
        "/dev/null character special file 1:3 600 0:0",
        "/dev/zero character special file 1:5 666 0:0",
        "elsewhere",
        "pts/ptmx",
    ]


def test_a_link_in_the_place_of_dev(bundle: Bundle) -> None:
    _without_dev(bundle).rmdir()
    (bundle.rootfs / "dev").symlink_to("/etc")
    done = bundle.run("true", check=False)
    assert "/dev of the root must be an ordinary directory" in done.stderr
    assert list((bundle.rootfs / "etc").iterdir()) == []


@pytest.mark.parametrize("target", ["elsewhere", "/elsewhere", "../../../../tmp/buoy-no-such", "a/b"])
def test_a_link_to_the_place_of_dev(bundle: Bundle, target: str) -> None:
    """What is mounted there lies where the link leads inside the root, and the nodes are made in it."""
    (bundle.rootfs / "elsewhere").mkdir()
    (bundle.rootfs / "dev").symlink_to(target)
    bundle.linux["devices"] = [{"path": "/dev/net/x", "type": "c", "major": 1, "minor": 5}]
    script = "stat -c '%F' /dev/null /dev/net/x; echo x > /dev/null; readlink /dev/ptmx; ls /dev/shm /dev/pts"
    done = bundle.run("sh", "-c", f"{script}; cat /proc/self/mountinfo", check=False)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["character special file", "character special file", "pts/ptmx"], done.stderr
    inside = os.path.normpath("/" + target.lstrip("/"))
    mounted = [line.split() for line in lines if " - tmpfs tmpfs " in line]
    assert inside in [words[4] for words in mounted]
    assert not Path("/tmp/buoy-no-such").exists()
    assert not list((bundle.rootfs / inside.lstrip("/")).iterdir())


@pytest.mark.parametrize("target", ["proc", "/", "dev"])
def test_a_link_from_dev_to_where_nothing_may_lie(bundle: Bundle, target: str) -> None:
    (bundle.rootfs / "dev").symlink_to(target)
    done = bundle.run("true", check=False)
    messages = ("is not of type proc", "is on the top of rootfs", "too many levels of symbolic links")
    assert any(message in done.stderr for message in messages)


def test_a_dev_that_is_bound_is_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    _without_dev(bundle).rmdir()
    dev = tmp_path / "dev"
    dev.mkdir()
    os.mknod(dev / "null", 0o20666, os.makedev(1, 3))
    bundle.spec["mounts"].append({"destination": "/dev", "source": str(dev), "options": ["rbind"]})
    assert bundle.run("ls", "/dev").stdout.split() == ["null"]


def test_a_false_null_device_masks_nothing(bundle: Bundle, tmp_path: Path) -> None:
    """CVE-2025-31133: /dev of the image is used, and its null is a link to something else."""
    dev = tmp_path / "dev"
    dev.mkdir()
    (dev / "null").symlink_to("/proc/version")
    _without_dev(bundle).rmdir()
    bundle.spec["mounts"].append({"destination": "/dev", "source": str(dev), "options": ["rbind"]})
    done = bundle.run("true", check=False)
    assert r"can't mask path \"" in done.stderr
    assert "/dev/null is invalid" in done.stderr


def test_a_link_in_the_place_of_the_console(bundle: Bundle) -> None:
    """CVE-2025-52565: the terminal must not cover what the image chooses."""
    dev = _without_dev(bundle)
    (dev / "console").symlink_to("/proc/uptime")
    bundle.spec["mounts"].append(
        {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]}
    )
    bundle.process["terminal"] = True
    done = bundle.run("true", check=False)
    assert done.returncode == 1
    assert "unable to set up /dev/console" in done.stderr


def test_devices_are_bound_where_none_can_be_made(bundle: Bundle) -> None:
    """A runtime without CAP_MKNOD; what is bound is the device that was asked for, not its name."""
    setpriv = shutil.which("setpriv")
    assert setpriv is not None
    bundle.spec["root"]["readonly"] = False
    bundle.linux["devices"] = [_device("/dev/other", "c", 1, 5), _device("/dev/tty0", "c", 1, 3)]
    bundle.process["args"] = ["stat", "-c", "%n %F %t:%T", "/dev/null", "/dev/other", "/dev/tty0"]
    command = [setpriv, "--bounding-set=-mknod", "--inh-caps=-mknod"]
    options: dict[str, Any] = {"capture_output": True, "text": True, "cwd": bundle.folder, "timeout": 30}
    done = subprocess.run([*command, *bundle.command("run", bundle.new_id())], **options)
    assert done.stdout.splitlines() == [
        "/dev/null character special file 1:3",
        "/dev/other character special file 1:5",
        "/dev/tty0 character special file 1:3",
    ]
    bundle.linux["devices"] = [_device("/dev/none", "b", 250, 77)]
    done = subprocess.run([*command, *bundle.command("run", bundle.new_id())], **options)
    assert "device /dev/none: the host has no b 250:77 to bind" in done.stderr

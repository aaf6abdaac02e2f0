"""Users by the container's own files, read from layers without leaving them."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

import errdefs
import pytest
from dockerd_api.engine import users
from dockerd_api.engine.rootfs import Rootfs, read_running
from pb.containerd.types import Mount

PASSWD = b"root:x:0:0:root:/root:/bin/sh\n#c\nbob:x:1001:1002::/home/bob:/bin/sh\nbig:x:4294967296:0::/:\n"
PASSWD += b"odd:x:+0:0::/:\n2000:x:0:0::/:\n"
NO_NUMBERS = ("+0", "00", "-0", "0x0", "0 ", " 0", "0\n", "0.0", "1e3", "\u0660", "0" * 30, "1" + "0" * 30)
GROUP = b"root:x:0:\nbobs:x:1002:\nextra:x:1003:bob,other\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", users.User(0, 0, (0,), "/root")),
        ("0", users.User(0, 0, (0,), "/root")),
        ("bob", users.User(1001, 1002, (1002, 1003), "/home/bob")),
        ("1001", users.User(1001, 1002, (1002, 1003), "/home/bob")),
        ("bob:extra", users.User(1001, 1003, (1003,), "/home/bob")),
        ("7:8", users.User(7, 8, (8,), "/")),
        ("2147483647", users.User(2147483647, 0, (0,), "/")),
    ],
)
def test_users(text: str, expected: users.User) -> None:
    assert users.resolve(text, PASSWD, GROUP) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nobodyx", "unable to find user nobodyx: no matching entries in passwd file"),
        ("root:nogrp", "unable to find group nogrp: no matching entries in group file"),
        ("4294967296", "uids and gids must be in range 0-2147483647"),
        ("2147483648", "uids and gids must be in range 0-2147483647"),
        ("0:2147483648", "uids and gids must be in range 0-2147483647"),
        ("0:-1", "uids and gids must be in range 0-2147483647"),
        ("odd", "uids and gids must be in range 0-2147483647"),
        *((text, f"unable to find user {text}: no matching entries in passwd file") for text in NO_NUMBERS),
        *(
            (f"0:{text}", f"unable to find group {text}: no matching entries in group file")
            for text in NO_NUMBERS
        ),
        ("-1", "uids and gids must be in range 0-2147483647"),
        ("0:4294967296", "uids and gids must be in range 0-2147483647"),
        ("big", "uids and gids must be in range 0-2147483647"),
    ],
)
def test_users_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(errdefs.Internal) as caught:
        users.resolve(text, PASSWD, GROUP)
    assert caught.value.message == words


def test_a_number_is_an_id_and_no_name() -> None:
    assert users.resolve("2000", PASSWD, GROUP).uid == 2000
    assert users.resolve("7:8", PASSWD, b"8:x:0:\n") == users.User(7, 8, (8,), "/")
    assert users.resolve("7", PASSWD, b"8:x:0:\n", ["8"]).additional_gids == (0, 8)
    assert users.resolve("", b"root:x:5:5::/x:\n", b"") == users.User(0, 0, (0,), "/")


def test_group_add() -> None:
    assert users.resolve("bob", PASSWD, GROUP, ["9", "root"]).additional_gids == (1002, 1003, 9, 0)
    with pytest.raises(errdefs.Internal, match="Unable to find group zz"):
        users.resolve("bob", PASSWD, GROUP, ["zz"])


def test_without_files() -> None:
    assert users.resolve("", b"", b"") == users.User(0, 0, (0,), "/")


def overlay(*layers: Path) -> list[Mount]:
    options = [f"upperdir={layers[0]}", f"lowerdir={':'.join(map(str, layers[1:]))}", "workdir=/none"]
    return [Mount(type="overlay", source="overlay", options=options)]


def layer(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    folder.mkdir(exist_ok=True)
    return folder


def test_the_upper_layer_wins_and_folders_merge(tmp_path: Path) -> None:
    low = layer(tmp_path / "low", {"etc/passwd": "low", "etc/group": "low"})
    top = layer(tmp_path / "top", {"etc/passwd": "top"})
    with Rootfs(overlay(top, low)) as root:
        assert root.read("/etc/passwd", 100) == b"top"
        assert root.read("/etc/group", 100) == b"low"
        assert root.read("/etc/none", 100) is None
        assert (root.kind("/etc"), root.kind("/etc/group"), root.kind("/x"), root.kind("/")) == (
            "folder", "file", "", "folder",
        )  # fmt: skip


def test_links_stay_inside(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    low = layer(tmp_path / "low", {"usr/etc/passwd": "inside"})
    top = layer(tmp_path / "top", {"bin/x": ""})
    (top / "etc").mkdir()
    (top / "etc/passwd").symlink_to("../../../../usr/etc/passwd")
    (top / "etc/absolute").symlink_to(secret)
    (top / "etc/loop").symlink_to("loop")
    (top / "out").symlink_to("/")
    with Rootfs(overlay(top, low)) as root:
        assert root.read("/etc/passwd", 100) == b"inside"
        assert root.read("/out/etc/passwd", 100) == b"inside"
        assert root.read("/etc/absolute", 100) is None
        assert root.read("/etc/loop", 100) is None


def test_a_file_that_is_too_large_or_none(tmp_path: Path) -> None:
    folder = layer(tmp_path / "root", {"etc/passwd": "x" * 101})
    os.mkfifo(folder / "etc/group")
    with Rootfs([Mount(type="bind", source=str(folder))]) as root:
        with pytest.raises(errdefs.InvalidArgument, match="larger than 100 bytes"):
            root.read("/etc/passwd", 100)
        assert root.read("/etc/group", 100) is None


@pytest.mark.root
def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """To open the device would be ENXIO, since no driver has its number; to read the fifo would not end."""
    folder = layer(tmp_path / "root", {"etc/x": ""})
    os.mknod(folder / "etc/passwd", 0o600 | stat.S_IFCHR, os.makedev(240, 77))
    os.mkfifo(folder / "etc/group")
    (folder / "etc/link").symlink_to("passwd")
    (folder / "etc/deep").symlink_to("/".join([".."] * 60 + ["etc/deep"]))
    with Rootfs([Mount(type="bind", source=str(folder))]) as root:
        for name in ("passwd", "group", "link", "deep"):
            assert root.read(f"/etc/{name}", 100) is None
            assert read_running(os.getpid(), f"{folder}/etc/{name}", 100) is None


@pytest.mark.root
def test_a_sparse_file_of_a_gigabyte(tmp_path: Path) -> None:
    folder = layer(tmp_path / "root", {"etc/passwd": ""})
    os.truncate(folder / "etc/passwd", 1 << 30)
    refused = pytest.raises(errdefs.InvalidArgument, match="larger than 1048576 bytes")
    with Rootfs([Mount(type="bind", source=str(folder))]) as root, refused:
        root.read("/etc/passwd", users.FILE_LIMIT)
    with refused:
        read_running(os.getpid(), f"{folder}/etc/passwd", users.FILE_LIMIT)


def test_resolving_a_large_file_is_quick() -> None:
    """The worst that the limit lets through: short lines, and one line only."""
    began = time.process_time()
    users.resolve("0:9", b"a:x:1:1\n" * (users.FILE_LIMIT // 8), b"a:x:1:\n" * (users.FILE_LIMIT // 7))
    users.resolve("0:9", b":" * users.FILE_LIMIT, b"," * users.FILE_LIMIT)
    assert time.process_time() - began < 1


@pytest.mark.root
def test_whiteouts_and_opaque_folders_hide(tmp_path: Path) -> None:
    low = layer(tmp_path / "low", {"etc/passwd": "low", "opt/a": "low"})
    top = layer(tmp_path / "top", {"opt/b": "top"})
    (top / "etc").mkdir()
    os.mknod(top / "etc/passwd", 0o600 | 0o020000, 0)
    os.setxattr(top / "opt", "trusted.overlay.opaque", b"y")
    with Rootfs(overlay(top, low)) as root:
        assert root.read("/etc/passwd", 100) is None
        assert root.read("/opt/a", 100) is None
        assert root.read("/opt/b", 100) == b"top"

"""The image that demo and tests run."""

from __future__ import annotations

import tarfile
from pathlib import Path

from launcher.busybox_image import main

from tests.support.busybox import busybox_image_tar, busybox_rootfs_tar


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    ids = {busybox_image_tar(tmp_path / name, "a:1") for name in ("one", "two")}
    assert len(ids) == 1
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_tree(tmp_path: Path) -> None:
    busybox_rootfs_tar(tmp_path / "r.tar", {"extra": b"1"})
    with tarfile.open(tmp_path / "r.tar") as archive:
        assert archive.getmember("bin/sh").linkname == "/bin/busybox"
        assert archive.getmember("tmp").mode == 0o1777
        assert {"etc/passwd", "etc/group", "extra"} <= set(archive.getnames())


def test_the_command(tmp_path: Path, capsys: object) -> None:
    assert main([str(tmp_path / "i.tar")]) == 0
    assert main([str(tmp_path / "r.tar"), "--rootfs"]) == 0
    assert main([]) == 2
    assert main(["--help"]) == 2
    assert main([str(tmp_path / "missing/x.tar")]) == 1

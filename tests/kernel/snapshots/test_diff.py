"""Layers made of snapshots: what a tree changed, packed, is what another tree becomes of it."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import socket
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import errdefs
import pytest
import zstandard
from pb.containerd.types import Mount

from tests.support.stores import Stores, serve_stores

pytestmark = pytest.mark.root

PLAIN = "application/vnd.oci.image.layer.v1.tar"
CAPABILITY = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    async with serve_stores(tmp_path / "root") as served:
        yield served


class Shown:
    """A snapshot's mounts, mounted for a while by the test."""

    def __init__(self, mounts: list[Mount], folder: Path) -> None:
        self.mounts, self.folder = mounts, folder

    def __enter__(self) -> Path:
        self.folder.mkdir()
        [mount] = self.mounts
        command = ["mount", "-t", mount.type, mount.source, os.fspath(self.folder)]
        if mount.type == "bind":
            command = ["mount", "--bind", mount.source, os.fspath(self.folder)]
        else:
            command += ["-o", ",".join(mount.options)]
        subprocess.run(command, check=True)
        return self.folder

    def __exit__(self, *_: Any) -> None:
        subprocess.run(["umount", os.fspath(self.folder)], check=True)
        self.folder.rmdir()


def fill(root: Path) -> None:
    """A base tree with something of each kind."""
    for name in ("kept", "emptied", "replaced", "gone", "deep/er"):
        (root / name).mkdir(parents=True)
    for name in ("kept/a", "emptied/b", "replaced/c", "gone/d", "deep/er/e", "file", "other", "same"):
        (root / name).write_text(name)
    os.symlink("file", root / "link")


def change(root: Path) -> None:
    """What a container may do to it."""
    (root / "kept/new").write_text("new")
    (root / "emptied/b").unlink()
    subprocess.run(["rm", "-r", root / "gone", root / "replaced"], check=True)
    (root / "replaced").mkdir()
    (root / "replaced/f").write_bytes(b"f" * 3_000_000)
    (root / "other").unlink()
    (root / "other").mkdir(mode=0o1777)
    (root / "deep/er/e").chmod(0o4711)
    (root / "link").unlink()
    os.symlink("/nowhere", root / "link")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.link(root / "replaced/f", root / "hard")
    os.setxattr(root / "kept/new", "user.note", b"\xff\x00n")
    os.setxattr(root / "hard", "security.capability", CAPABILITY)
    os.chown(root / "kept/new", 12, 34)
    os.utime(root / "kept/new", ns=(1, 1_234_567_890_123_456_789))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.fspath(root / "socket"))
    (root / os.fsdecode(b"n\xffme" + b"x" * 200)).write_text("long and not UTF-8")


def tree(root: Path) -> dict[str, Any]:
    """All that a layer keeps, by path."""
    found: dict[str, Any] = {}
    inodes: dict[int, str] = {}
    for folder, folders, files in os.walk(root):
        for name in sorted(folders + files):
            path = Path(folder, name)
            facts = path.lstat()
            if stat.S_ISSOCK(facts.st_mode):
                continue
            what: Any = None
            if stat.S_ISREG(facts.st_mode):
                what = hashlib.sha256(path.read_bytes()).hexdigest(), inodes.setdefault(facts.st_ino, name)
            elif stat.S_ISLNK(facts.st_mode):
                what = os.readlink(path)
            attributes = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
                if not key.startswith("trusted.")
            }
            modified = facts.st_mtime_ns if not stat.S_ISDIR(facts.st_mode) else 0
            found[os.fspath(path.relative_to(root))] = (
                *(facts.st_mode, facts.st_uid, facts.st_gid, facts.st_rdev, modified),
                *(what, attributes),
            )
    return found


@pytest.fixture
async def changed(stores: Stores, tmp_path: Path) -> tuple[list[Mount], list[Mount], dict[str, Any]]:
    """The mounts of a base and of what a container made of it, and the tree that it saw."""
    with Shown(await stores.snapshots.prepare("moby", "overlayfs", "base", ""), tmp_path / "m") as root:
        fill(root)
    await stores.snapshots.commit("moby", "overlayfs", "base-1", "base")
    upper = await stores.snapshots.prepare("moby", "overlayfs", "x", "base-1")
    with Shown(upper, tmp_path / "m") as root:
        change(root)
        seen = tree(root)
    lower = await stores.snapshots.view("moby", "overlayfs", "v", "base-1")
    return lower, upper, seen


async def blob(stores: Stores, digest: str) -> bytes:
    return stores.content.path(digest).read_bytes()


def copy_tree(have: str, copy: Path) -> None:
    subprocess.run(["cp", "-a", have, copy], check=True)


def names(layer: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        return archive.getnames()


@pytest.mark.parametrize("as_trees", [False, True], ids=["upper folder", "trees compared"])
async def test_what_is_made_is_what_was_seen(
    as_trees: bool, stores: Stores, tmp_path: Path, changed: tuple[list[Mount], list[Mount], dict[str, Any]]
) -> None:
    lower, upper, seen = changed
    if as_trees:  # the same base under another name: nothing says that one lies on the other
        copy = tmp_path / "copy"
        copy_tree(lower[0].source, copy)
        lower = [Mount(type="bind", source=os.fspath(copy), options=["ro", "rbind"])]
    made = await stores.differ.make("moby", lower, upper, media_type=PLAIN)
    layer = await blob(stores, made.digest)
    assert (made.media_type, made.size) == (PLAIN, len(layer))
    assert "same" not in names(layer)
    assert {"kept", "kept/new", "deep", "deep/er", ".wh.gone", "emptied/.wh.b"} <= set(names(layer))
    info = await stores.content.info("moby", made.digest)
    assert info.labels == {"containerd.io/uncompressed": made.digest}

    again = await stores.snapshots.prepare("moby", "overlayfs", "again", "base-1")
    applied = await stores.differ.apply("moby", PLAIN, made.digest, again)
    assert applied.digest == made.digest
    with Shown(again, tmp_path / "m") as root:
        assert tree(root) == seen
    assert list((stores.root / "diff").iterdir()) == []


async def test_a_first_layer_holds_everything(stores: Stores, tmp_path: Path) -> None:
    upper = await stores.snapshots.prepare("moby", "overlayfs", "base", "")
    with Shown(upper, tmp_path / "m") as root:
        fill(root)
        seen = tree(root)
    made = await stores.differ.make("moby", [], upper, media_type=PLAIN)
    again = await stores.snapshots.prepare("moby", "overlayfs", "again", "")
    await stores.differ.apply("moby", PLAIN, made.digest, again)
    with Shown(again, tmp_path / "m") as root:
        assert tree(root) == seen


@pytest.mark.parametrize(
    ("media_type", "plain"),
    [
        ("", gzip.decompress),
        (PLAIN + "+gzip", gzip.decompress),
        (PLAIN + "+zstd", lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", gzip.decompress),
    ],
)
async def test_compressed(
    media_type: str, plain: Any, stores: Stores, changed: tuple[list[Mount], list[Mount], dict[str, Any]]
) -> None:
    made = await stores.differ.make(
        "moby", changed[0], changed[1], media_type=media_type, ref="r", labels={"a": "b"}
    )
    assert made.media_type == (media_type or PLAIN + "+gzip")
    layer = plain(await blob(stores, made.digest))
    uncompressed = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    info = await stores.content.info("moby", made.digest)
    assert info.labels == {"a": "b", "containerd.io/uncompressed": uncompressed}
    # Made once more, it is the same blob.
    assert await stores.differ.make("moby", changed[0], changed[1], media_type=media_type) == made
    assert await stores.content.statuses("moby") == []


async def test_no_time_is_later_than_asked(
    stores: Stores, changed: tuple[list[Mount], list[Mount], dict[str, Any]]
) -> None:
    made = await stores.differ.make("moby", changed[0], changed[1], media_type=PLAIN, latest=1_300_000_000)
    with tarfile.open(fileobj=io.BytesIO(await blob(stores, made.digest))) as archive:
        times = {member.name: member.mtime for member in archive if not member.name.count(".wh.")}
    assert times["kept/new"] == pytest.approx(1_234_567_890.123)
    assert times["replaced/f"] == 1_300_000_000
    assert max(times.values()) == 1_300_000_000


async def test_refused(stores: Stores) -> None:
    mounts = await stores.snapshots.prepare("moby", "overlayfs", "x", "")
    with pytest.raises(errdefs.NotImplementedHere):
        await stores.differ.make("moby", [], mounts, media_type="application/json")
    with pytest.raises(errdefs.InvalidArgument):
        await stores.differ.make("moby", [], [Mount(type="proc", source="proc")])
    gone = [Mount(type="bind", source=os.fspath(stores.root / "gone"), options=["ro"])]
    with pytest.raises(errdefs.Internal, match="gone"):
        await stores.differ.make("moby", [], gone, ref="r")
    assert await stores.content.statuses("moby") == []
    with pytest.raises(errdefs.NotFound):
        await stores.content.status("moby", "r")

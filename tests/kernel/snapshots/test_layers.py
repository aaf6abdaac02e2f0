"""Layers unpacked onto snapshots: what a good one becomes, and that a hostile one cannot touch the host."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import errdefs
import pytest
import zstandard
from containerd_svc.diff import Applied
from pb.containerd.types import Mount

from tests.support.stores import Stores, serve_stores

pytestmark = pytest.mark.root

PLAIN = "application/vnd.oci.image.layer.v1.tar"
CAPABILITY = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"


def entry(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mtime = 1_000_000_000
    for key, value in fields.items():
        setattr(member, key, value)
    return member, data


def folder(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    settled: dict[str, Any] = {"type": tarfile.DIRTYPE, "mode": 0o755} | fields
    return entry(name, **settled)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=kind, linkname=target)


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as made:
        for member, data in entries:
            made.addfile(member, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    async with serve_stores(tmp_path / "root") as served:
        yield served


async def put(stores: Stores, data: bytes) -> str:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    async with stores.content.writer("moby", digest, total=len(data)) as ingest:
        await ingest.write(data)
        return await stores.content.commit("moby", ingest, expected=digest, wanted={})


async def apply(stores: Stores, data: bytes, mounts: list[Mount]) -> Applied:
    return await stores.differ.apply("moby", PLAIN, await put(stores, data), mounts)


async def fresh(stores: Stores, parent: str = "", key: str = "x") -> tuple[list[Mount], Path]:
    """A new active snapshot, and where its own files are."""
    mounts = await stores.snapshots.prepare("moby", "overlayfs", key, parent)
    number = max(int(path.name) for path in (stores.root / "snapshots").iterdir() if path.name.isdigit())
    return mounts, stores.root / "snapshots" / str(number) / "fs"


async def base(stores: Stores, data: bytes) -> Path:
    """A committed snapshot `base` of a layer; where its files are."""
    mounts, files = await fresh(stores)
    await apply(stores, data, mounts)
    await stores.snapshots.commit("moby", "overlayfs", "base", "x")
    return files


async def test_everything_that_a_file_can_be(stores: Stores) -> None:
    xattr = {"SCHILY.xattr.security.capability": CAPABILITY.decode("utf-8", "surrogateescape")}
    data = tar(
        folder("./d", mode=0o1777, uid=5, gid=6),
        entry("d/f", b"hello", mode=0o4755, uid=1000, gid=1001),
        entry("cap", b"x", mode=0o755, pax_headers=xattr),
        link("d/sym", "/etc/passwd"),
        link("hard", "d/f", tarfile.LNKTYPE),
        entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        entry("block", type=tarfile.BLKTYPE, devmajor=7, devminor=9),
        entry("pipe", type=tarfile.FIFOTYPE, mode=0o600),
        entry("a/b/../c", b"cleaned"),
        entry("/absolute", b"below the root"),
        entry("n" * 200 + "/" + "m" * 90, b"long"),
        entry("time", pax_headers={"mtime": "1234567890.123456789"}),
    )
    mounts, files = await fresh(stores)
    applied = await apply(stores, data, mounts)
    assert applied.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert applied.size == len(data)
    assert applied.unpacked == len(b"hello" + b"x" + b"cleaned" + b"below the root" + b"long")
    facts = (files / "d/f").stat()
    assert (stat.S_IMODE(facts.st_mode), facts.st_uid, facts.st_gid, facts.st_nlink) == (
        0o4755,
        1000,
        1001,
        2,
    )
    assert (files / "d").stat().st_mode & 0o7777 == 0o1777
    assert (files / "d").stat().st_mtime == facts.st_mtime == 1_000_000_000
    assert os.getxattr(files / "cap", "security.capability") == CAPABILITY
    assert os.readlink(files / "d/sym") == "/etc/passwd"
    assert (files / "null").stat().st_rdev == os.makedev(1, 3)
    assert stat.S_ISBLK((files / "block").stat().st_mode)
    assert stat.S_ISFIFO((files / "pipe").stat().st_mode)
    assert (files / "a/c").read_text() == "cleaned"
    assert (files / "absolute").exists()
    assert (files / ("n" * 200) / ("m" * 90)).read_text() == "long"
    assert (files / "time").stat().st_mtime_ns == 1234567890123456789


@pytest.mark.parametrize("squeeze", [gzip.compress, zstandard.compress])
async def test_compressed(squeeze: Callable[[bytes], bytes], stores: Stores) -> None:
    data = tar(entry("f", os.urandom(50_000)))
    mounts, files = await fresh(stores)
    applied = await apply(stores, squeeze(data), mounts)
    assert (applied.digest, applied.size) == (f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    assert (files / "f").stat().st_size == 50_000
    with pytest.raises(errdefs.InvalidArgument):
        await apply(stores, squeeze(data)[:20_000], mounts)


async def test_deletions_and_parents(stores: Stores) -> None:
    xattr = {"SCHILY.xattr.user.x": "1"}
    await base(
        stores,
        tar(
            folder("d", uid=7, gid=8, mode=0o750, pax_headers=xattr),
            entry("d/f"),
            entry("d/g"),
            folder("e"),
            entry("e/x"),
        ),
    )
    mounts, files = await fresh(stores, "base")
    await apply(
        stores,
        tar(
            entry("d/.wh.f"),
            entry("d/new", b"n"),
            entry("e/.wh..wh..opq"),
            entry("e/y"),
            entry(".wh..wh.plnk"),
        ),
        mounts,
    )
    facts = (files / "d/f").lstat()
    assert stat.S_ISCHR(facts.st_mode)
    assert facts.st_rdev == 0
    parent = (files / "d").stat()
    assert (parent.st_uid, parent.st_gid, stat.S_IMODE(parent.st_mode)) == (7, 8, 0o750)
    assert os.getxattr(files / "d", "user.x") == b"1"
    assert os.getxattr(files / "e", "trusted.overlay.opaque") == b"y"
    assert sorted(os.listdir(files)) == ["d", "e"]


async def test_deleted_and_made_again(stores: Stores) -> None:
    """A folder that replaces a deleted one hides what lies below it, whichever way the layer says so."""
    await base(stores, tar(folder("d"), entry("d/f")))
    mounts, files = await fresh(stores, "base")
    await apply(stores, tar(entry(".wh.d"), folder("d"), entry("d/g")), mounts)
    assert os.getxattr(files / "d", "trusted.overlay.opaque") == b"y"
    mounts, files = await fresh(stores, "base", "y")
    await apply(stores, tar(entry("new"), entry(".wh.new"), entry(".wh.d"), entry("d/g")), mounts)
    assert os.getxattr(files / "d", "trusted.overlay.opaque") == b"y"
    assert (files / "new").is_file()


async def test_deletions_without_layers_below(stores: Stores) -> None:
    mounts, files = await fresh(stores)
    await apply(stores, tar(folder("d"), entry("d/f"), entry("g"), folder("h"), entry("h/x")), mounts)
    await apply(stores, tar(entry("h/y"), entry("d/.wh.f"), entry(".wh.g"), entry("h/.wh..wh..opq")), mounts)
    assert sorted(path.name for path in files.rglob("*")) == ["d", "h", "y"]


async def test_replacing(stores: Stores) -> None:
    mounts, files = await fresh(stores)
    await apply(
        stores,
        tar(
            folder("was-folder"), entry("was-folder/x"), entry("was-folder", b"file now"),
            entry("was-file"), folder("was-file"), entry("was-file/x"),
            entry("twice", b"1"), entry("twice", b"2"),
            link("was-link", "twice"), entry("was-link", b"3"),
        ),
        mounts,
    )  # fmt: skip
    assert (files / "was-folder").read_text() == "file now"
    assert (files / "was-file/x").is_file()
    assert (files / "twice").read_text() == "2"
    assert (files / "was-link").read_text() == "3"


async def test_links_are_followed_inside(stores: Stores) -> None:
    """Folders that are links, absolute ones too, lead to where they would in the container."""
    mounts, files = await fresh(stores)
    await apply(
        stores,
        tar(
            link("lib", "/usr/lib"), entry("lib/a", b"1"),
            folder("x"), link("x/up", "../../../../usr/lib"), entry("x/up/b", b"2"),
            link("loop1", "loop2"), link("loop2", "loop1"),
        ),
        mounts,
    )  # fmt: skip
    assert (files / "usr/lib/a").read_text() == "1"
    assert (files / "usr/lib/b").read_text() == "2"
    with pytest.raises(errdefs.InvalidArgument, match="too many links"):
        await apply(stores, tar(entry("loop1/x")), mounts)


def huge(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo("huge")
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(2048)


def damaged(data: bytes) -> bytes:
    return data[:600] + b"\xff" * 512 + data[600:]


CANARY = "canary"
# Each writes, links or deletes through a path that leads out of the tree; {out} is the canary's folder.
HOSTILE: dict[str, Callable[[str], bytes]] = {
    "dotdot": lambda out: tar(entry("../" * 40 + out.lstrip("/") + "/" + CANARY, b"owned")),
    "dotdot inside": lambda out: tar(entry("a/../../" + CANARY, b"owned")),
    "hard link": lambda out: tar(
        link("l", "../" * 40 + f"{out}/{CANARY}", tarfile.LNKTYPE), entry("l", b"owned")
    ),
    "hard link absolute": lambda out: tar(link("l", f"{out}/{CANARY}", tarfile.LNKTYPE)),
    "hard link over link": lambda out: tar(
        link("s", out), link("l", f"s/{CANARY}", tarfile.LNKTYPE), entry("l", b"owned")
    ),
    "whiteout of parent": lambda out: tar(entry("d/.wh..")),
    "whiteout of nothing": lambda out: tar(entry(".wh.")),
    "whiteout of self": lambda out: tar(entry("d/.wh...")),
    "truncated": lambda out: tar(entry("f", bytes(5000)))[:3000],
    "no tar": lambda out: b"hello\n",
    "huge file": lambda out: huge(2**60),
    "negative size": lambda out: huge(-512),
    "huge pax": lambda out: huge(2**40, tarfile.XHDTYPE),
    "huge long name": lambda out: huge(2**40, tarfile.GNUTYPE_LONGNAME),
    "damaged header": lambda out: damaged(tar(entry("a"), entry("b"))),
    "unknown type": lambda out: tar(entry("x", type=b"Z")),
    "device out of range": lambda out: tar(entry("x", type=tarfile.CHRTYPE, devmajor=2**20, devminor=0)),
    "below a file": lambda out: tar(entry("f"), entry("f/x")),
    "owner out of range": lambda out: tar(entry("x", uid=2**40)),
    "bad gzip": lambda out: gzip.compress(bytes(1000))[:10] + b"\xff" * 100,
    "bad zstd": lambda out: b"\x28\xb5\x2f\xfd" + b"\xff" * 100,
}
# These are fine as they are meant: what they reach is inside.
CONTAINED: dict[str, Callable[[str], bytes]] = {
    "symlink then write": lambda out: tar(link("s", out), entry(f"s/{CANARY}", b"owned")),
    "symlink to root": lambda out: tar(link("s", "/"), entry(f"s{out}/{CANARY}", b"owned")),
    "symlink up": lambda out: tar(link("s", "../" * 40 + out), entry(f"s/{CANARY}", b"owned")),
    "symlink file": lambda out: tar(link("s", f"{out}/{CANARY}"), entry("s", b"owned")),
    "chain of links": lambda out: tar(link("a", "/"), link("b", "a"), entry(f"b/{out}/{CANARY}", b"owned")),
    "whiteout over link": lambda out: tar(link("s", out), entry(f"s/.wh.{CANARY}")),
    "opaque over link": lambda out: tar(link("s", out), entry("s/.wh..wh..opq")),
    "folder mode over link": lambda out: tar(link("s", out), folder("s", mode=0o777)),
    "overlay attribute": lambda out: tar(
        folder("d", pax_headers={"SCHILY.xattr.trusted.overlay.redirect": "/etc"}),
    ),
    "a root entry": lambda out: tar(folder("./", mode=0o777, uid=9)),
    "proc": lambda out: tar(link("s", "/proc/self/root"), entry(f"s{out}/{CANARY}", b"owned")),
}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder on the host with a file that must stay as it is."""
    out = tmp_path / "outside"
    out.mkdir(mode=0o750)
    (out / CANARY).write_text("untouched")
    return out


@pytest.mark.parametrize(
    ("name", "parent"),
    [*((name, "") for name in [*HOSTILE, *CONTAINED]), *((name, "base") for name in CONTAINED)],
)
async def test_hostile(name: str, parent: str, stores: Stores, outside: Path) -> None:
    if parent:
        await base(stores, tar(entry("f")))
    before = (outside / CANARY).stat()
    entries = sorted(stores.root.rglob("*"))
    mounts, files = await fresh(stores, parent)
    if name in HOSTILE:
        with pytest.raises(errdefs.InvalidArgument):
            await apply(stores, HOSTILE[name](str(outside)), mounts)
    else:
        await apply(stores, CONTAINED[name](str(outside)), mounts)
    after = (outside / CANARY).stat()
    assert (outside / CANARY).read_text() == "untouched"
    assert (after.st_ino, after.st_nlink, after.st_mode) == (before.st_ino, before.st_nlink, before.st_mode)
    assert outside.stat().st_mode & 0o777 == 0o750
    assert os.listdir(outside) == [CANARY]
    new = {path for path in stores.root.rglob("*") if path not in entries}
    inside = {path for path in new if files.parent in (path, *path.parents)}
    assert {path.parent.name for path in new - inside} <= {"sha256", "root"}
    if name == "overlay attribute":
        assert os.listxattr(files / "d") == []


def sparse(folder_: Path, kind: str) -> bytes:
    """GNU tar's archive of `sparse`, which is mostly holes."""
    command = ["tar", "-C", str(folder_), f"--format={kind}", "-cS", "sparse"]
    return subprocess.run(command, check=True, capture_output=True).stdout


async def test_sparse(stores: Stores, tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.seek(50 * 1024 * 1024)
        file.write(b"end")
    for kind in ("gnu", "pax"):
        mounts, files = await fresh(stores, key=kind)
        await apply(stores, await asyncio.to_thread(sparse, tmp_path, kind), mounts)
        facts = (files / "sparse").stat()
        assert facts.st_size == 50 * 1024 * 1024 + 3
        assert facts.st_blocks * 512 < 1024 * 1024
        with (files / "sparse").open("rb") as file:
            file.seek(50 * 1024 * 1024)
            assert file.read() == b"end"


async def test_refused_targets(stores: Stores) -> None:
    await base(stores, tar(entry("f")))
    digest = await put(stores, tar(entry("g")))
    view = await stores.snapshots.view("moby", "overlayfs", "v", "base")
    with pytest.raises(errdefs.InvalidArgument):
        await stores.differ.apply("moby", PLAIN, digest, view)
    with pytest.raises(errdefs.NotImplementedHere):
        await stores.differ.apply("moby", "text/plain", digest, view)
    mounts, _ = await fresh(stores)
    with pytest.raises(errdefs.NotFound):
        await stores.differ.apply("moby", PLAIN, f"sha256:{'0' * 64}", mounts)

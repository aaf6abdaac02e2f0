"""Images unpacked layer by layer at the same time: the result is that of one layer after the other."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import errdefs
import pytest
from containerd_svc.transfer.unpacking import Unpacker

from tests.support.stores import Stores, serve_stores

from .test_layers import entry, folder, put, tar

pytestmark = pytest.mark.root

PLAIN = "application/vnd.oci.image.layer.v1.tar"
ACL = {"SCHILY.xattr.user.note": "kept"}
LAYERS = (
    tar(
        folder("a", uid=5, gid=6, mode=0o750, pax_headers=ACL),
        folder("a/b", uid=7, gid=8, mode=0o2711, mtime=1_234_567_890),
        entry("a/b/below", b"1"),
        folder("gone"),
        entry("gone/file", b"2"),
    ),
    # Neither `a` nor `a/b` is named: they look as in the layer below.
    tar(entry("a/b/second", b"3", uid=1), entry(".wh.gone")),
    tar(entry("a/b/.wh.below"), entry("a/new/third", b"4"), folder("gone"), entry("a/.wh..wh..opq")),
)


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    async with serve_stores(tmp_path / "root") as served:
        await served.leases.create("moby", "lease", {})
        yield served


async def image(
    stores: Stores, *layers: bytes, **changes: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The descriptors of a config and of layers in the store."""
    diff_ids = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
    config = json.dumps({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
    blobs = [{"mediaType": PLAIN, "digest": await put(stores, data), "size": len(data)} for data in layers]
    digest = await put(stores, config)
    return {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest}, blobs


def seen(root: Path) -> dict[str, Any]:
    """All that a snapshot's folder holds."""
    found: dict[str, Any] = {}
    for place, folders, files in os.walk(root):
        for name in [".", *folders, *files]:
            path = Path(place) / name
            facts = path.lstat()
            attributes = {key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path)}
            # Marks are made now, and so is a folder that no layer names and none below has.
            now = name in (".", "new") or stat.S_ISCHR(facts.st_mode)
            when = 0 if now else facts.st_mtime_ns
            found[str(path.relative_to(root))] = (
                facts.st_mode, facts.st_uid, facts.st_gid, facts.st_rdev, when, attributes
            )  # fmt: skip
    return found


async def test_apart_is_as_in_order(stores: Stores) -> None:
    config, blobs = await image(stores, *LAYERS)
    name = ""
    plain = []
    for number, blob in enumerate(blobs):
        shown = await stores.snapshots.prepare("moby", "overlayfs", f"x{number}", name)
        await stores.differ.apply("moby", PLAIN, blob["digest"], shown)
        name = f"plain-{number}"
        await stores.snapshots.commit("moby", "overlayfs", name, f"x{number}")
        plain.append((await stores.snapshots.folders("moby", "overlayfs", name))[0])
    unpacker = Unpacker(stores.content, stores.snapshots, stores.leases, stores.differ)
    arrived = [asyncio.Event() for _ in blobs]
    order = []

    async def arrival(place: int) -> None:
        await arrived[place].wait()

    async def tell(event: str, blob: dict[str, Any]) -> None:
        order.append((event, blobs.index(blob)))
        # The next one arrives when this one is being unpacked: the lowest comes last.
        if event == "extracting" and blobs.index(blob):
            arrived[blobs.index(blob) - 1].set()

    arrived[2].set()
    await unpacker.unpack("moby", "overlayfs", config, blobs, "lease", arrival=arrival, tell=tell)
    assert [place for event, place in order if event == "extracting"] == [2, 1, 0]
    assert [place for event, place in order if event == "extracted"] == [0, 1, 2]

    top = (await stores.content.info("moby", config["digest"])).labels[
        "containerd.io/gc.ref.snapshot.overlayfs"
    ]
    folders = await stores.snapshots.folders("moby", "overlayfs", top)
    assert len(folders) == 3
    for made, expected in zip(reversed(folders), plain, strict=True):
        assert seen(Path(made)) == seen(Path(expected))
    assert (Path(folders[1]) / "a/b").stat().st_mtime == 1_234_567_890
    assert not [info for info in await stores.snapshots.list("moby", "overlayfs") if info.kind == "active"]


async def test_the_root_has_the_owner_of_the_lowest(stores: Stores) -> None:
    config, blobs = await image(stores, tar(entry("one", b"1")), tar(entry("two", b"2")))
    unpacker = Unpacker(stores.content, stores.snapshots, stores.leases, stores.differ)
    name = json.loads(stores.content.path(config["digest"]).read_text())["rootfs"]["diff_ids"][0]

    async def tell(event: str, blob: dict[str, Any]) -> None:
        if event == "extracted" and blob == blobs[0]:
            os.chown((await stores.snapshots.folders("moby", "overlayfs", name))[0], 70, 71)

    async def arrival(place: int) -> None:
        pass

    await unpacker.unpack("moby", "overlayfs", config, blobs, "lease", arrival=arrival, tell=tell)
    (top,) = [info.name for info in await stores.snapshots.list("moby", "overlayfs") if info.name != name]
    facts = os.stat((await stores.snapshots.folders("moby", "overlayfs", top))[0])
    assert (facts.st_uid, facts.st_gid) == (70, 71)


async def test_a_layer_that_is_not_what_the_config_says(stores: Stores) -> None:
    config, blobs = await image(stores, *LAYERS)
    blobs[2]["digest"] = await put(stores, tar(entry("other")))
    unpacker = Unpacker(stores.content, stores.snapshots, stores.leases, stores.differ)
    with pytest.raises(errdefs.InvalidArgument, match="wrong diff id"):
        await unpacker.unpack("moby", "overlayfs", config, blobs, "lease")
    assert not [info for info in await stores.snapshots.list("moby", "overlayfs") if info.kind == "active"]


async def test_two_at_the_same_time_make_one(stores: Stores) -> None:
    config, blobs = await image(stores, *LAYERS)
    unpacker = Unpacker(stores.content, stores.snapshots, stores.leases, stores.differ)
    told: list[str] = []

    async def tell(event: str, blob: dict[str, Any]) -> None:
        told.append(event)

    await asyncio.gather(
        *(unpacker.unpack("moby", "overlayfs", config, blobs, "lease", tell=tell) for _ in range(3))
    )
    assert sorted(told) == ["extracted"] * 3 + ["extracting"] * 3
    assert len(await stores.snapshots.list("moby", "overlayfs")) == 3


async def test_a_copying_snapshotter_goes_in_order(stores: Stores) -> None:
    config, blobs = await image(stores, *LAYERS)
    unpacker = Unpacker(stores.content, stores.snapshots, stores.leases, stores.differ)
    await unpacker.unpack("moby", "native", config, blobs, "lease")
    top = (await stores.content.info("moby", config["digest"])).labels["containerd.io/gc.ref.snapshot.native"]
    tree = Path((await stores.snapshots.folders("moby", "native", top))[0])
    assert sorted(str(path.relative_to(tree)) for path in tree.rglob("*")) == [
        "a",
        "a/new",
        "a/new/third",
        "gone",
    ]
    await stores.snapshots.prepare("moby", "native", "alone", "")
    with pytest.raises(errdefs.NotImplementedHere):
        await stores.snapshots.commit("moby", "native", "other", "alone", parent=top)

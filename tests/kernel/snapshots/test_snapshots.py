"""The contract of a snapshotter, run against each of ours on the real kernel, over the wire."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import errdefs
import pytest
from containerd_svc.snapshots import records
from pb.containerd.services.snapshots import v1 as pb
from pb.containerd.types import Mount
from pb.google.protobuf import FieldMask
from rpc.grpc import Channel

from tests.support.stores import Stores, serve_stores

pytestmark = pytest.mark.root


class Client:
    """The Snapshots service for one snapshotter, without the wrapping of requests."""

    def __init__(self, channel: Channel, snapshotter: str) -> None:
        self.stub = pb.SnapshotsStub(channel)
        self.name = snapshotter

    async def prepare(self, key: str, parent: str = "", **labels: str) -> list[Mount]:
        request = pb.PrepareSnapshotRequest(snapshotter=self.name, key=key, parent=parent, labels=labels)
        return (await self.stub.prepare(request)).mounts

    async def view(self, key: str, parent: str = "") -> list[Mount]:
        return (
            await self.stub.view(pb.ViewSnapshotRequest(snapshotter=self.name, key=key, parent=parent))
        ).mounts

    async def mounts(self, key: str) -> list[Mount]:
        return (await self.stub.mounts(pb.MountsRequest(snapshotter=self.name, key=key))).mounts

    async def commit(self, name: str, key: str, **labels: str) -> None:
        await self.stub.commit(
            pb.CommitSnapshotRequest(snapshotter=self.name, name=name, key=key, labels=labels)
        )

    async def remove(self, key: str) -> None:
        await self.stub.remove(pb.RemoveSnapshotRequest(snapshotter=self.name, key=key))

    async def stat(self, key: str) -> pb.Info:
        info = (await self.stub.stat(pb.StatSnapshotRequest(snapshotter=self.name, key=key))).info
        assert info is not None
        return info

    async def names(self, *filters: str) -> list[str]:
        request = pb.ListSnapshotsRequest(snapshotter=self.name, filters=list(filters))
        return [info.name async for block in self.stub.list(request) for info in block.info]

    async def layer(self, root: Path, name: str, parent: str, files: dict[str, str]) -> None:
        """A committed snapshot that adds files."""
        with mounted(await self.prepare(f"make-{name}", parent), root) as tree:
            for file, text in files.items():
                (tree / file).parent.mkdir(parents=True, exist_ok=True)
                (tree / file).write_text(text)
        await self.commit(name, f"make-{name}")


@contextmanager
def mounted(mounts: list[Mount], root: Path) -> Iterator[Path]:
    """The tree that mount records show, mounted as any client would."""
    target = root / "mnt"
    target.mkdir(exist_ok=True)
    [mount] = mounts
    kind = [] if mount.type == "bind" else ["-t", mount.type]
    subprocess.run(["mount", *kind, "-o", ",".join(mount.options), mount.source, str(target)], check=True)
    if mount.type == "bind" and "ro" in mount.options:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(target)], check=True)
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True)


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    async with serve_stores(tmp_path) as served:
        yield served


@pytest.fixture(params=["overlayfs", "native"])
async def client(stores: Stores, request: pytest.FixtureRequest) -> AsyncIterator[Client]:
    channel = stores.channel()
    yield Client(channel, request.param)
    channel.close()


async def test_layers(client: Client, tmp_path: Path) -> None:
    await client.layer(tmp_path, "one", "", {"a": "1", "d/x": "1"})
    await client.layer(tmp_path, "two", "one", {"a": "2", "b": "2"})
    with mounted(await client.prepare("active", "two"), tmp_path) as tree:
        assert (tree / "a").read_text() == "2"
        assert (tree / "d/x").read_text() == "1"
        (tree / "d/x").unlink()
        (tree / "b").write_text("changed")
    with mounted(await client.mounts("active"), tmp_path) as tree:
        assert not (tree / "d/x").exists()
    for parent, text in (("one", "1"), ("two", "2")):
        with mounted(await client.view(f"view-{parent}", parent), tmp_path) as tree:
            assert (tree / "a").read_text() == text
            with pytest.raises(OSError, match="Read-only"):
                (tree / "a").write_text("no")
    assert await client.names() == ["active", "one", "two", "view-one", "view-two"]
    assert await client.names("kind==committed") == ["one", "two"]
    assert await client.names("parent==two,kind==active") == ["active"]
    assert (await client.stat("two")).parent == "one"


async def test_errors(client: Client, tmp_path: Path) -> None:
    await client.layer(tmp_path, "one", "", {"a": "1"})
    await client.prepare("active", "one")
    with pytest.raises(errdefs.AlreadyExists):
        await client.prepare("active", "one")
    with pytest.raises(errdefs.NotFound):
        await client.prepare("other", "missing")
    with pytest.raises(errdefs.InvalidArgument):
        await client.prepare("other", "active")
    with pytest.raises(errdefs.AlreadyExists):
        await client.commit("one", "active")
    with pytest.raises(errdefs.NotFound):
        await client.commit("two", "missing")
    with pytest.raises(errdefs.FailedPrecondition):
        await client.mounts("one")
    with pytest.raises(errdefs.FailedPrecondition, match="cannot remove snapshot with child"):
        await client.remove("one")
    await client.view("view", "one")
    with pytest.raises(errdefs.FailedPrecondition):
        await client.commit("two", "view")
    for key in ("active", "view", "one"):
        await client.remove(key)
        with pytest.raises(errdefs.NotFound):
            await client.stat(key)
    with pytest.raises(errdefs.InvalidArgument, match="snapshotter not loaded"):
        await Client(client.stub.channel, "zfs").names()  # type: ignore[arg-type]
    with pytest.raises(errdefs.InvalidArgument, match="snapshotter argument missing"):
        await Client(client.stub.channel, "").names()  # type: ignore[arg-type]


async def test_labels(client: Client, tmp_path: Path) -> None:
    await client.prepare("active", a="1")
    await client.commit("one", "active", b="2")
    assert (await client.stat("one")).labels == {"b": "2"}
    answer = await client.stub.update(
        pb.UpdateSnapshotRequest(
            snapshotter=client.name,
            info=pb.Info(name="one", labels={"c": "3"}),
            update_mask=FieldMask(paths=["labels.c", "labels.b"]),
        )
    )
    assert answer.info is not None
    assert answer.info.labels == {"c": "3"}
    assert await client.names("labels.c==3") == ["one"]


async def test_usage_and_cleanup(client: Client, stores: Stores, tmp_path: Path) -> None:
    await client.layer(tmp_path, "one", "", {"a": "x" * 100_000})
    request = pb.UsageRequest(snapshotter=client.name, key="one")
    first = await client.stub.usage(request)
    assert first.size >= 100_000
    assert first.inodes == 2
    assert await client.stub.usage(request) == first
    await client.remove("one")
    await client.stub.cleanup(pb.CleanupRequest(snapshotter=client.name))
    assert list((stores.root / "snapshots").iterdir()) == []


async def test_namespaces(client: Client, stores: Stores, tmp_path: Path) -> None:
    await client.layer(tmp_path, "one", "", {"a": "1"})
    channel = stores.channel("other")
    other = Client(channel, client.name)
    with pytest.raises(errdefs.NotFound):
        await other.prepare("active", "one")
    await other.prepare("one")
    assert await other.names() == ["one"]
    channel.close()


async def test_many_layers_are_named_in_full(stores: Stores) -> None:
    channel = stores.channel()
    client = Client(channel, "overlayfs")
    parent = ""
    for number in range(100):
        await client.prepare("a", parent)
        parent = f"layer{number}"
        await client.commit(parent, "a")
    [mount] = await client.prepare("top", parent)
    [lower] = [option for option in mount.options if option.startswith("lowerdir=")]
    assert len(lower.split(":")) == 100
    channel.close()


async def test_owner_of_the_root(stores: Stores, tmp_path: Path) -> None:
    channel = stores.channel()
    client = Client(channel, "overlayfs")
    await client.prepare("a")
    os.chown(stores.root / "snapshots/1/fs", 1000, 1001)
    await client.commit("one", "a")
    with mounted(await client.prepare("b", "one"), tmp_path) as tree:
        assert (tree.stat().st_uid, tree.stat().st_gid) == (1000, 1001)
    channel.close()


async def test_start_removes_what_a_crash_left(tmp_path: Path) -> None:
    async with serve_stores(tmp_path) as first:
        await first.snapshots.prepare("moby", "overlayfs", "a", "")
    trees = tmp_path / "snapshots"
    for name in ("new-abc", "7", "rm-3"):
        (trees / name / "fs").mkdir(parents=True)
    async with serve_stores(tmp_path) as second:
        await second.snapshots.cleanup("overlayfs")
        await second.snapshots.close()
        assert {path.name for path in trees.iterdir()} <= {"1", "new-abc"}
        assert await second.snapshots.mounts("moby", "overlayfs", "a")


async def test_a_lost_database_does_not_cost_the_trees(tmp_path: Path) -> None:
    async with serve_stores(tmp_path) as first:
        await first.snapshots.prepare("moby", "overlayfs", "a", "")
    for path in tmp_path.glob("meta.db*"):
        path.unlink()
    async with serve_stores(tmp_path):
        [aside] = tmp_path.glob("snapshots.unknown-*")
        assert (aside / "1/fs").is_dir()


async def test_after_a_power_cut(tmp_path: Path) -> None:
    """What was not synced in an earlier boot is forgotten; what a container stands on gives up its name."""
    async with serve_stores(tmp_path) as first:
        store = first.snapshots
        for name, parent in (("base", ""), ("mid", "base"), ("top", "mid"), ("lone", "base")):
            await store.prepare("moby", "overlayfs", "x", parent)
            await store.commit("moby", "overlayfs", name, "x")
        await store.prepare("moby", "overlayfs", "container", "mid")
        await store.close()
        assert await first.db.read(records.unsynced) == []
        await first.db.write(
            lambda connection: connection.execute(
                "UPDATE snapshots SET unsynced='an earlier boot' WHERE kind='committed' AND key != 'base'"
            )
        )
    async with serve_stores(tmp_path) as second:
        names = [info.name for info in await second.snapshots.list("moby", "overlayfs")]
        assert names == ["base", "container", "damaged-2 mid"]
        assert await second.snapshots.mounts("moby", "overlayfs", "container")
        await second.snapshots.prepare("moby", "overlayfs", "x", "base")
        await second.snapshots.commit("moby", "overlayfs", "mid", "x")

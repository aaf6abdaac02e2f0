"""What a client asks for and cannot have: the code says why, and nothing has changed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import errdefs
import pytest
from pb.containerd.services.containers.v1 import (
    Container,
    ContainerRuntime,
    CreateContainerRequest,
    DeleteContainerRequest,
    GetContainerRequest,
    ListContainersRequest,
    UpdateContainerRequest,
)
from pb.containerd.services.content.v1 import (
    AbortRequest,
    ContentStub,
    DeleteContentRequest,
    Info,
    InfoRequest,
    ReadContentRequest,
    StatusRequest,
    UpdateRequest,
    WriteAction,
    WriteContentRequest,
)
from pb.containerd.services.images.v1 import (
    CreateImageRequest,
    DeleteImageRequest,
    GetImageRequest,
    Image,
    ImagesStub,
    UpdateImageRequest,
)
from pb.containerd.services.leases.v1 import (
    AddResourceRequest,
    CreateRequest,
    DeleteRequest,
    LeasesStub,
    ListResourcesRequest,
    Resource,
)
from pb.containerd.services.namespaces.v1 import (
    CreateNamespaceRequest,
    DeleteNamespaceRequest,
    Namespace,
    NamespacesStub,
)
from pb.containerd.services.sandbox.v1 import StoreDeleteRequest, StoreGetRequest, StoreStub
from pb.containerd.services.snapshots import v1 as snapshots
from pb.containerd.services.tasks import v1 as tasks
from pb.containerd.types import Descriptor
from pb.google.protobuf import Any as AnyMessage
from rpc.grpc import Channel

from tests.daemon.containerd.world import World, running

pytestmark = pytest.mark.root

DIGEST = "sha256:" + "a" * 64
OVERLAY = "overlayfs"
TRICKS = ("", ".", "..", "../a", "a/b", "/a", "a..b", "-a", "a-", "a\0b", "a b", "ä", "a" * 77, "@a")


@pytest.fixture
async def world(rootfs: Path, tmp_path: Path) -> AsyncIterator[World]:
    """One whose collector runs only when it is asked to: nothing holds what is made here."""
    config = tmp_path / "config.toml"
    config.write_text('version = 2\ndisabled_plugins = ["io.containerd.gc.v1.scheduler"]\n')
    async with running(rootfs, config=str(config)) as made:
        yield made


Calls = dict[str, Callable[[], Awaitable[object]]]


async def all_raise(error: type[errdefs.BuoyError], calls: Calls) -> None:
    """Each call ends with that error, and at once."""
    wrong = {}
    for name, call in calls.items():
        began = time.monotonic()
        try:
            wrong[name] = f"answered {await call()}"
        except errdefs.BuoyError as raised:
            if type(raised) is not error:
                wrong[name] = f"{type(raised).__name__}: {raised.message}"
        if time.monotonic() - began > 5:
            wrong[name] = "took its time"
    assert not wrong


def written(stub: ContentStub, *requests: WriteContentRequest) -> Awaitable[object]:
    async def write() -> object:
        return [reply async for reply in stub.write(iter(requests))]

    return write()


def first(replies: object) -> Awaitable[object]:
    return anext(replies)  # type: ignore[call-overload, no-any-return]


async def test_what_does_not_exist_is_not_found(world: World) -> None:
    channel = world.channel
    content, images, leases = ContentStub(channel), ImagesStub(channel), LeasesStub(channel)
    shots, store = snapshots.SnapshotsStub(channel), StoreStub(channel)
    known = await world.container("true")
    one = {"container_id": "none"}
    await all_raise(
        errdefs.NotFound,
        {
            "container": lambda: world.containers.get(GetContainerRequest(id="none")),
            "container delete": lambda: world.containers.delete(DeleteContainerRequest(id="none")),
            "container update": lambda: world.containers.update(
                UpdateContainerRequest(container=Container(id="none"))
            ),
            "content": lambda: content.info(InfoRequest(digest=DIGEST)),
            "content read": lambda: first(content.read(ReadContentRequest(digest=DIGEST))),
            "content delete": lambda: content.delete(DeleteContentRequest(digest=DIGEST)),
            "content update": lambda: content.update(UpdateRequest(info=Info(digest=DIGEST))),
            "ingest": lambda: content.status(StatusRequest(ref="none")),
            "ingest abort": lambda: content.abort(AbortRequest(ref="none")),
            "image": lambda: images.get(GetImageRequest(name="none")),
            "image delete": lambda: images.delete(DeleteImageRequest(name="none")),
            "image update": lambda: images.update(
                UpdateImageRequest(image=Image(name="none", target=Descriptor(digest=DIGEST, size=1)))
            ),
            "lease delete": lambda: leases.delete(DeleteRequest(id="none")),
            "lease's resources": lambda: leases.list_resources(ListResourcesRequest(id="none")),
            "lease adds": lambda: leases.add_resource(
                AddResourceRequest(id="none", resource=Resource(id=DIGEST, type="content"))
            ),
            "namespace delete": lambda: NamespacesStub(channel).delete(DeleteNamespaceRequest(name="none")),
            "sandbox": lambda: store.get(StoreGetRequest(sandbox_id="none")),
            "sandbox delete": lambda: store.delete(StoreDeleteRequest(sandbox_id="none")),
            "snapshot": lambda: shots.stat(snapshots.StatSnapshotRequest(snapshotter=OVERLAY, key="none")),
            "snapshot mounts": lambda: shots.mounts(snapshots.MountsRequest(snapshotter=OVERLAY, key="none")),
            "snapshot usage": lambda: shots.usage(snapshots.UsageRequest(snapshotter=OVERLAY, key="none")),
            "snapshot remove": lambda: shots.remove(
                snapshots.RemoveSnapshotRequest(snapshotter=OVERLAY, key="none")
            ),
            "snapshot commit": lambda: shots.commit(
                snapshots.CommitSnapshotRequest(snapshotter=OVERLAY, key="none", name="new")
            ),
            "snapshot's parent": lambda: shots.prepare(
                snapshots.PrepareSnapshotRequest(snapshotter=OVERLAY, key="new", parent="none")
            ),
            "task create": lambda: world.tasks.create(world.task_request("none")),
            "task": lambda: world.tasks.get(tasks.GetRequest(**one)),
            "task start": lambda: world.tasks.start(tasks.StartRequest(**one)),
            "task delete": lambda: world.tasks.delete(tasks.DeleteTaskRequest(**one)),
            "task kill": lambda: world.tasks.kill(tasks.KillRequest(container_id="none", signal=9)),
            "task exec": lambda: world.tasks.exec(
                tasks.ExecProcessRequest(container_id="none", exec_id="e", spec=AnyMessage())
            ),
            "task pause": lambda: world.tasks.pause(tasks.PauseTaskRequest(**one)),
            "task resume": lambda: world.tasks.resume(tasks.ResumeTaskRequest(**one)),
            "task pids": lambda: world.tasks.list_pids(tasks.ListPidsRequest(**one)),
            "task wait": lambda: world.tasks.wait(tasks.WaitRequest(**one)),
            "task update": lambda: world.tasks.update(tasks.UpdateTaskRequest(container_id="none")),
            "task resize": lambda: world.tasks.resize_pty(tasks.ResizePtyRequest(container_id="none")),
            "task close": lambda: world.tasks.close_io(tasks.CloseIoRequest(container_id="none", stdin=True)),
            "no task yet": lambda: world.tasks.start(tasks.StartRequest(container_id=known)),
        },
    )
    await world.remove(known)


async def test_what_exists_already_exists(world: World) -> None:
    channel = world.channel
    content, images = ContentStub(channel), ImagesStub(channel)
    shots, spaces, leases = snapshots.SnapshotsStub(channel), NamespacesStub(channel), LeasesStub(channel)
    container_id = await world.run("sleep", "100")
    image = Image(name="i", target=Descriptor(media_type="x", digest=DIGEST, size=1))
    prepare = snapshots.PrepareSnapshotRequest(snapshotter=OVERLAY, key="s")
    blob = WriteContentRequest(action=WriteAction.COMMIT, ref="r", data=b"data")
    await written(content, blob)
    digest = f"sha256:{hashlib.sha256(b'data').hexdigest()}"
    again = WriteContentRequest(ref="r2", expected=digest, total=4)
    await images.create(CreateImageRequest(image=image))
    await shots.prepare(prepare)
    await spaces.create(CreateNamespaceRequest(namespace=Namespace(name="n")))
    await leases.create(CreateRequest(id="l"))
    container = Container(
        id=container_id, spec=AnyMessage(value=b"{}"), runtime=ContainerRuntime(name="io.containerd.runc.v2")
    )
    await all_raise(
        errdefs.AlreadyExists,
        {
            "container": lambda: world.containers.create(CreateContainerRequest(container=container)),
            "task": lambda: world.tasks.create(world.task_request(container_id)),
            "image": lambda: images.create(CreateImageRequest(image=image)),
            "snapshot": lambda: shots.prepare(prepare),
            "view": lambda: shots.view(snapshots.ViewSnapshotRequest(snapshotter=OVERLAY, key="s")),
            "namespace": lambda: spaces.create(CreateNamespaceRequest(namespace=Namespace(name="n"))),
            "lease": lambda: leases.create(CreateRequest(id="l")),
            "content": lambda: written(content, again),
        },
    )
    await world.remove(container_id)


async def test_a_wrong_state_is_a_failed_precondition(world: World) -> None:
    channel = world.channel
    content, shots = ContentStub(channel), snapshots.SnapshotsStub(channel)
    running = await world.run("sleep", "100")
    ended = await world.run("true")
    await world.wait(ended)
    await shots.prepare(snapshots.PrepareSnapshotRequest(snapshotter=OVERLAY, key="a"))
    await shots.commit(snapshots.CommitSnapshotRequest(snapshotter=OVERLAY, key="a", name="parent"))
    await shots.view(snapshots.ViewSnapshotRequest(snapshotter=OVERLAY, key="view", parent="parent"))
    execute = tasks.ExecProcessRequest(container_id=ended, exec_id="e", spec=world.spec(["true"], ended))
    nowhere = Channel(world.address)

    def commit(**fields: object) -> Awaitable[object]:
        request = WriteContentRequest(action=WriteAction.COMMIT, ref="kept", data=b"data", **fields)  # type: ignore[arg-type]
        return written(content, request)

    await all_raise(
        errdefs.FailedPrecondition,
        {
            "delete of a running task": lambda: world.delete(running),
            "start of a running task": lambda: world.tasks.start(tasks.StartRequest(container_id=running)),
            "start of an ended task": lambda: world.tasks.start(tasks.StartRequest(container_id=ended)),
            "pause of an ended task": lambda: world.tasks.pause(tasks.PauseTaskRequest(container_id=ended)),
            "resume of a running task": lambda: world.tasks.resume(
                tasks.ResumeTaskRequest(container_id=running)
            ),
            "exec in an ended task": lambda: world.tasks.exec(execute),
            "removal of a parent": lambda: shots.remove(
                snapshots.RemoveSnapshotRequest(snapshotter=OVERLAY, key="parent")
            ),
            "mounts of a committed snapshot": lambda: shots.mounts(
                snapshots.MountsRequest(snapshotter=OVERLAY, key="parent")
            ),
            "commit of a view": lambda: shots.commit(
                snapshots.CommitSnapshotRequest(snapshotter=OVERLAY, key="view", name="new")
            ),
            "removal of a namespace that holds something": lambda: NamespacesStub(channel).delete(
                DeleteNamespaceRequest(name="moby")
            ),
            "commit with another size": lambda: commit(total=7),
            "commit with another digest": lambda: commit(expected=DIGEST),
        },
    )
    with pytest.raises(errdefs.FailedPrecondition, match="namespace is required"):
        await ContentStub(nowhere).info(InfoRequest(digest=DIGEST))
    nowhere.close()
    # As containerd keeps what could not be committed.
    status = (await content.status(StatusRequest(ref="kept"))).status
    assert status is not None
    assert status.offset == 4
    for container_id in (running, ended):
        await world.remove(container_id)


async def test_what_cannot_be_is_an_invalid_argument(world: World) -> None:
    content, images = ContentStub(world.channel), ImagesStub(world.channel)
    shots = snapshots.SnapshotsStub(world.channel)
    running = await world.run("sleep", "100")

    def container(name: str) -> Callable[[], Awaitable[object]]:
        made = Container(
            id=name, spec=AnyMessage(value=b"{}"), runtime=ContainerRuntime(name="io.containerd.runc.v2")
        )
        return lambda: world.containers.create(CreateContainerRequest(container=made))

    def execute(name: str) -> Callable[[], Awaitable[object]]:
        request = tasks.ExecProcessRequest(
            container_id=running, exec_id=name, spec=world.spec(["true"], running)
        )
        return lambda: world.tasks.exec(request)

    def space(name: str) -> Callable[[], Awaitable[object]]:
        request = CreateNamespaceRequest(namespace=Namespace(name=name))
        return lambda: NamespacesStub(world.channel).create(request)

    target = Descriptor(media_type="x", digest="sha256:../../etc/passwd", size=1)
    await all_raise(
        errdefs.InvalidArgument,
        {
            **{f"container {name!r}": container(name) for name in TRICKS},
            **{f"exec {name!r}": execute(name) for name in TRICKS},
            **{f"namespace {name!r}": space(name) for name in TRICKS},
            "digest": lambda: content.info(InfoRequest(digest="sha256:../../etc/passwd")),
            "digest of a read": lambda: first(content.read(ReadContentRequest(digest="md5:abc"))),
            "digest of an ingest": lambda: written(
                content, WriteContentRequest(ref="r", expected="sha256:abc")
            ),
            "no ref": lambda: written(content, WriteContentRequest(ref="")),
            "image's digest": lambda: images.create(CreateImageRequest(image=Image(name="i", target=target))),
            "image's name": lambda: images.create(
                CreateImageRequest(image=Image(target=Descriptor(media_type="x", digest=DIGEST, size=1)))
            ),
            "image's size": lambda: images.create(
                CreateImageRequest(image=Image(name="i", target=Descriptor(media_type="x", digest=DIGEST)))
            ),
            "no key": lambda: shots.prepare(snapshots.PrepareSnapshotRequest(snapshotter=OVERLAY)),
            "no snapshotter": lambda: shots.prepare(snapshots.PrepareSnapshotRequest(key="k")),
            "unknown snapshotter": lambda: shots.prepare(
                snapshots.PrepareSnapshotRequest(snapshotter="../x", key="k")
            ),
            "filter": lambda: world.containers.list(ListContainersRequest(filters=["id=="])),
        },
    )
    assert await world.tasks.list_pids(tasks.ListPidsRequest(container_id=running))
    await world.remove(running)


async def test_the_namespace_of_a_call_cannot_leave_its_folder(world: World) -> None:
    channel = Channel(world.address, namespace="../escape")
    container = Container(
        id="c", spec=world.spec(["true"], "c"), runtime=ContainerRuntime(name="io.containerd.runc.v2")
    )
    stub = type(world.containers)(channel)
    with pytest.raises(errdefs.InvalidArgument):
        await stub.create(CreateContainerRequest(container=container))
    with pytest.raises(errdefs.InvalidArgument, match="namespace validation"):
        await tasks.TasksStub(channel).create(world.task_request("c"))
    channel.close()
    assert not (world.state.parent / "escape").exists()


async def test_an_oversized_message_is_refused_in_bounded_memory(world: World) -> None:
    assert world.daemon is not None
    status = Path(f"/proc/{world.daemon.pid}/status")

    def peak() -> int:
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0])

    huge = Container(id="huge", spec=AnyMessage(value=bytes(200 << 20)))
    before = peak()
    with pytest.raises(errdefs.ResourceExhausted, match="larger than max"):
        await world.containers.create(CreateContainerRequest(container=huge))
    assert peak() - before < 64 * 1024  # KiB
    await world.containers.list(ListContainersRequest())


async def test_calls_about_others_stay_quick_beside_a_stuck_shim(world: World) -> None:
    """See also test_a_stopped_shim_delays_nobody: here many calls hang at once, on the same connection."""
    stuck = await world.run("sleep", "100")
    other = await world.run("sleep", "100")
    shim = int((world.state / f"moby/{stuck}/shim.pid").read_text())
    os.kill(shim, signal.SIGSTOP)
    request = tasks.ListPidsRequest(container_id=stuck)
    hanging = [asyncio.create_task(world.tasks.list_pids(request)) for _ in range(150)]
    try:
        await asyncio.sleep(0)
        slowest = 0.0
        for _ in range(20):
            began = time.monotonic()
            await world.tasks.list(tasks.ListTasksRequest())
            await world.tasks.list_pids(tasks.ListPidsRequest(container_id=other))
            await world.containers.get(GetContainerRequest(id=other))
            slowest = max(slowest, (time.monotonic() - began) / 3)
        assert slowest < 0.1
    finally:
        os.kill(shim, signal.SIGCONT)
        await asyncio.gather(*hanging, return_exceptions=True)
    for container_id in (stuck, other):
        await world.remove(container_id)

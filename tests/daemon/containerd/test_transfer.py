"""Images in and out by the Transfer service, and what it refuses."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import tarfile
from pathlib import Path

import errdefs
import pytest
from launcher.busybox_image import busybox_image_tar
from pb.containerd.services.content.v1 import ContentStub, ListContentRequest, ListStatusesRequest
from pb.containerd.services.images.v1 import DeleteImageRequest, GetImageRequest, ImagesStub
from pb.containerd.services.leases.v1 import CreateRequest, DeleteRequest, LeasesStub, ListRequest
from pb.containerd.services.snapshots.v1 import ListSnapshotsRequest, SnapshotsStub
from pb.containerd.types.transfer import (
    AuthRequest,
    AuthResponse,
    AuthType,
    Data,
    ImageExportStream,
    ImageImportStream,
    ImageReference,
    ImageStore,
    OciRegistry,
    Progress,
    RegistryResolver,
    UnpackConfiguration,
)
from rpc.grpc import Channel

from tests.daemon.containerd.world import World
from tests.support.registry import NAME as USER
from tests.support.registry import PASSWORD, LocalRegistry, layer_of
from tests.support.transfer import Wire, export_image, import_image, opened, packed, receive, send, transfer

pytestmark = pytest.mark.root

NAME = "docker.io/library/moved:1"
ANY = [ImageReference(name="import", is_prefix=True, allow_overwrite=True)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path: Path = tmp_path_factory.mktemp("archive") / "image.tar"
    busybox_image_tar(path, "moved:1")
    return path.read_bytes()


async def holds_nothing(channel: Channel) -> bool:
    """No blob, no ingest, no snapshot, no lease."""
    content = ContentStub(channel)
    blobs = [info async for page in content.list(ListContentRequest()) for info in page.info]
    ingests = (await content.list_statuses(ListStatusesRequest())).statuses
    snapshots = SnapshotsStub(channel).list(ListSnapshotsRequest(snapshotter="overlayfs"))
    found = [info async for page in snapshots for info in page.info]
    leases = (await LeasesStub(channel).list(ListRequest())).leases
    return not (blobs or ingests or found or leases)


async def answer(stream: Wire, asked: list[str]) -> None:
    """Tell the daemon who asks the registry."""
    while (message := await stream.recv_message()) is not None:
        asked.append(AuthRequest.parse(message.value).reference)
        answer = AuthResponse(auth_type=AuthType.CREDENTIALS, username=USER, secret=PASSWORD)
        await stream.send_message(packed(answer))


async def test_an_image_comes_from_a_registry(world: World, tmp_path: Path) -> None:
    images = ImagesStub(world.channel)
    with LocalRegistry(tmp_path / "registry", htpasswd=True) as registry:
        image = registry.put_image("some/image", "latest", [layer_of({"a": b"1"}), layer_of({"b": b"2"})])
        name = f"{registry.address}/some/image:latest"
        store = ImageStore(name=name, unpacks=[UnpackConfiguration()], labels={"a": "b"})
        with pytest.raises(errdefs.PermissionDenied):
            await transfer(world.channel, OciRegistry(reference=name), store)
        assert await holds_nothing(world.channel)
        asked: list[str] = []
        async with opened(world.channel, "who") as who, opened(world.channel, "told") as told:
            answering = asyncio.create_task(answer(who, asked))
            source = OciRegistry(reference=name, resolver=RegistryResolver(auth_stream="who"))
            await transfer(world.channel, source, store, "told")
            events = []
            while (message := await told.recv_message()) is not None:
                events.append(Progress.parse(message.value).event)
            answering.cancel()
    assert asked == [f"{registry.address}/some/image"]
    assert events[0] == f"Resolving from OCI Registry ({name})"
    assert events[-2:] == ["saved", f"Completed pull from OCI Registry ({name})"]
    found = (await images.get(GetImageRequest(name=name))).image
    assert found is not None
    assert found.target is not None
    assert found.target.digest == image["digest"]
    snapshots = SnapshotsStub(world.channel).list(ListSnapshotsRequest(snapshotter="overlayfs"))
    assert [len(page.info) async for page in snapshots] == [2]
    await images.delete(DeleteImageRequest(name=name, sync=True))
    assert await holds_nothing(world.channel)


async def test_an_image_goes_to_a_registry(world: World, archive: bytes, tmp_path: Path) -> None:
    await import_image(world.channel, archive, ImageStore(extra_references=ANY))
    with LocalRegistry(tmp_path / "registry", htpasswd=True) as registry:
        name = f"{registry.address}/some/image:latest"
        with pytest.raises(errdefs.PermissionDenied, match="push access denied"):
            await transfer(world.channel, ImageStore(name=NAME), OciRegistry(reference=name))
        asked: list[str] = []
        async with opened(world.channel, "who") as who, opened(world.channel, "told") as told:
            answering = asyncio.create_task(answer(who, asked))
            target = OciRegistry(reference=name, resolver=RegistryResolver(auth_stream="who"))
            await transfer(world.channel, ImageStore(name=NAME), target, "told")
            events = []
            while (message := await told.recv_message()) is not None:
                events.append(Progress.parse(message.value).event)
            answering.cancel()
        found = (await ImagesStub(world.channel).get(GetImageRequest(name=NAME))).image
        assert found is not None
        assert found.target is not None
        assert registry.manifest("some/image", found.target.digest)[0] == found.target.media_type
        registry.collect()
    assert asked == [f"{registry.address}/some/image"]
    assert events[0] == f"Pushing to OCI Registry ({name})"
    assert events[-1] == f"Completed push to OCI Registry ({name})"


async def test_an_image_goes_in_and_comes_out_again(world: World, archive: bytes) -> None:
    store = ImageStore(extra_references=ANY, unpacks=[UnpackConfiguration()], labels={"a": "b"})
    events = await import_image(world.channel, archive, store)
    assert events == ["Importing", "saved", "Completed import"]
    images = ImagesStub(world.channel)
    image = (await images.get(GetImageRequest(name=NAME))).image
    assert image is not None
    assert image.labels == {"a": "b"}
    snapshots = SnapshotsStub(world.channel).list(ListSnapshotsRequest(snapshotter="overlayfs"))
    assert [len(page.info) async for page in snapshots] == [1]
    await transfer(world.channel, ImageStore(name=NAME), ImageStore(name="other:2"))
    exported = await export_image(world.channel, ImageStore(name="other:2"))
    with tarfile.open(fileobj=io.BytesIO(exported)) as tar:
        manifest = tar.extractfile("manifest.json")
        assert manifest is not None
        assert json.load(manifest)[0]["RepoTags"] == ["other:2"]
    for name in (NAME, "other:2"):
        await images.delete(DeleteImageRequest(name=name, sync=True))
    assert await holds_nothing(world.channel)
    # What came out goes in again, by its OCI layout.
    await import_image(world.channel, exported, ImageStore(extra_references=ANY))
    again = (await images.get(GetImageRequest(name="other:2"))).image
    assert again is not None
    assert again.target is not None
    assert image.target is not None
    assert again.target.digest == image.target.digest


async def test_bytes_come_back_as_they_went(world: World) -> None:
    data = bytes(range(256)) * 1000
    async with opened(world.channel, "in") as incoming, opened(world.channel, "out") as outgoing:
        moving = asyncio.create_task(
            transfer(world.channel, ImageImportStream(stream="in"), ImageExportStream(stream="out"))
        )
        receiving = asyncio.create_task(receive(outgoing, allowed=1000))
        await send(incoming, data)
        await moving
        assert await receiving == data


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda data: b"", "unrecognized image format"),
        (lambda data: data[: len(data) // 2], "unexpected EOF"),
        (lambda data: b"x" * 2000, "archive/tar"),
        (lambda data: data.replace(b'"Layers"', b'"Loyers"'), None),
    ],
)
async def test_a_damaged_archive_leaves_nothing(
    world: World, archive: bytes, damage: object, error: str | None
) -> None:
    assert callable(damage)
    store = ImageStore(extra_references=ANY, unpacks=[UnpackConfiguration()])
    with pytest.raises(errdefs.InvalidArgument, match=error):
        await import_image(world.channel, damage(archive), store)
    with pytest.raises(errdefs.NotFound):
        await ImagesStub(world.channel).get(GetImageRequest(name=NAME))
    # What no lease holds any more goes with the next collection.
    leases = LeasesStub(world.channel)
    await leases.create(CreateRequest(id="last"))
    await leases.delete(DeleteRequest(id="last", sync=True))
    assert await holds_nothing(world.channel)


async def test_what_is_refused(world: World) -> None:
    store = ImageStore(name=NAME)
    with pytest.raises(errdefs.NotFound, match='stream "nowhere": not found'):
        await transfer(world.channel, ImageImportStream(stream="nowhere"), store)
    with pytest.raises(errdefs.NotImplementedHere, match="is not supported"):
        await transfer(world.channel, Data(data=b"a registry's message"), store)
    with pytest.raises(errdefs.NotFound):
        await transfer(world.channel, store, ImageStore(name="new"))
    async with opened(world.channel, "one"):
        with pytest.raises(errdefs.AlreadyExists):
            async with opened(world.channel, "one"):
                pass
        # Another namespace's streams are out of reach.
        other = Channel(world.address, namespace="other")
        with pytest.raises(errdefs.NotFound):
            await transfer(other, ImageImportStream(stream="one"), store)
        other.close()
    async with opened(world.channel, "flood") as stream:
        moving = asyncio.create_task(transfer(world.channel, ImageImportStream(stream="flood"), store))
        await stream.recv_message()
        await stream.send_message(packed(Data(data=bytes(70_000))))
        with pytest.raises(errdefs.InvalidArgument, match="more bytes than the window allows"):
            await moving


async def test_a_client_that_goes_away_ends_its_transfer(world: World, archive: bytes) -> None:
    client = Channel(world.address, namespace="moby")
    with contextlib.suppress(errdefs.Unavailable):  # its own
        async with opened(client, "gone") as stream:
            source = ImageImportStream(stream="gone")
            moving = asyncio.create_task(transfer(world.channel, source, ImageStore(extra_references=ANY)))
            await stream.recv_message()
            await stream.send_message(packed(Data(data=archive[:30_000])))
            client.close()
    with pytest.raises(errdefs.Unavailable):
        await asyncio.wait_for(moving, 10)
    assert await holds_nothing(world.channel)

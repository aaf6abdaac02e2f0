"""The content store over its wire."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import errdefs
import pytest
from pb.containerd.services.content import v1 as pb
from pb.google.protobuf import FieldMask
from rpc.grpc import Channel

from tests.support.stores import Stores, serve_stores

DATA = os.urandom(300_000)
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"
WRITE, STAT, COMMIT = pb.WriteAction.WRITE, pb.WriteAction.STAT, pb.WriteAction.COMMIT


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    async with serve_stores(tmp_path) as served:
        yield served


@pytest.fixture
async def channel(stores: Stores) -> AsyncIterator[Channel]:
    channel = stores.channel()
    yield channel
    channel.close()


async def write(channel: Channel, *requests: pb.WriteContentRequest) -> list[pb.WriteContentResponse]:
    return [answer async for answer in pb.ContentStub(channel).write(list(requests))]


def req(action: pb.WriteAction, ref: str = "r", **fields: Any) -> pb.WriteContentRequest:
    return pb.WriteContentRequest(action=action, ref=ref, **fields)


async def store(channel: Channel, data: bytes = DATA, **fields: Any) -> str:
    answers = await write(channel, req(WRITE, data=data), req(COMMIT, offset=len(data), **fields))
    return answers[-1].digest


async def read(channel: Channel, digest: str, offset: int = 0, size: int = 0) -> bytes:
    request = pb.ReadContentRequest(digest=digest, offset=offset, size=size)
    return b"".join([answer.data async for answer in pb.ContentStub(channel).read(request)])


async def test_write_and_read(stores: Stores, channel: Channel) -> None:
    answers = await write(
        channel,
        req(STAT, total=len(DATA), expected=DIGEST),
        req(WRITE, data=DATA[:100]),
        req(WRITE, offset=100, data=DATA[100:]),
        req(COMMIT, offset=len(DATA), total=len(DATA), expected=DIGEST, labels={"a": "b"}),
    )
    assert [answer.offset for answer in answers] == [0, 100, len(DATA), len(DATA)]
    assert answers[-1].digest == DIGEST
    path = stores.content.path(DIGEST)
    assert path == stores.root / "content/blobs/sha256" / DIGEST[7:]
    assert path.stat().st_mode & 0o777 == 0o600
    assert await read(channel, DIGEST) == DATA
    assert await read(channel, DIGEST, 10, 5) == DATA[10:15]
    assert await read(channel, DIGEST, len(DATA) - 3, 50) == DATA[-3:]
    with pytest.raises(errdefs.OutOfRange):
        await read(channel, DIGEST, len(DATA) + 1)
    info = (await pb.ContentStub(channel).info(pb.InfoRequest(digest=DIGEST))).info
    assert info is not None
    assert (info.size, info.labels) == (len(DATA), {"a": "b"})
    assert list((stores.root / "content/ingest").iterdir()) == []
    with pytest.raises(errdefs.AlreadyExists):
        await write(channel, req(STAT, ref="again", expected=DIGEST))
    with pytest.raises(errdefs.AlreadyExists):
        await store(channel)


async def test_verification(stores: Stores, channel: Channel) -> None:
    other = f"sha256:{'0' * 64}"
    with pytest.raises(errdefs.FailedPrecondition, match="unexpected commit digest"):
        await store(channel, expected=other)
    with pytest.raises(errdefs.FailedPrecondition, match="failed size validation"):
        await write(channel, req(COMMIT, offset=len(DATA), total=5))
    with pytest.raises(errdefs.OutOfRange, match="must occur at current offset"):
        await write(channel, req(WRITE, offset=7, data=b"x"))
    with pytest.raises(errdefs.InvalidArgument):
        await write(channel, req(WRITE, ref="", data=b"x"))
    with pytest.raises(errdefs.InvalidArgument):
        await write(channel, req(STAT, ref="x", expected="sha256:../../../etc/passwd"))
    # The ingest is still there, and offset 0 begins it anew.
    answers = await write(channel, req(WRITE, data=b"new"), req(COMMIT, offset=3))
    assert answers[-1].digest == f"sha256:{hashlib.sha256(b'new').hexdigest()}"


async def test_an_ingest_outlives_the_process(tmp_path: Path) -> None:
    async with serve_stores(tmp_path) as first:
        channel = first.channel()
        await write(channel, req(WRITE, data=DATA[:1000], total=len(DATA)))
        channel.close()
    async with serve_stores(tmp_path) as second:
        channel = second.channel()
        content = pb.ContentStub(channel)
        status = (await content.status(pb.StatusRequest(ref="r"))).status
        assert status is not None
        assert (status.offset, status.total) == (1000, len(DATA))
        statuses = (await content.list_statuses(pb.ListStatusesRequest(filters=["ref==r"]))).statuses
        assert [status.ref for status in statuses] == ["r"]
        [stat, *_] = await write(
            channel,
            req(STAT),
            req(WRITE, offset=1000, data=DATA[1000:]),
            req(COMMIT, offset=len(DATA), expected=DIGEST),
        )
        assert stat.offset == 1000
        assert await read(channel, DIGEST) == DATA
        channel.close()


async def test_one_writer_at_a_time(channel: Channel) -> None:
    release = asyncio.Event()

    async def slow() -> AsyncIterator[pb.WriteContentRequest]:
        yield req(WRITE, data=b"x")
        await release.wait()

    first = pb.ContentStub(channel).write(slow())
    await anext(first)
    with pytest.raises(errdefs.Unavailable, match="locked"):
        await write(channel, req(STAT))
    with pytest.raises(errdefs.Unavailable):
        await pb.ContentStub(channel).abort(pb.AbortRequest(ref="r"))
    release.set()
    assert [answer async for answer in first] == []
    await pb.ContentStub(channel).abort(pb.AbortRequest(ref="r"))
    with pytest.raises(errdefs.NotFound):
        await pb.ContentStub(channel).abort(pb.AbortRequest(ref="r"))
    with pytest.raises(errdefs.NotFound):
        await pb.ContentStub(channel).status(pb.StatusRequest(ref="r"))


async def test_namespaces_share_files(stores: Stores, channel: Channel) -> None:
    await store(channel)
    other = stores.channel("other")
    with pytest.raises(errdefs.NotFound):
        await read(other, DIGEST)
    answers = await write(other, req(STAT, expected=DIGEST), req(COMMIT, offset=len(DATA), expected=DIGEST))
    assert answers[0].offset == len(DATA)
    assert await read(other, DIGEST) == DATA
    await pb.ContentStub(channel).delete(pb.DeleteContentRequest(digest=DIGEST))
    assert await read(other, DIGEST) == DATA
    await pb.ContentStub(other).delete(pb.DeleteContentRequest(digest=DIGEST))
    assert not stores.content.path(DIGEST).exists()
    with pytest.raises(errdefs.NotFound):
        await pb.ContentStub(other).delete(pb.DeleteContentRequest(digest=DIGEST))
    other.close()


async def test_labels_and_filters(channel: Channel) -> None:
    content = pb.ContentStub(channel)
    await store(channel, labels={"keep": "1", "drop": "2"})
    await store(channel, b"other")
    answer = await content.update(
        pb.UpdateRequest(
            info=pb.Info(digest=DIGEST, labels={"new.dotted": "x"}),
            update_mask=FieldMask(paths=["labels.drop", "labels.new.dotted"]),
        )
    )
    assert answer.info is not None
    assert answer.info.labels == {"keep": "1", "new.dotted": "x"}
    with pytest.raises(errdefs.InvalidArgument):
        await content.update(
            pb.UpdateRequest(info=pb.Info(digest=DIGEST), update_mask=FieldMask(paths=["size"]))
        )

    async def found(*filters: str) -> set[str]:
        request = pb.ListContentRequest(filters=list(filters))
        return {info.digest async for block in content.list(request) for info in block.info}

    assert len(await found()) == 2
    assert await found("labels.keep==1") == {DIGEST}
    assert await found('labels."new.dotted"') == {DIGEST}
    assert await found(f"digest=={DIGEST},labels.keep!=2") == {DIGEST}
    assert await found("labels.keep==2", f"digest~={DIGEST[:20]}") == {DIGEST}
    with pytest.raises(errdefs.InvalidArgument):
        await found("labels.keep==")


async def test_start_removes_what_a_crash_left(tmp_path: Path) -> None:
    async with serve_stores(tmp_path) as first:
        channel = first.channel()
        await store(channel)
        channel.close()
    blobs, ingests = tmp_path / "content/blobs/sha256", tmp_path / "content/ingest"
    (blobs / ("1" * 64)).write_bytes(b"renamed, never recorded")
    (ingests / "half").mkdir()
    async with serve_stores(tmp_path) as second:
        assert [path.name for path in blobs.iterdir()] == [DIGEST[7:]]
        assert list(ingests.iterdir()) == []
        assert await second.content.info("moby", DIGEST)
    (blobs / DIGEST[7:]).unlink()
    async with serve_stores(tmp_path) as third:
        with pytest.raises(errdefs.NotFound):
            await third.content.info("moby", DIGEST)


async def test_a_damaged_blob_is_set_aside_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve_stores(tmp_path) as first:
        channel = first.channel()
        await store(channel)
        channel.close()
    path = tmp_path / "content/blobs/sha256" / DIGEST[7:]
    path.write_bytes(b"torn")
    async with serve_stores(tmp_path) as second:
        assert DIGEST in caplog.text
        assert (tmp_path / "content/quarantine" / f"sha256-{DIGEST[7:]}").read_bytes() == b"torn"
        with pytest.raises(errdefs.NotFound):
            await second.content.info("moby", DIGEST)
        channel = second.channel()
        await store(channel)  # it can be written again
        channel.close()
        assert path.read_bytes() == DATA


async def test_a_lost_database_does_not_cost_the_blobs(tmp_path: Path) -> None:
    async with serve_stores(tmp_path) as first:
        channel = first.channel()
        await store(channel)
        channel.close()
    for path in tmp_path.glob("meta.db*"):
        path.unlink()
    async with serve_stores(tmp_path):
        [aside] = (tmp_path / "content").glob("blobs.unknown-*")
        assert (aside / "sha256" / DIGEST[7:]).read_bytes() == DATA

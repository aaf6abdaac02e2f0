"""A client of containerd's Streaming and Transfer services."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator

import betterproto2
import grpclib.client
from grpclib.const import Cardinality
from h2.exceptions import StreamClosedError
from pb.containerd.services.streaming.v1 import StreamInit
from pb.containerd.services.transfer.v1 import TransferOptions, TransferRequest, TransferStub
from pb.containerd.types.transfer import (
    Data,
    ImageExportStream,
    ImageImportStream,
    ImageStore,
    Progress,
    WindowUpdate,
)
from pb.google.protobuf import Any as AnyMessage
from pb.message_pool import default_message_pool
from rpc.grpc import Channel

Wire = grpclib.client.Stream[AnyMessage, AnyMessage]


def packed(message: betterproto2.Message) -> AnyMessage:
    """A message as containerd's clients pack it."""
    name = default_message_pool.type_to_url[type(message)].rpartition("/")[2]
    return AnyMessage(type_url=name, value=bytes(message))


@contextlib.asynccontextmanager
async def opened(channel: Channel, name: str) -> AsyncIterator[Wire]:
    """A stream that the daemon has confirmed."""
    async with channel.request(
        "/containerd.services.streaming.v1.Streaming/Stream",
        Cardinality.STREAM_STREAM,
        AnyMessage,
        AnyMessage,
    ) as stream:
        await stream.send_message(packed(StreamInit(id=name)))
        confirmed = await stream.recv_message()
        assert confirmed is not None
        assert confirmed.type_url == "google.protobuf.Empty"
        yield stream
        with contextlib.suppress(StreamClosedError):  # it has ended
            await stream.cancel()


async def send(stream: Wire, data: bytes) -> None:
    """Send bytes as the daemon allows it, then end the sending."""
    window = 0
    while data:
        while window <= 0:
            message = await stream.recv_message()
            assert message is not None
            window += WindowUpdate.parse(message.value).update
        piece, data = data[: min(window, 32 * 1024)], data[min(window, 32 * 1024) :]
        window -= len(piece)
        await stream.send_message(packed(Data(data=piece)))
    await stream.end()


async def receive(stream: Wire, allowed: int = 64 * 1024) -> bytes:
    """All that the daemon sends."""
    received, window = b"", 0
    while True:
        if window < allowed:
            await stream.send_message(packed(WindowUpdate(update=allowed)))
            window += allowed
        message = await stream.recv_message()
        if message is None:
            return received
        data = Data.parse(message.value).data
        window -= len(data)
        received += data


async def transfer(
    channel: Channel, source: betterproto2.Message, target: betterproto2.Message, progress: str = ""
) -> None:
    """One transfer."""
    await TransferStub(channel).transfer(
        TransferRequest(
            source=packed(source),
            destination=packed(target),
            options=TransferOptions(progress_stream=progress),
        )
    )


async def import_image(channel: Channel, archive: bytes, store: ImageStore) -> list[str]:
    """Import an archive; the events that the daemon told."""
    name = f"import-{secrets.token_hex(4)}"
    async with opened(channel, name) as stream, opened(channel, f"{name}-progress") as told:
        sending = asyncio.create_task(send(stream, archive))
        try:
            await transfer(channel, ImageImportStream(stream=name), store, f"{name}-progress")
            await sending
        finally:
            sending.cancel()
        events = []
        while (message := await told.recv_message()) is not None:
            events.append(Progress.parse(message.value).event)
        return events


async def export_image(channel: Channel, store: ImageStore) -> bytes:
    """Export images; the archive."""
    name = f"export-{secrets.token_hex(4)}"
    async with opened(channel, name) as stream:
        receiving = asyncio.create_task(receive(stream))
        try:
            await transfer(channel, store, ImageExportStream(stream=name))
            return await receiving
        finally:
            receiving.cancel()

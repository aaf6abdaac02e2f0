"""The ttrpc client and server against each other and against raw bytes on a real Unix socket."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import errdefs
import pytest
from pb.buoy.facts.v1 import FactsBase, NextRequest, NextResponse
from pb.ttrpc import Request, Response
from rpc import ttrpc

FACTS = "buoy.facts.v1.Facts"


class Facts(FactsBase):
    """A service with an answer for every kind of outcome; `after` chooses."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()

    async def next(self, message: NextRequest) -> NextResponse:
        if message.after == 1:
            raise errdefs.NotFound("container not created")
        if message.after == 2:
            raise ValueError("a fault")
        if message.after == 3:
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if message.after == 4:
            return NextResponse(epoch="x" * (5 << 20))
        return NextResponse(epoch=message.epoch)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[tuple[str, Facts]]:
    path = str(tmp_path / "s")
    facts = Facts()
    server = ttrpc.Server([facts], aliases={"other.Facts": FACTS})
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    await server.serve(sock)
    yield path, facts
    await server.close()


async def test_calls_run_side_by_side(served: tuple[str, Facts]) -> None:
    client = await ttrpc.Client.connect(served[0])
    slow = asyncio.ensure_future(client.call(FACTS, "Next", NextRequest(after=3), NextResponse, timeout=0.3))
    replies = await asyncio.gather(
        *(client.call(FACTS, "Next", NextRequest(epoch=str(n)), NextResponse) for n in range(50))
    )
    assert [reply.epoch for reply in replies] == [str(n) for n in range(50)]
    with pytest.raises(errdefs.DeadlineExceeded):
        await slow
    await client.close()


async def test_an_alias_reaches_the_same_object(served: tuple[str, Facts]) -> None:
    client = await ttrpc.Client.connect(f"unix://{served[0]}")
    assert (await client.call("other.Facts", "Next", NextRequest(epoch="e"), NextResponse)).epoch == "e"
    await client.close()


@pytest.mark.parametrize(
    ("method", "after", "kind", "text"),
    [
        ("Next", 1, errdefs.NotFound, "container not created"),
        ("Nope", 0, errdefs.NotImplementedHere, "service buoy.facts.v1.Facts method Nope"),
        ("Next", 2, errdefs.Internal, "a fault"),
        ("Next", 4, errdefs.ResourceExhausted, "too long"),
    ],
)
async def test_errors_come_back_as_their_class(
    served: tuple[str, Facts], method: str, after: int, kind: type[errdefs.BuoyError], text: str
) -> None:
    client = await ttrpc.Client.connect(served[0])
    with pytest.raises(kind, match=text):
        await client.call(FACTS, method, NextRequest(after=after), NextResponse)
    assert (await client.call(FACTS, "Next", NextRequest(epoch="still"), NextResponse)).epoch == "still"
    await client.close()


async def test_a_caller_that_goes_away_cancels_its_call(served: tuple[str, Facts]) -> None:
    path, facts = served
    client = await ttrpc.Client.connect(path)
    call = asyncio.ensure_future(client.call(FACTS, "Next", NextRequest(after=3), NextResponse, timeout=0))
    await client.call(FACTS, "Next", NextRequest(), NextResponse)
    await client.close()
    with pytest.raises(errdefs.Unavailable):
        await call
    async with asyncio.timeout(2):
        await facts.cancelled.wait()
    with pytest.raises(errdefs.Unavailable):
        await client.call(FACTS, "Next", NextRequest(), NextResponse)


async def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(errdefs.Unavailable):
        await ttrpc.Client.connect(str(tmp_path / "none"))


async def frame(reader: asyncio.StreamReader) -> tuple[int, int, Response]:
    length, stream, kind, _ = ttrpc.HEADER.unpack(await reader.readexactly(10))
    return stream, kind, Response.parse(await reader.readexactly(length))


async def test_the_wire_byte_by_byte_and_its_misuse(served: tuple[str, Facts]) -> None:
    """Bad ids, types, lengths and bytes are answered as the reference does; the connection lives on."""
    reader, writer = await asyncio.open_unix_connection(served[0])
    data = bytes(Request(service=FACTS, method="Next", payload=bytes(NextRequest(epoch="é"))))
    good = struct.pack(">IIBB", len(data), 1, 1, 0) + data
    for byte in good:
        writer.write(bytes([byte]))
        await writer.drain()
    stream, kind, response = await frame(reader)
    assert (stream, kind, NextResponse.parse(response.payload).epoch) == (1, 2, "é")

    for header, payload, code in [
        ((len(data), 2, 1, 0), data, 3),  # even
        ((len(data), 1, 1, 0), data, 3),  # used
        ((0, 9, 3, 1), b"", 3),  # data for no stream
        ((2, 11, 1, 0), b"\x0a\xff", 3),  # no message
        ((len(data), 13, 1, 2), data, 12),  # streaming
        (((4 << 20) + 1, 15, 1, 0), b"\0" * ((4 << 20) + 1), 8),  # too long, skipped
    ]:
        writer.write(struct.pack(">IIBB", *header) + payload)
        stream, kind, response = await frame(reader)
        assert response.status is not None
        assert (stream, kind, response.status.code) == (header[1], 2, code)
    writer.write(struct.pack(">IIBB", len(data), 17, 1, 0) + data)
    assert (await frame(reader))[0] == 17
    writer.close()
    await writer.wait_closed()


async def test_a_foreign_first_byte_goes_to_the_other_protocol(tmp_path: Path) -> None:
    class Echo(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            assert isinstance(self.transport, asyncio.Transport)
            self.transport.write(data.upper())

    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(tmp_path / "s"))
    server = ttrpc.Server([Facts()], other=Echo)
    await server.serve(sock)
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
    writer.write(b"pri * http/2")
    assert await reader.readexactly(12) == b"PRI * HTTP/2"
    writer.close()
    await writer.wait_closed()
    await server.close()

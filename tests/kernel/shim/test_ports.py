"""The proxy for published ports: listeners handed over on the attach socket."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from typing import cast

import pytest
from pb.buoy.attach.v1 import PortMapping, Ports, Request

from tests.kernel.shim.harness import Box

pytestmark = pytest.mark.root


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def mapping(protocol: str, port: int, **more: object) -> PortMapping:
    fields = {"container_ip": "127.0.0.1", "container_port": port, "host_port": 1, **more}
    return PortMapping(protocol=protocol, **fields)  # type: ignore[arg-type]


def hand_over(box: Box, mappings: list[PortMapping], sockets: list[socket.socket]) -> tuple[str, str]:
    reply = box.request(Request(ports=Ports(mappings=mappings)), sockets)
    return reply.kind, reply.error


@pytest.fixture
async def running(box: Box) -> Box:
    box.write(["sleep", "1000"])
    await box.shim()
    await box.create()
    await box.start()
    return box


async def test_tcp_both_ways_and_half_closed(running: Box, listener: socket.socket) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()
        writer.write(data.upper())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    assert hand_over(running, [mapping("tcp", port)], [listener]) == ("", "")
    address = listener.getsockname()
    listener.close()
    payload = b"through the proxy " * 100_000

    async def talk() -> bytes:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(payload)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        return answer

    assert await asyncio.gather(*(talk() for _ in range(5))) == [payload.upper()] * 5
    await running.kill()
    await running.wait()
    await running.delete()
    assert await talk() == payload.upper()  # held between two tasks
    await running.shutdown()
    await asyncio.sleep(0.1)
    with pytest.raises(ConnectionRefusedError):
        await talk()
    server.close()
    await server.wait_closed()


async def test_tcp_to_nobody_ends(running: Box, listener: socket.socket) -> None:
    assert hand_over(running, [mapping("tcp", 1)], [listener]) == ("", "")
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    assert await reader.read() == b""
    writer.close()


async def test_udp_answers_find_their_way_back(running: Box) -> None:
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast(asyncio.DatagramTransport, transport)

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            self.transport.sendto(data.upper(), addr)

    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=("127.0.0.1", 0))
    port = transport.get_extra_info("sockname")[1]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        assert hand_over(running, [mapping("udp", port)], [bound]) == ("", "")
        for word in (b"one", b"two"):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(5)
                client.connect(bound.getsockname())
                client.send(word)
                assert await asyncio.to_thread(client.recv, 100) == word.upper()
    transport.close()


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"protocol": "sctp"}, "NotImplementedHere"),
        ({"protocol": "udp"}, "InvalidArgument"),
        ({"container_ip": "nowhere"}, "InvalidArgument"),
        ({"port": 0}, "InvalidArgument"),
    ],
)
async def test_a_bad_mapping_changes_nothing(
    running: Box, listener: socket.socket, change: dict[str, object], kind: str
) -> None:
    assert hand_over(running, [mapping("tcp", 1)], [listener]) == ("", "")
    fields = {"protocol": "tcp", "port": 80, **change}
    got, error = hand_over(running, [mapping(**fields)], [listener])  # type: ignore[arg-type]
    assert (got, bool(error)) == (kind, True)
    reader, writer = await asyncio.open_connection(*listener.getsockname())
    assert await reader.read() == b""  # the first mapping is still served
    writer.close()


async def test_as_many_sockets_as_mappings(running: Box, listener: socket.socket) -> None:
    kind, _ = hand_over(running, [], [listener])
    assert kind == "InvalidArgument"

"""Packets between containers, the host and the world: what must arrive arrives, what must not does not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from pathlib import Path

import pytest
from dockerd_api.network.manager import PortRequest

from tests.kernel.network import world
from tests.kernel.network.world import HOST, LAN, Host, address, ask, command, inside, want


async def containers_talk(host: Host) -> None:
    async with host.networks() as networks:
        one, two = await networks.attach(want(1)), await networks.attach(want(2))
        assert (address(one), address(two)) == ("172.17.0.2", "172.17.0.3")
        async with world.tcp_server(two.netns_path, 80, "two"), world.tcp_server(host.lan, 80, "lan"):
            assert await ask(one.netns_path, address(two), 80) == "two 172.17.0.2"
            assert await ask(None, address(two), 80) == "two 172.17.0.1"
            assert await world.ping(one.netns_path, address(two))
            assert await world.ping(one.netns_path, "172.17.0.1")
            assert await world.ping(one.netns_path, LAN)
            # Outside, the container is seen with the host's address.
            assert await ask(one.netns_path, LAN, 80) == f"lan {HOST}"
        ipv6 = inside(one.netns_path, lambda: Path("/proc/sys/net/ipv6/conf/eth0/disable_ipv6").read_text())
        assert ipv6.strip() == "1"


async def published_port_answers(host: Host) -> None:
    async with host.networks() as networks:
        server = await networks.attach(want(1, PortRequest(80, "tcp", host_port=8080)))
        other = await networks.attach(want(2))
        async with world.tcp_server(server.netns_path, 80, "hello"):
            assert await ask(host.lan, HOST, 8080) == f"hello {LAN}"
            assert await ask(None, "127.0.0.1", 8080) == "hello 172.17.0.1"
            assert await ask(None, HOST, 8080) == f"hello {HOST}"
            assert await ask(other.netns_path, HOST, 8080) == "hello 172.17.0.1"
            assert await ask(server.netns_path, HOST, 8080) == "hello 172.17.0.1"
            assert await ask(other.netns_path, "172.17.0.1", 8080) == "hello 172.17.0.1"
            # ::1 is no rule's: the connection arrives at the listener, whose holder serves it.
            listeners = {port.host_ip: sock for port, sock in server.listeners}
            assert sorted(listeners) == ["0.0.0.0", "::"]
            await world.connects_to_listener(None, "::1", 8080, listeners["::"])
        await networks.detach("1".zfill(64))
        world.close_listeners(server)
        assert await world.unreachable(host.lan, HOST, 8080)


async def outsiders_are_kept_out(host: Host) -> None:
    async with host.networks() as networks:
        server = await networks.attach(want(1, PortRequest(80, "tcp", host_port=8080)))
        async with world.tcp_server(server.netns_path, 80, "a"), world.tcp_server(server.netns_path, 81, "b"):
            # By the container's own address nobody outside reaches anything, published or not.
            assert await world.unreachable(host.lan, address(server), 80)
            assert await world.unreachable(host.lan, address(server), 81)
            assert await ask(host.lan, HOST, 8080)
        world.close_listeners(server)


async def loopback_is_kept_from_bridges(host: Host) -> None:
    async with host.networks() as networks:
        one = await networks.attach(want(1))
        frame = _udp_frame(
            bridge_mac=_mac_of("buoyt"),
            own_mac=one.endpoints[0].mac_address,
            source=address(one),
            target="127.0.0.1",
            port=9999,
        )

        def send() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
                sock.bind(("eth0", 0))
                sock.send(frame)

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as victim:
            victim.bind(("127.0.0.1", 9999))
            victim.setblocking(False)
            inside(one.netns_path, send)
            await asyncio.sleep(0.1)
            with pytest.raises(BlockingIOError):
                victim.recv(100)
            # The same packet arrives when our rules are away: one of them is what stopped it.
            await networks._stop_watching()
            command("nft", "delete table inet buoy_t")
            inside(one.netns_path, send)
            async with asyncio.timeout(5):
                assert await asyncio.get_running_loop().sock_recv(victim, 100) == b"x"


def _mac_of(link: str) -> str:
    return command("ip", "-br", "link", "show", link).split()[2]


def _udp_frame(*, bridge_mac: str, own_mac: str, source: str, target: str, port: int) -> bytes:
    def mac(text: str) -> bytes:
        return bytes.fromhex(text.replace(":", ""))

    udp = struct.pack("!HHHH", 5555, port, 9, 0) + b"x"
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(udp),
        1,
        0,
        64,
        17,
        0,
        socket.inet_aton(source),
        socket.inet_aton(target),
    )
    checksum = world._checksum(head)
    head = head[:10] + struct.pack("!H", checksum) + head[12:]
    return mac(bridge_mac) + mac(own_mac) + b"\x08\x00" + head + udp


async def host_ip_is_honoured(host: Host) -> None:
    async with host.networks() as networks:
        server = await networks.attach(
            want(
                1,
                PortRequest(80, "tcp", "127.0.0.1", 8080),
                PortRequest(80, "tcp", HOST, 8081),
            )
        )
        assert {(p.host_ip, p.host_port) for p in server.ports} == {("127.0.0.1", 8080), (HOST, 8081)}
        async with world.tcp_server(server.netns_path, 80, "hello"):
            assert await ask(None, "127.0.0.1", 8080) == "hello 172.17.0.1"
            assert await world.unreachable(host.lan, HOST, 8080)
            assert await ask(host.lan, HOST, 8081) == f"hello {LAN}"
            assert await world.unreachable(None, "127.0.0.1", 8081)
        world.close_listeners(server)


async def udp_is_published(host: Host) -> None:
    loop = asyncio.get_running_loop()
    client = inside(host.lan, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    client.bind((LAN, 4000))
    client.setblocking(False)
    async with host.networks() as networks:
        with client:
            # An entry of connection tracking from before the port was published must not keep packets off.
            client.sendto(b"early", (HOST, 5353))
            server = await networks.attach(want(1, PortRequest(53, "udp", host_port=5353)))
            inner = inside(server.netns_path, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            with inner:
                inner.bind(("0.0.0.0", 53))
                inner.setblocking(False)
                client.sendto(b"now", (HOST, 5353))
                async with asyncio.timeout(5):
                    data, source = await loop.sock_recvfrom(inner, 100)
                    assert (data, source) == (b"now", (LAN, 4000))
                    inner.sendto(b"answer", source)
                    assert await loop.sock_recvfrom(client, 100) == (b"answer", (HOST, 5353))
            # Published anew for another container, the same client's packets go there.
            await networks.detach("1".zfill(64))
            world.close_listeners(server)
            second = await networks.attach(want(2, PortRequest(53, "udp", host_port=5353)))
            inner = inside(second.netns_path, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            with inner:
                inner.bind(("0.0.0.0", 53))
                inner.setblocking(False)
                client.sendto(b"again", (HOST, 5353))
                async with asyncio.timeout(5):
                    assert await loop.sock_recv(inner, 100) == b"again"
            world.close_listeners(second)


async def icc_off_keeps_containers_apart(host: Host) -> None:
    async with host.networks(icc=False) as networks:
        one = await networks.attach(want(1))
        two = await networks.attach(want(2, PortRequest(80, "tcp", host_port=8080)))
        async with world.tcp_server(two.netns_path, 80, "two"), world.tcp_server(two.netns_path, 81, "x"):
            assert await world.unreachable(one.netns_path, address(two), 80)
            assert not await world.ping(one.netns_path, address(two))
            assert await world.ping(one.netns_path, "172.17.0.1")
            assert await ask(host.lan, HOST, 8080) == f"two {LAN}"
            # A published port of another container is reached by its listener, not by a rule.
            await world.connects_to_listener(one.netns_path, HOST, 8080, two.listeners[0][1])
        world.close_listeners(two)


async def engines_live_side_by_side(host: Host) -> None:
    async with host.networks("a") as first, host.networks("b") as second:
        one = await first.attach(want(1, PortRequest(80, "tcp", host_port=8080)))
        two = await second.attach(want(2, PortRequest(80, "tcp", host_port=8081)))
        assert (address(one), address(two)) == ("172.17.0.2", "172.18.0.2")
        async with world.tcp_server(one.netns_path, 80, "1"), world.tcp_server(two.netns_path, 80, "2"):
            assert await ask(host.lan, HOST, 8080) == f"1 {LAN}"
            assert await ask(host.lan, HOST, 8081) == f"2 {LAN}"
            assert (await ask(one.netns_path, HOST, 8081)).startswith("2 ")
            assert await world.unreachable(one.netns_path, address(two), 80)
        world.close_listeners(one, two)


async def an_address_given_again_is_announced(host: Host) -> None:
    async with host.networks() as networks:
        watcher = await networks.attach(want(9))
        for number in (1, 2, 3):
            one = await networks.attach(want(number))
            async with world.tcp_server(one.netns_path, 80, str(number)):
                said = await ask(watcher.netns_path, address(one), 80, timeout=2)
                assert said.startswith(f"{number} ")
            link = networks._records[f"{number:064x}"].link
            await networks.detach(f"{number:064x}")
            await world.until(lambda name=link: not _exists(name))  # type: ignore[misc]


def _exists(link: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(socket.if_nametoindex(link))
    return False


@pytest.mark.root
@pytest.mark.parametrize(
    "scenario",
    [
        "containers_talk",
        "published_port_answers",
        "outsiders_are_kept_out",
        "loopback_is_kept_from_bridges",
        "host_ip_is_honoured",
        "udp_is_published",
        "icc_off_keeps_containers_apart",
        "engines_live_side_by_side",
        "an_address_given_again_is_announced",
    ],
)
def test_traffic(scenario: str, tmp_path: Path) -> None:
    world.run(__name__, scenario, tmp_path)

"""What survives, what is refused, what is taken away: restarts, crashes, conflicts, settings, purge."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import errdefs
import pytest
from dockerd_api.network import purge
from dockerd_api.network.manager import Networks, PortRequest
from linux import netns

from tests.kernel.network import world
from tests.kernel.network.world import HOST, LAN, Host, address, ask, command, inside, want

ROOM = Path(__file__).parents[3] / "services/dockerd_api/network"
POINTS = sorted(
    {name for path in ROOM.rglob("*.py") for name in re.findall(r'crashpoint\("([^"]+)"\)', path.read_text())}
)
CID = "1".zfill(64)


def links() -> list[str]:
    """The names of all links of a sandbox or a bridge of ours."""
    names = [line.split()[0].split("@")[0] for line in command("ip", "-br", "link").splitlines()]
    return sorted(name for name in names if name.startswith(("veth", "buoy")))


async def restart_touches_nothing(host: Host) -> None:
    async with host.networks(purge=False) as networks:
        one = await networks.attach(want(1, PortRequest(80, "tcp", host_port=8080)))
        ids = [n["Id"] for n in networks.list()]
    rules, bridge = world.ruleset(), command("ip", "addr", "show", "buoyt")
    async with world.tcp_server(one.netns_path, 80, "hello"):
        # No daemon at all: the port answers.
        assert await ask(host.lan, HOST, 8080) == f"hello {LAN}"
        async with host.networks(purge=False) as networks:
            assert world.ruleset() == rules
            assert command("ip", "addr", "show", "buoyt") == bridge
            assert [n["Id"] for n in networks.list()] == ids
            again = await networks.resume(CID)
            assert again is not None
            assert (again.netns_path, again.ports, again.endpoints) == (
                one.netns_path,
                one.ports,
                one.endpoints,
            )
            assert (again.hosts, again.resolv_conf, again.listeners) == (one.hosts, one.resolv_conf, ())
            shown = networks.inspect("bridge")["Containers"][CID]
            assert shown["IPv4Address"] == "172.17.0.2/16"
            # What the container holds is not given to another.
            two = await networks.attach(want(2))
            assert address(two) == "172.17.0.3"
            with pytest.raises(errdefs.ResourceExhausted, match="port is already allocated"):
                await networks.attach(want(3, PortRequest(80, "tcp", host_port=8080)))
            await networks.detach("2".zfill(64))
        assert world.ruleset() == rules
    # Elements that somebody took out come back, and nothing else is touched.
    command("nft", "flush map inet buoy_t published-any")
    async with host.networks(purge=False):
        assert world.ruleset() == rules
    # So does the whole table, and one rule that was taken out.
    command("nft", "flush ruleset")
    async with host.networks(purge=False):
        assert _without_handles(world.ruleset()) == _without_handles(rules)
    command("nft", "flush chain inet buoy_t raw-prerouting")
    async with host.networks(purge=False):
        assert _without_handles(world.ruleset()) == _without_handles(rules)
    # A bridge that was deleted is made anew with its links in it.
    command("ip", "link", "del", "buoyt")
    async with host.networks() as networks, world.tcp_server(one.netns_path, 80, "hello"):
        assert await ask(host.lan, HOST, 8080) == f"hello {LAN}"
        world.close_listeners(one)


def _without_handles(rules: str) -> str:
    return re.sub(r" # handle \d+", "", rules)


async def flush_while_running_is_mended(host: Host) -> None:
    async with host.networks() as networks:
        one = await networks.attach(want(1, PortRequest(80, "tcp", host_port=8080)))
        rules = _without_handles(world.ruleset())
        # Nothing happens afterwards: that somebody flushed is heard of.
        for flush in ("flush ruleset", "flush chain inet buoy_t nat-postrouting"):
            command("nft", *flush.split())
            await world.until(lambda: _without_handles(world.ruleset()) == rules)
        command("nft", "flush ruleset")
        two = await networks.attach(want(2, PortRequest(80, "tcp", host_port=8081)))
        async with world.tcp_server(one.netns_path, 80, "1"), world.tcp_server(two.netns_path, 80, "2"):
            assert await ask(host.lan, HOST, 8080) == f"1 {LAN}"
            assert await ask(host.lan, HOST, 8081) == f"2 {LAN}"
        world.close_listeners(one, two)


async def leaks_are_swept(host: Host) -> None:
    folder = host.folder / "t/run/netns"
    folder.mkdir(parents=True)
    netns.create(str(folder / "00000000beef"))
    (folder / "00000000dead").touch()
    async with host.networks(purge=False) as networks:
        assert not {"00000000beef", "00000000dead"} & set(os.listdir(folder))
        one = await networks.attach(want(1, PortRequest(80, "tcp", host_port=8080)))
        world.close_listeners(one)
    # As after a boot: the namespace is gone, its row is not.
    assert one.netns_path is not None
    netns.delete(one.netns_path)
    Path(one.netns_path).touch()
    async with host.networks() as networks:
        assert await networks.resume(CID) is None
        world.close_listeners(await networks.attach(want(2, PortRequest(80, "tcp", host_port=8080))))
        assert networks.inspect("bridge")["Containers"].keys() == {"2".zfill(64)}
    assert not os.listdir(folder)


async def conflicts_are_told(host: Host) -> None:
    async with host.networks(ready=0) as networks:
        one = await networks.attach(want(1, PortRequest(80, "tcp", host_port=8080)))
        before = (sorted(os.listdir(host.folder / "t/run/netns")), world.ruleset())
        with pytest.raises(errdefs.ResourceExhausted) as caught:
            await networks.attach(want(2, PortRequest(80, "tcp", host_port=8080)))
        assert re.fullmatch(
            r"driver failed programming external connectivity on endpoint c2 \([0-9a-f]{64}\): "
            r"Bind for 0\.0\.0\.0:8080 failed: port is already allocated",
            caught.value.message,
        )
        with socket.create_server(("0.0.0.0", 8081)):
            with pytest.raises(errdefs.ResourceExhausted) as caught:
                await networks.attach(want(2, PortRequest(80, "tcp", host_port=8081)))
            assert caught.value.message.endswith(
                "failed to bind host port for 0.0.0.0:8081:172.17.0.3:80/tcp: address already in use"
            )
            # A range goes on to the next port; both families get the same.
            three = await networks.attach(want(3, PortRequest(80, "tcp", host_port=8080, host_port_end=8082)))
            assert {(p.host_ip, p.host_port) for p in three.ports} == {("0.0.0.0", 8082), ("::", 8082)}
            with pytest.raises(errdefs.ResourceExhausted, match=r"for 0\.0\.0\.0:8080-8082:172\.17"):
                await networks.attach(want(4, PortRequest(80, "tcp", host_port=8080, host_port_end=8082)))
        with pytest.raises(errdefs.ResourceExhausted, match="cannot assign requested address"):
            await networks.attach(want(4, PortRequest(80, "tcp", "203.0.113.9", 8090)))
        four = await networks.attach(want(4, PortRequest(80, "tcp"), PortRequest(81, "tcp")))
        assert [(p.container_port, p.host_port) for p in four.ports[::2]] == [(80, 32768), (81, 32769)]
        await networks.detach("3".zfill(64))
        await networks.detach("4".zfill(64))
        world.close_listeners(one, three, four)
        assert (sorted(os.listdir(host.folder / "t/run/netns")), world.ruleset()) == before
        # UDP is another matter than TCP.
        world.close_listeners(await networks.attach(want(5, PortRequest(80, "udp", host_port=8080))))


async def bad_requests_change_nothing(host: Host) -> None:
    async with host.networks(ready=0) as networks:
        for request, kind, text in (
            (want(1, mode="nowhere"), errdefs.NotFound, "network nowhere not found"),
            (want(1, ipv4_address="172.17.0.9"), errdefs.InvalidArgument, "user defined networks only"),
            (want(1, mac_address="zz"), errdefs.InvalidArgument, "invalid MAC address: zz"),
            (want(1, PortRequest(0, "tcp")), errdefs.InvalidArgument, "invalid container port: 0"),
            (want(1, PortRequest(80, "icmp")), errdefs.InvalidArgument, "invalid proto: icmp"),
            (want(1, PortRequest(80, "sctp")), errdefs.NotImplementedHere, "SCTP"),
            (want(1, PortRequest(80, "tcp", "host")), errdefs.InvalidArgument, "invalid IP address: host"),
            (want(1, PortRequest(80, "tcp", "", 9, 8)), errdefs.InvalidArgument, "invalid port range: 9-8"),
            (want(1, dns=("x",)), errdefs.InvalidArgument, "bad nameserver address: x"),
            (want(1, extra_hosts=("x",)), errdefs.InvalidArgument, 'bad format for add-host: "x"'),
            (want(1, mode=f"container:{CID}"), errdefs.InvalidArgument, "own network"),
            (want(1, mode="container:other"), errdefs.Conflict, "not running"),
        ):
            with pytest.raises(kind, match=re.escape(text)):
                await networks.attach(request)
            assert await networks.resume(CID) is None
            if "not running" not in text:
                with pytest.raises(kind):
                    await networks.validate(request)
        assert not os.listdir(host.folder / "t/run/netns")


async def modes(host: Host) -> None:
    async with host.networks(purge=False) as networks:
        none = await networks.attach(want(1, mode="none"))
        assert [e.network_name for e in none.endpoints] == ["none"]
        inner = inside(none.netns_path, lambda: command("ip", "-br", "addr"))
        assert inner.split() == ["lo", "UNKNOWN", "127.0.0.1/8", "::1/128"]
        onto = await networks.attach(want(2, PortRequest(80, "tcp", host_port=80), mode="host"))
        assert (onto.netns_path, onto.ports) == (None, ())
        assert onto.hosts == Path("/etc/hosts").read_text()
        main = await networks.attach(want(3))
        joined = await networks.attach(want(4, mode=f"container:{'3'.zfill(64)}"))
        chained = await networks.attach(want(5, mode=f"container:{'4'.zfill(64)}"))
        assert joined == chained == main
        assert networks.inspect("none")["Containers"].keys() == {"1".zfill(64)}
        assert networks.inspect("host")["Containers"]["2".zfill(64)]["IPv4Address"] == ""
    async with host.networks() as networks:
        assert await networks.resume("5".zfill(64)) == main
        await networks.detach("4".zfill(64))
        assert await networks.resume("3".zfill(64)) == main


async def settings_are_honoured(host: Host) -> None:
    config: dict[str, Any] = {
        "bip": "192.168.77.1/24",
        "fixed-cidr": "192.168.77.128/30",
        "mtu": 1400,
        "ip": "127.0.0.1",
    }
    async with host.networks("", **config) as networks:
        bridge = networks.inspect("bridge")
        assert bridge["IPAM"]["Config"] == [
            {"Subnet": "192.168.77.0/24", "Gateway": "192.168.77.1", "IPRange": "192.168.77.128/30"}
        ]
        assert bridge["Options"]["com.docker.network.bridge.name"] == "docker0"
        one = await networks.attach(want(1, PortRequest(80, "tcp"), mac_address="02:42:AC:11:00:09"))
        assert [p.host_ip for p in one.ports] == ["127.0.0.1"]
        world.close_listeners(one)
        inner = inside(one.netns_path, lambda: command("ip", "addr", "show", "eth0"))
        assert "mtu 1400" in inner
        assert "inet 192.168.77.128/24 brd 192.168.77.255" in inner
        assert "link/ether 02:42:ac:11:00:09" in inner
        for number in (2, 3, 4):
            await networks.attach(want(number))
        with pytest.raises(errdefs.ResourceExhausted, match="no available IPv4 addresses"):
            await networks.attach(want(5))
    async with host.networks("x", bridge="none") as networks:
        assert [n["Name"] for n in networks.list()] == ["none", "host"]
        assert (await networks.attach(want(1))).endpoints[0].network_name == "none"
        with pytest.raises(errdefs.NotFound, match="network bridge not found"):
            await networks.attach(want(2, mode="bridge"))
    async with host.networks("x", **{"userland-proxy": False}) as networks:
        one = await networks.attach(want(1, PortRequest(80, "tcp", host_port=8080)))
        assert [p.host_ip for p in one.ports] == ["0.0.0.0"]
        world.close_listeners(one)
    for bad in ({"ipv6": True}, {"firewall-backend": "iptables"}):
        with pytest.raises(errdefs.NotImplementedHere):
            async with host.networks("x", **bad):
                pass


async def subnets_avoid_what_is_there(host: Host) -> None:
    command("ip", "route", "add", "172.17.5.0/24", "via", LAN)
    async with host.networks("x", purge=False) as networks:
        assert networks.inspect("bridge")["IPAM"]["Config"][0]["Subnet"] == "172.18.0.0/16"
    command("ip", "route", "del", "172.17.5.0/24")
    command("ip", "link", "del", "buoyx")
    async with host.networks("x") as networks:  # remembered
        assert networks.inspect("bridge")["IPAM"]["Config"][0]["Subnet"] == "172.18.0.0/16"


async def foreign_firewalls_are_reported(host: Host) -> None:
    command("nft", "add table ip other")
    command("nft", "add chain ip other FORWARD { type filter hook forward priority 0; policy drop; }")
    async with host.networks() as networks:
        (line,) = networks.warnings()
        assert "ip other FORWARD" in line


async def a_helper_that_dies_is_replaced(host: Host) -> None:
    async with host.networks(ready=0) as networks:
        os.kill(networks._helper._pid, signal.SIGKILL)
        assert address(await networks.attach(want(1))) == "172.17.0.2"


async def purge_works_without_a_daemon(host: Host) -> None:
    async with host.networks(purge=False) as networks:
        world.close_listeners(await networks.attach(want(1, PortRequest(80, "tcp", host_port=8080))))
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "1"
    assert purge.main(["--instance", "t", "--exec-root", str(host.folder / "t/run")]) == 0
    await world.until(lambda: not links())
    assert "buoy" not in command("nft", "list", "tables")
    assert not os.listdir(host.folder / "t/run")
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text().strip() == "0"
    assert purge.main(["--instance", "t", "--exec-root", str(host.folder / "t/run")]) == 0


async def a_crash_at_any_point_leaves_nothing(host: Host) -> None:
    assert len(POINTS) >= 9
    for point in POINTS:
        for ready in (0, 1):
            once = host.folder / f"{point}-{ready}"
            child = await asyncio.to_thread(
                subprocess.run,
                [
                    sys.executable,
                    "-m",
                    "tests.kernel.network.crash_child",
                    str(host.folder / "t"),
                    str(ready),
                ],
                env={**os.environ, "BUOY_CRASH_AT": point, "BUOY_CRASH_ONCE": str(once)},
                capture_output=True,
                text=True,
                timeout=20,
            )
            assert once.exists(), f"{point} was not reached: {child.stderr}"
            # At a point within the helper only that dies, and is replaced.
            assert child.returncode == (0 if _in_helper(point) else -signal.SIGKILL), child.stderr
        async with host.networks(ready=0, purge=False) as networks:
            await networks.detach(CID)
            await _nothing_is_held(host, networks, point)
            request = want(1, PortRequest(80, "tcp", host_port=8080), PortRequest(53, "udp", host_port=53))
            one = await networks.attach(request)
            # Once more, as an engine does that does not know how far it came.
            world.close_listeners(one)
            two = await networks.attach(request)
            async with world.tcp_server(two.netns_path, 80, point):
                assert await ask(host.lan, HOST, 8080) == f"{point} {LAN}"
            world.close_listeners(two)
            await networks.detach(CID)
            await networks.detach(CID)
            await _nothing_is_held(host, networks, point)


def _in_helper(point: str) -> bool:
    return point in ("network.netns.made", "network.veth.made")


async def _nothing_is_held(host: Host, networks: Networks, point: str) -> None:
    assert not os.listdir(host.folder / "t/run/netns"), point
    assert "elements" not in command("nft", "list", "table", "inet", "buoy_t"), point
    assert not networks.inspect("bridge")["Containers"], point
    await world.until(lambda: links() == ["buoyt"])


@pytest.mark.root
@pytest.mark.parametrize(
    "scenario",
    [
        "restart_touches_nothing",
        "flush_while_running_is_mended",
        "leaks_are_swept",
        "conflicts_are_told",
        "bad_requests_change_nothing",
        "modes",
        "settings_are_honoured",
        "subnets_avoid_what_is_there",
        "foreign_firewalls_are_reported",
        "a_helper_that_dies_is_replaced",
        "purge_works_without_a_daemon",
        pytest.param("a_crash_at_any_point_leaves_nothing", marks=pytest.mark.crash),
    ],
)
def test_lifecycle(scenario: str, tmp_path: Path) -> None:
    world.run(__name__, scenario, tmp_path)

"""The network room's pure parts: addresses, port wishes, settings, file texts, the firewall's text."""

from __future__ import annotations

import ipaddress
import re

import errdefs
import pytest
from dockerd_api.network import firewall, ipam, ports, resolv, settings
from dockerd_api.network.firewall import BridgeRules, PortRule
from dockerd_api.network.model import PortRequest

NET = ipaddress.IPv4Network


def test_the_lowest_free_address_is_given() -> None:
    pool = ipam.AddressPool(NET("10.0.0.0/29"), reserved=[ipaddress.IPv4Address("10.0.0.1")])
    given = [str(pool.take()) for _ in range(5)]
    assert given == [f"10.0.0.{n}" for n in range(2, 7)]
    with pytest.raises(errdefs.ResourceExhausted):
        pool.take()
    for last in (5, 3):
        pool.release(ipaddress.IPv4Address(f"10.0.0.{last}"))
        pool.release(ipaddress.IPv4Address(f"10.0.0.{last}"))
    assert [str(pool.take()), str(pool.take())] == ["10.0.0.3", "10.0.0.5"]
    with pytest.raises(errdefs.ResourceExhausted):
        pool.take()


def test_an_address_waits_until_its_link_is_gone() -> None:
    pool = ipam.AddressPool(NET("10.0.0.0/24"), reserved=[ipaddress.IPv4Address("10.0.0.1")])
    gone = False
    first = pool.take()
    pool.release(first, lambda: gone)
    assert str(pool.take()) == "10.0.0.3"
    gone = True
    assert pool.take() == first


def test_addresses_read_back_are_not_given() -> None:
    pool = ipam.AddressPool(NET("10.0.0.0/24"), within=NET("10.0.0.128/25"))
    pool.hold(ipaddress.IPv4Address("10.0.0.129"))
    assert [str(pool.take()), str(pool.take())] == ["10.0.0.128", "10.0.0.130"]


def test_the_first_pool_without_overlap_is_chosen() -> None:
    assert ipam.free_subnet(ipam.DEFAULT_POOLS, []) == NET("172.17.0.0/16")
    taken = [NET("172.17.3.0/24"), NET("172.16.0.0/12")]
    assert ipam.free_subnet(ipam.DEFAULT_POOLS, taken) == NET("192.168.0.0/20")
    with pytest.raises(errdefs.ResourceExhausted, match="fully subnetted"):
        ipam.free_subnet(ipam.DEFAULT_POOLS, [NET("0.0.0.0/0")])


def test_port_wishes_become_bindings_in_order() -> None:
    wishes = [
        PortRequest(81, "tcp"),
        PortRequest(80, "udp", "", 53),
        PortRequest(80, "tcp", "", 8000, 8010),
        PortRequest(80, "tcp", "::1", 9000),
        PortRequest(80, "tcp", "127.0.0.1", 9000),
    ]
    made = ports.groups(wishes, default_ip="0.0.0.0", ipv6=True)
    assert [(g.request.container_port, g.request.protocol, g.first, g.last, g.host_ips) for g in made] == [
        (80, "tcp", 9000, 9000, ("127.0.0.1", "::1")),
        (80, "udp", 53, 53, ("0.0.0.0", "::")),
        (80, "tcp", 8000, 8010, ("0.0.0.0", "::")),
        (81, "tcp", 0, 0, ("0.0.0.0", "::")),
    ]
    made = ports.groups(wishes, default_ip="10.0.0.1", ipv6=False)
    assert [g.host_ips for g in made] == [("127.0.0.1",), ("10.0.0.1",), ("10.0.0.1",), ("10.0.0.1",)]


def test_a_mapping_is_named_as_docker_names_it() -> None:
    (group,) = ports.groups([PortRequest(80, "tcp", "", 80, 82)], default_ip="0.0.0.0", ipv6=True)
    assert group.text("::", "172.17.0.2") == "[::]:80-82:172.17.0.2:80/tcp"
    (group,) = ports.groups([PortRequest(80, "tcp")], default_ip="0.0.0.0", ipv6=True)
    assert group.text("0.0.0.0", "172.17.0.2") == "0.0.0.0:172.17.0.2:80/tcp"


def test_settings_have_dockers_defaults() -> None:
    chosen = settings.read({"debug": True})
    assert chosen == settings.Settings()
    assert chosen.masquerade
    assert chosen.icc


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"bip": "nonsense"}, errdefs.InvalidArgument),
        ({"bip": "10.0.0.1/24", "bridge": "br0"}, errdefs.InvalidArgument),
        ({"bip": "10.0.0.1/24", "fixed-cidr": "10.1.0.0/24"}, errdefs.InvalidArgument),
        ({"mtu": -1}, errdefs.InvalidArgument),
        ({"icc": "yes"}, errdefs.InvalidArgument),
        ({"dns": ["x"]}, errdefs.InvalidArgument),
        ({"default-address-pools": [{"base": "10.0.0.0/16", "size": 8}]}, errdefs.InvalidArgument),
        ({"ipv6": True}, errdefs.NotImplementedHere),
        ({"userland-proxy-path": "/x"}, errdefs.NotImplementedHere),
    ],
)
def test_settings_that_are_wrong_are_refused(config: dict[str, object], kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"daemon\.json|bad nameserver"):
        settings.read(config)


def test_address_pools_are_read() -> None:
    chosen = settings.read({"default-address-pools": [{"base": "10.0.0.0/8", "size": 24}]})
    assert ipam.free_subnet(chosen.pools, [NET("10.0.0.0/24")]) == NET("10.0.1.0/24")


HOST_CONF = """\
# made by hand
domain old.example
search a.example b.example
nameserver 127.0.0.53
nameserver 10.1.1.1
nameserver 2001:db8::1
nameserver nonsense
options edns0
options ndots:2
sortlist 130.155.0.0
"""


def test_resolv_conf_leaves_out_what_does_not_answer() -> None:
    host = resolv.parse(HOST_CONF)
    assert resolv.container_conf(host).text() == (
        "nameserver 10.1.1.1\nsearch a.example b.example\noptions edns0 ndots:2\nsortlist 130.155.0.0\n"
    )
    assert resolv.container_conf(host, own_namespace=False).nameservers == [
        "127.0.0.53",
        "10.1.1.1",
        "2001:db8::1",
    ]


def test_resolv_conf_has_defaults_and_overrides() -> None:
    host = resolv.parse("nameserver 127.0.0.1\n")
    assert resolv.container_conf(host).text() == "nameserver 8.8.8.8\nnameserver 8.8.4.4\n"
    conf = resolv.container_conf(host, dns=["127.0.0.1"], search=["."], options=["ndots:3"])
    assert conf.text() == "nameserver 127.0.0.1\noptions ndots:3\n"


def test_hosts_are_dockers() -> None:
    extra = resolv.extra_hosts(["a:1.2.3.4", "six:::1", "gate:host-gateway"], ["172.17.0.1"])
    text = resolv.hosts_text(hostname="foo", domainname="bar.z", address="172.17.0.2", extra=extra)
    assert text == (
        "127.0.0.1\tlocalhost\n"
        "::1\tlocalhost ip6-localhost ip6-loopback\n"
        "fe00::\tip6-localnet\n"
        "ff00::\tip6-mcastprefix\n"
        "ff02::1\tip6-allnodes\n"
        "ff02::2\tip6-allrouters\n"
        "1.2.3.4\ta\n"
        "::1\tsix\n"
        "172.17.0.1\tgate\n"
        "172.17.0.2\tfoo.bar.z foo\n"
    )
    assert resolv.hosts_text(hostname="h", ipv6=False) == "127.0.0.1\tlocalhost\n"
    with pytest.raises(errdefs.InvalidArgument, match="host-gateway"):
        resolv.extra_hosts(["gate:host-gateway"], [])


def test_the_firewall_changes_by_elements() -> None:
    one = PortRule("tcp", "0.0.0.0", 8080, "172.17.0.2", 80)
    same_target = PortRule("tcp", "127.0.0.1", 8081, "172.17.0.2", 80)
    before, after = firewall.elements([one]), firewall.elements([one, same_target])
    # The target is open already, for the first port: only the new port's own element is added.
    assert firewall.change("t", before, after) == (
        "add element inet t published-address { 6 . 127.0.0.1 . 8081 : 172.17.0.2 . 80 }"
    )
    assert firewall.change("t", after, after) == ""
    assert firewall.change("t", after, firewall.elements([])).count("delete element") == 3
    text = firewall.render("t", [BridgeRules("br0", "10.0.0.0/24", "10.0.0.1", masquerade=False, icc=False)])
    assert "masquerade" not in re.sub(r'oifname "br0" ip saddr .* masquerade', "", text)
    assert 'iifname "br0" drop' in text

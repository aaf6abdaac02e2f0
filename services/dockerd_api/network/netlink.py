"""rtnetlink, packed by hand: the few messages that a container's attachment needs (rtnetlink(7)).

A general library costs a quarter of a second to import and a millisecond per call; these cost what the
kernel takes. Builders return one message as bytes; `Netlink.transact` sends several at once. A request that
fails raises OSError with the kernel's errno and, where it gives one, its own words.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

SOL_NETLINK = 270

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE = struct.Struct("=HH")

_REQUEST, _ACK, _EXCL, _CREATE, _REPLACE, _DUMP = 0x1, 0x4, 0x200, 0x400, 0x100, 0x300
_ERROR, _DONE = 2, 3
_NEWLINK, _DELLINK, _GETLINK, _SETLINK = 16, 17, 18, 19
_NEWADDR, _GETADDR, _NEWROUTE, _GETROUTE = 20, 22, 24, 26
_NESTED = 0x8000
_IFF_UP = 0x1
_NLM_F_CAPPED, _NLM_F_ACK_TLVS = 0x100, 0x200

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_PROTINFO = 1, 3, 4, 10, 12
_IFLA_LINKINFO, _IFLA_NET_NS_FD, _IFLA_TXQLEN = 18, 28, 13
_INFO_KIND, _INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_BRPORT_MODE, _BRPORT_ISOLATED = 4, 33
_RT_TABLE_MAIN, _RTPROT_BOOT, _RT_SCOPE_UNIVERSE, _RTN_UNICAST = 254, 3, 0, 1


@dataclass(frozen=True)
class Link:
    """One interface; `kind` is empty for hardware, `master` 0 for none, `address` the MAC's text."""

    index: int
    name: str
    kind: str
    master: int
    mtu: int
    up: bool
    address: str


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _message(kind: int, flags: int, body: bytes) -> bytes:
    # The sequence number is filled in when the message is sent.
    return _HEADER.pack(16 + len(body), kind, flags | _REQUEST | _ACK, 0, 0) + body


def mac_bytes(mac: str) -> bytes:
    """The six bytes of `02:42:…`."""
    return bytes.fromhex(mac.replace(":", ""))


def new_bridge(name: str, *, mac: str, mtu: int) -> bytes:
    """A bridge, down; EEXIST when an interface of that name exists."""
    return _message(
        _NEWLINK,
        _CREATE | _EXCL,
        _LINK.pack(0, 0, 0, 0, 0)
        + _text(_IFLA_IFNAME, name)
        + _attribute(_IFLA_ADDRESS, mac_bytes(mac))
        + _number(_IFLA_MTU, mtu)
        + _attribute(_IFLA_LINKINFO | _NESTED, _text(_INFO_KIND, "bridge")),
    )


def new_veth(name: str, *, master: int, mtu: int, peer: str, peer_netns: int, peer_mac: str) -> bytes:
    """A veth pair in one step: `name` here, up and in the bridge with index `master`; `peer`, down, in the
    namespace behind the descriptor `peer_netns`."""
    peer_link = (
        _LINK.pack(0, 0, 0, 0, 0)
        + _text(_IFLA_IFNAME, peer)
        + _number(_IFLA_MTU, mtu)
        + _attribute(_IFLA_ADDRESS, mac_bytes(peer_mac))
        + _number(_IFLA_NET_NS_FD, peer_netns)
    )
    kind = _text(_INFO_KIND, "veth")
    data = _attribute(_INFO_DATA | _NESTED, _attribute(_VETH_INFO_PEER | _NESTED, peer_link))
    return _message(
        _NEWLINK,
        _CREATE | _EXCL,
        _LINK.pack(0, 0, 0, _IFF_UP, _IFF_UP)
        + _text(_IFLA_IFNAME, name)
        + _number(_IFLA_MTU, mtu)
        + _number(_IFLA_MASTER, master)
        + _attribute(_IFLA_LINKINFO | _NESTED, kind + data),
    )


def set_link(
    index: int,
    *,
    name: str = "",
    up: bool | None = None,
    mtu: int = 0,
    mac: str = "",
    master: int | None = None,
) -> bytes:
    """Change the interface with `index`, or with `name` when `index` is 0; only what is given is changed."""
    flags = 0 if up is None else _IFF_UP
    body = _LINK.pack(0, 0, index, _IFF_UP if up else 0, flags)
    if name:
        body += _text(_IFLA_IFNAME, name)
    if mtu:
        body += _number(_IFLA_MTU, mtu)
    if mac:
        body += _attribute(_IFLA_ADDRESS, mac_bytes(mac))
    if master is not None:
        body += _number(_IFLA_MASTER, master)
    return _message(_NEWLINK, 0, body)


def set_port(index: int, *, hairpin: bool = False, isolated: bool = False) -> bytes:
    """Options of a bridge's port: `hairpin` lets a frame leave by the port it came in, `isolated` lets the
    port speak to the bridge itself only, not to other isolated ports (bridge(8))."""
    options = _attribute(_BRPORT_MODE, bytes([hairpin])) + _attribute(_BRPORT_ISOLATED, bytes([isolated]))
    return _message(
        _SETLINK,
        0,
        _LINK.pack(socket.AF_BRIDGE, 0, index, 0, 0) + _attribute(_IFLA_PROTINFO | _NESTED, options),
    )


def delete_link(name: str) -> bytes:
    """Remove an interface; ENODEV when there is none."""
    return _message(_DELLINK, 0, _LINK.pack(0, 0, 0, 0, 0) + _text(_IFLA_IFNAME, name))


def new_address(index: int, address: ipaddress.IPv4Interface) -> bytes:
    """Give an interface an address with its prefix and broadcast; the same one again is no error."""
    packed = address.ip.packed
    return _message(
        _NEWADDR,
        _CREATE | _REPLACE,
        _ADDRESS.pack(socket.AF_INET, address.network.prefixlen, 0, 0, index)
        + _attribute(2, packed)  # IFA_LOCAL
        + _attribute(1, packed)  # IFA_ADDRESS
        + _attribute(4, address.network.broadcast_address.packed),  # IFA_BROADCAST
    )


def default_route(index: int, gateway: ipaddress.IPv4Address) -> bytes:
    """The default route by `gateway` over the interface `index`."""
    return _message(
        _NEWROUTE,
        _CREATE | _REPLACE,
        _ROUTE.pack(
            socket.AF_INET, 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_BOOT, _RT_SCOPE_UNIVERSE, _RTN_UNICAST, 0
        )
        + _attribute(5, gateway.packed)  # RTA_GATEWAY
        + _number(4, index),  # RTA_OIF
    )


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(type, flags, sequence, body) of each message in a datagram."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < 16:
            return
        yield kind, flags, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def attributes(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    """(type without flags, value) of each attribute from `offset` on."""
    while offset + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


class Netlink:
    """A netlink socket, bound to the network namespace that it was opened in for all its life.

    Not for two threads at once: a request and its answers belong together.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.sock.settimeout(10)
        self._sequence = 0

    @classmethod
    def open(cls, protocol: int = socket.NETLINK_ROUTE) -> Netlink:
        """A new socket in the calling thread's network namespace."""
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        sock.setsockopt(SOL_NETLINK, 11, 1)  # NETLINK_EXT_ACK: the reason in words
        sock.setsockopt(SOL_NETLINK, 10, 1)  # NETLINK_CAP_ACK: errors without a copy of the request
        return cls(sock)

    def close(self) -> None:
        """Release the socket; a namespace that only it held goes away."""
        self.sock.close()

    def transact(self, *messages: bytes) -> None:
        """Send all messages in one call and wait for all answers; raises the first failure as OSError."""
        first = self._sequence + 1
        out = bytearray()
        for message in messages:
            self._sequence += 1
            stamped = bytearray(message)
            struct.pack_into("=I", stamped, 8, self._sequence)
            out += stamped
        self.sock.send(out)
        waiting = len(messages)
        failure: OSError | None = None
        while waiting:
            for kind, flags, sequence, body in self._receive():
                if kind == _ERROR and sequence >= first:
                    waiting -= 1
                    failure = failure or _failure(flags, body)
        if failure:
            raise failure

    def dump(self, kind: int, body: bytes, flags: int = _DUMP) -> list[bytes]:
        """Every answer's body to a dump request; one that the kernel cut short by a change is asked again."""
        for _ in range(8):
            try:
                return self._dump_once(kind, body, flags)
            except InterruptedError:
                continue
        raise OSError("the kernel's tables change too fast to be read")

    def _dump_once(self, kind: int, body: bytes, flags: int) -> list[bytes]:
        self._sequence += 1
        self.sock.send(_HEADER.pack(16 + len(body), kind, flags | _REQUEST, self._sequence, 0) + body)
        bodies: list[bytes] = []
        interrupted = False
        while True:
            for answer, answer_flags, sequence, data in self._receive():
                if sequence != self._sequence:
                    continue
                interrupted |= bool(answer_flags & 0x10)  # NLM_F_DUMP_INTR
                if answer == _DONE:
                    if interrupted:
                        raise InterruptedError
                    return bodies
                if answer == _ERROR:
                    failure = _failure(answer_flags, data)
                    if failure:
                        raise failure
                    return bodies
                bodies.append(data)

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        return messages(self.sock.recv(1 << 17))

    def links(self) -> list[Link]:
        """Every interface of the socket's namespace."""
        return [_link(body) for body in self.dump(_GETLINK, _LINK.pack(0, 0, 0, 0, 0))]

    def link(self, name: str) -> Link | None:
        """The interface with this name, or None."""
        return next((link for link in self.links() if link.name == name), None)

    def addresses(self) -> list[tuple[int, ipaddress.IPv4Interface]]:
        """(interface index, address) of every IPv4 address."""
        found = []
        for body in self.dump(_GETADDR, _ADDRESS.pack(socket.AF_INET, 0, 0, 0, 0)):
            _, prefix, _, _, index = _ADDRESS.unpack_from(body)
            given = dict(attributes(body, _ADDRESS.size))
            packed = given.get(2) or given[1]
            found.append((index, ipaddress.IPv4Interface((packed, prefix))))
        return found

    def routes(self) -> list[ipaddress.IPv4Network]:
        """The destinations of the main table's IPv4 routes, without default routes."""
        found = []
        request = _ROUTE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)
        for body in self.dump(_GETROUTE, request):
            _, prefix, _, _, table, _, _, _, _ = _ROUTE.unpack_from(body)
            destination = dict(attributes(body, _ROUTE.size)).get(1)
            if destination and prefix and table == _RT_TABLE_MAIN:
                found.append(ipaddress.IPv4Network((destination, prefix), strict=False))
        return found


def _link(body: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    given = dict(attributes(body, _LINK.size))
    info = dict(attributes(given.get(_IFLA_LINKINFO, b"")))
    return Link(
        index=index,
        name=given[_IFLA_IFNAME].rstrip(b"\0").decode(),
        kind=info.get(_INFO_KIND, b"").rstrip(b"\0").decode(),
        master=int.from_bytes(given.get(_IFLA_MASTER, b""), "little"),
        mtu=int.from_bytes(given.get(_IFLA_MTU, b""), "little"),
        up=bool(flags & _IFF_UP),
        address=given.get(_IFLA_ADDRESS, b"").hex(":"),
    )


def _failure(flags: int, body: bytes) -> OSError | None:
    errno = -int.from_bytes(body[:4], "little", signed=True)
    if not errno:
        return None
    words = os.strerror(errno)
    if flags & _NLM_F_ACK_TLVS:
        offset = 20 if flags & _NLM_F_CAPPED else 4 + int.from_bytes(body[4:8], "little")
        said = dict(attributes(body, offset)).get(1)  # NLMSGERR_ATTR_MSG
        if said:
            words = f"{words}: {said.rstrip(bytes(1)).decode(errors='replace')}"
    return OSError(errno, words)

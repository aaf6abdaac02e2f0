"""Deleting UDP's entries from the kernel's connection tracking, over ctnetlink packed by hand.

UDP has no end: an entry made before a port was published keeps its packets from the new rule, one made
while it was published keeps them on the old target, as long as packets flow. Numbers are from
linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable

from dockerd_api.network.netlink import Netlink, attributes

_NETLINK_NETFILTER = 12
_GENERIC = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_HEADER = struct.Struct("=IHHII")
_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_*
_NESTED = 0x8000
_TUPLE_ORIG, _TUPLE_REPLY, _ID = 1, 2, 12
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_IP_SOURCE, _IP_DESTINATION = 1, 2
_PROTO_NUMBER, _PROTO_DESTINATION_PORT = 1, 3


def forget_udp(targets: Iterable[tuple[str, int]]) -> int:
    """Delete every IPv4 UDP entry whose original destination is one of `targets` (address, port; 0.0.0.0
    stands for every address). Returns how many were deleted."""
    wanted = {(ipaddress.IPv4Address(address).packed, port) for address, port in targets}
    if not wanted:
        return 0
    every = {port for address, port in wanted if not any(address)}
    netlink = Netlink.open(_NETLINK_NETFILTER)
    try:
        family = _GENERIC.pack(socket.AF_INET, 0, 0)
        gone = 0
        for body in netlink.dump(_GET, family):
            given = dict(attributes(body, _GENERIC.size))
            original = given.get(_TUPLE_ORIG)
            if original is None:
                continue
            parts = dict(attributes(original))
            protocol = dict(attributes(parts.get(_TUPLE_PROTO, b"")))
            if protocol.get(_PROTO_NUMBER) != bytes([socket.IPPROTO_UDP]):
                continue
            port = int.from_bytes(protocol.get(_PROTO_DESTINATION_PORT, b""), "big")
            address = dict(attributes(parts.get(_TUPLE_IP, b""))).get(_IP_DESTINATION, b"")
            if port not in every and (address, port) not in wanted:
                continue
            # With the id the kernel deletes this entry only, not one that took its place meanwhile.
            request = family + _nested(_TUPLE_ORIG, original)
            if _ID in given:
                request += _ATTRIBUTE.pack(8, _ID) + given[_ID]
            with contextlib.suppress(FileNotFoundError):
                netlink.transact(_HEADER.pack(16 + len(request), _DELETE, 0x5, 0, 0) + request)
                gone += 1
        return gone
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.EINVAL):
            return 0  # a kernel without connection tracking has nothing to forget
        raise
    finally:
        netlink.close()


def _nested(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(value), kind | _NESTED) + value + b"\0" * (-len(value) % 4)

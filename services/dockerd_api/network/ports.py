"""Published ports: which are ours, and sockets that reserve them against everybody else on the host.

The texts of the errors are those of Docker 28. The listener of a port is bound before the kernel's rules
exist, since it tells the number and the error, and listens after, so that nobody is served too early.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import errdefs

from dockerd_api.network.model import AttachRequest, BoundPort, Endpoint, PortRequest

_ATTEMPTS = 10
_EPHEMERAL = (32768, 60999)
_SO_ATTACH_FILTER = 26
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


@dataclass(frozen=True)
class Group:
    """One wish, spread over the host addresses that must get the same number."""

    request: PortRequest
    host_ips: tuple[str, ...]

    @property
    def first(self) -> int:
        return self.request.host_port

    @property
    def last(self) -> int:
        return self.request.host_port_end or self.request.host_port

    def text(self, host_ip: str, container_ip: str) -> str:
        """`0.0.0.0:8080-8082:172.17.0.2:80/tcp`, as the error names a mapping."""
        parts = [f"[{host_ip}]" if ":" in host_ip else host_ip]
        if self.first:
            parts.append(f"{self.first}-{self.last}" if self.last != self.first else str(self.first))
        return ":".join([*parts, container_ip, f"{self.request.container_port}/{self.request.protocol}"])


def check(request: PortRequest) -> None:
    """Raises InvalidArgument for a wish that can never be met, NotImplementedHere for SCTP."""
    if request.protocol == "sctp":
        raise errdefs.NotImplementedHere("publishing SCTP ports is not supported")
    if request.protocol not in _KINDS:
        raise errdefs.InvalidArgument(f"invalid proto: {request.protocol}")
    if not 1 <= request.container_port <= 65535:
        raise errdefs.InvalidArgument(f"invalid container port: {request.container_port}")
    first, last = request.host_port, request.host_port_end
    if not 0 <= first <= 65535 or not 0 <= last <= 65535 or (last and (not first or last < first)):
        raise errdefs.InvalidArgument(f"invalid port range: {first}-{last}")
    if request.host_ip:
        _address(request.host_ip)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise errdefs.InvalidArgument(f"invalid IP address: {text}") from None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


def groups(requests: Iterable[PortRequest], *, default_ip: str, ipv6: bool) -> list[Group]:
    """The wishes with their host addresses filled in, exact ports first, in Docker's order.

    Without a host address a port is published on `default_ip`; when that is 0.0.0.0 and `ipv6` (a listener
    can serve it), on [::] too. Wishes that differ in nothing but the address share a number. A wish for an
    IPv6 address without `ipv6` is left out, as Docker does without its proxy.
    """
    together: dict[PortRequest, list[str]] = {}
    for request in requests:
        key = PortRequest(
            request.container_port,
            request.protocol,
            "",
            request.host_port,
            request.host_port_end or request.host_port,
        )
        ips = together.setdefault(key, [])
        if request.host_ip:
            wanted = [str(_address(request.host_ip))]
        else:
            wanted = ["0.0.0.0", "::"] if default_ip == "0.0.0.0" else [default_ip]
        ips.extend(ip for ip in wanted if ip not in ips and (ipv6 or ":" not in ip))

    def order(group: Group) -> tuple[bool, int, str, int, int]:
        exact = bool(group.first) and group.first == group.last
        return (
            not exact,
            group.request.container_port,
            group.request.protocol,
            group.first,
            group.last,
        )

    made = (Group(request, tuple(sorted(ips, key=_rank))) for request, ips in together.items() if ips)
    return sorted(made, key=order)


def _rank(text: str) -> tuple[int, int]:
    address = ipaddress.ip_address(text)
    return address.version, int(address)


def ephemeral_range() -> tuple[int, int]:
    """The host's range for ports that nobody chose (ip(7), ip_local_port_range)."""
    with contextlib.suppress(OSError, ValueError):
        first, last = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        return int(first), int(last)
    return _EPHEMERAL


def ipv6_listens() -> bool:
    """Whether this host can listen on IPv6 at all."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


class PortTable:
    """Who holds which port. In memory; rows in the database bring it back after a restart."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], set[str]] = {}  # (protocol, port) → host addresses
        self._cursor: dict[tuple[str, int, int], int] = {}

    def hold(self, ports: Iterable[BoundPort]) -> None:
        """Mark ports as held, as read back from the database."""
        for port in ports:
            self._held.setdefault((port.protocol, port.host_port), set()).add(port.host_ip)

    def release(self, ports: Iterable[BoundPort]) -> None:
        """Give ports back (idempotent)."""
        for port in ports:
            key = (port.protocol, port.host_port)
            ips = self._held.get(key)
            if ips is not None:
                ips.discard(port.host_ip)
                if not ips:
                    del self._held[key]

    def bind(
        self, wanted: Iterable[Group], container_ip: str, *, proxied: bool = True
    ) -> list[tuple[BoundPort, socket.socket]]:
        """Reserve a port for every wish and bind its sockets; all or nothing.

        Raises ResourceExhausted with Docker's text when a port is held by another container, by another
        program, or no free one is left. Without `proxied` the sockets only reserve: the kernel lets nothing
        through to them.
        """
        with contextlib.ExitStack() as undo:
            bound: list[tuple[BoundPort, socket.socket]] = []
            for group in wanted:
                for port, sock in self._bind_group(group, container_ip, proxied):
                    undo.callback(sock.close)
                    undo.callback(self.release, [port])
                    bound.append((port, sock))
            undo.pop_all()
        return bound

    def _bind_group(
        self, group: Group, container_ip: str, proxied: bool
    ) -> list[tuple[BoundPort, socket.socket]]:
        exact = group.first and group.first == group.last
        failure: errdefs.BuoyError | None = None
        for tried, number in enumerate(self._candidates(group)):
            if tried == _ATTEMPTS:
                break
            ports = [
                BoundPort(group.request.protocol, ip, number, group.request.container_port)
                for ip in group.host_ips
            ]
            socks: list[socket.socket] = []
            try:
                for port in ports:
                    socks.append(_bound(port, proxied))
            except OSError as error:
                for sock in socks:
                    sock.close()
                which = "host port" if exact else f"host port {number}"
                where = group.text(group.host_ips[len(socks)], container_ip)
                reason = os.strerror(error.errno or 0)
                failure = errdefs.ResourceExhausted(
                    f"failed to bind {which} for {where}: {reason[0].lower()}{reason[1:]}"
                )
                continue
            self.hold(ports)
            return list(zip(ports, socks, strict=True))
        raise failure or errdefs.ResourceExhausted("all ports are allocated")

    def _candidates(self, group: Group) -> Iterator[int]:
        """Numbers that no container holds, beginning behind the last one given from the same range."""
        protocol = group.request.protocol
        if group.first and group.first == group.last:
            for ip in group.host_ips:
                if self._clashes(protocol, group.first, ip):
                    raise errdefs.ResourceExhausted(
                        f"Bind for {ip}:{group.first} failed: port is already allocated"
                    )
            yield group.first
            return
        first, last = (group.first, group.last) if group.first else ephemeral_range()
        cursor = (protocol, first, last)
        start = self._cursor.get(cursor, first)
        span = last - first + 1
        for step in range(span):
            number = first + (start - first + step) % span
            if not any(self._clashes(protocol, number, ip) for ip in group.host_ips):
                self._cursor[cursor] = first + (number - first + 1) % span
                yield number

    def _clashes(self, protocol: str, number: int, ip: str) -> bool:
        held = self._held.get((protocol, number))
        if not held:
            return False
        whole = "::" if ":" in ip else "0.0.0.0"
        if ip == whole:
            return any((":" in other) == (":" in ip) for other in held)
        return ip in held or whole in held


def _bound(port: BoundPort, proxied: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in port.host_ip else socket.AF_INET
    sock = socket.socket(family, _KINDS[port.protocol] | socket.SOCK_CLOEXEC)
    try:
        if port.protocol == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        elif family == socket.AF_INET:
            # A proxy answers from the address that was asked (ip(7), IP_PKTINFO).
            sock.setsockopt(socket.IPPROTO_IP, 8, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if not proxied:
            _let_nothing_through(sock)
        sock.bind((port.host_ip, port.host_port))
    except BaseException:
        sock.close()
        raise
    return sock


def listen(listeners: Iterable[tuple[BoundPort, socket.socket]]) -> None:
    """Let the TCP sockets listen, now that the rules are there; ResourceExhausted when another came first."""
    for port, sock in listeners:
        if port.protocol == "tcp":
            try:
                sock.listen(4096)  # the kernel caps it at net.core.somaxconn
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                ip = f"[{port.host_ip}]" if ":" in port.host_ip else port.host_ip
                raise errdefs.ResourceExhausted(
                    f"failed to listen on TCP socket: address already in use ({ip}:{port.host_port})"
                ) from None


def _let_nothing_through(sock: socket.socket) -> None:
    """A socket filter of one instruction, `return 0`: every packet is dropped (socket(7))."""
    program = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))
    filters = struct.pack("@HP", 1, ctypes.addressof(program))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filters)


def on_endpoint(
    error: errdefs.BuoyError, request: AttachRequest, endpoint: Endpoint
) -> errdefs.ResourceExhausted:
    """The error of a port, as Docker tells it of the container's endpoint."""
    return errdefs.ResourceExhausted(
        f"driver failed programming external connectivity on endpoint {request.name} "
        f"({endpoint.endpoint_id}): {error.message}"
    )

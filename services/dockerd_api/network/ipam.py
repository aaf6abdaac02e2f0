"""IPv4 subnets and the addresses within: the lowest free address is given, as Docker's allocator does."""

from __future__ import annotations

import heapq
import ipaddress
from collections.abc import Callable, Iterable

import errdefs

DEFAULT_POOLS: tuple[tuple[str, int], ...] = (
    ("172.17.0.0/16", 16),
    ("172.18.0.0/16", 16),
    ("172.19.0.0/16", 16),
    ("172.20.0.0/14", 16),
    ("172.24.0.0/14", 16),
    ("172.28.0.0/14", 16),
    ("192.168.0.0/16", 20),
)


def free_subnet(
    pools: Iterable[tuple[str, int]], taken: Iterable[ipaddress.IPv4Network]
) -> ipaddress.IPv4Network:
    """The first subnet of the pools (base, size of each subnet) that overlaps nothing taken.

    Raises ResourceExhausted when every one does.
    """
    occupied = list(taken)
    for base, size in pools:
        for subnet in ipaddress.IPv4Network(base).subnets(new_prefix=size):
            if not any(subnet.overlaps(other) for other in occupied):
                return subnet
    raise errdefs.ResourceExhausted("all predefined address pools have been fully subnetted")


class AddressPool:
    """The addresses of one subnet. Kept in memory; the caller's database says which are held after a restart.

    An address that is given back may still be answered for by a namespace that the kernel has not taken
    apart yet: `release` takes a predicate that says when it is really free.
    """

    def __init__(
        self,
        subnet: ipaddress.IPv4Network,
        *,
        within: ipaddress.IPv4Network | None = None,
        reserved: Iterable[ipaddress.IPv4Address] = (),
    ) -> None:
        self.subnet = subnet
        whole = within or subnet
        self._next = int(whole.network_address)
        self._last = int(whole.broadcast_address)
        self._held: set[int] = {int(address) for address in reserved}
        if subnet.prefixlen < 31:
            self._held |= {int(subnet.network_address), int(subnet.broadcast_address)}
        self._returned: list[int] = []
        self._draining: dict[int, Callable[[], bool]] = {}

    def take(self) -> ipaddress.IPv4Address:
        """The lowest free address; ResourceExhausted when there is none."""
        self._drain()
        while self._returned:
            lowest = heapq.heappop(self._returned)
            if lowest not in self._held:
                self._held.add(lowest)
                return ipaddress.IPv4Address(lowest)
        while self._next <= self._last:
            candidate = self._next
            self._next += 1
            if candidate not in self._held and candidate not in self._draining:
                self._held.add(candidate)
                return ipaddress.IPv4Address(candidate)
        raise errdefs.ResourceExhausted("no available IPv4 addresses on this network's address pools")

    def hold(self, address: ipaddress.IPv4Address) -> None:
        """Mark an address as held, as read back from the database."""
        self._held.add(int(address))

    def release(self, address: ipaddress.IPv4Address, gone: Callable[[], bool] | None = None) -> None:
        """Give an address back (idempotent); it is given out again once `gone()` is true."""
        number = int(address)
        if number not in self._held:
            return
        self._held.discard(number)
        if gone is None:
            self._return(number)
        else:
            self._draining[number] = gone

    def _drain(self) -> None:
        for number in [n for n, gone in self._draining.items() if gone()]:
            del self._draining[number]
            self._return(number)

    def _return(self, number: int) -> None:
        if number < self._next:
            heapq.heappush(self._returned, number)

    def __contains__(self, address: ipaddress.IPv4Address) -> bool:
        return int(address) in self._held

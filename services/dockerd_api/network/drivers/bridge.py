"""The default bridge: its interface, its subnet, and the addresses of its endpoints.

`establish` makes the interface what it should be and touches nothing that already is. The subnet comes from
`bip`, from an interface that exists, from what was remembered, or from the first free pool, in this order.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
from pathlib import Path
from typing import Any

import errdefs

from dockerd_api.network import ipam, netlink
from dockerd_api.network.firewall import BridgeRules
from dockerd_api.network.model import AttachRequest, Endpoint
from dockerd_api.network.sandboxes import bridges_filter, link_gone, random_mac
from dockerd_api.network.settings import Settings
from dockerd_api.network.store import NetworkRow

log = logging.getLogger(__name__)

_OPTION = "com.docker.network.bridge."


def bridge_name(instance: str, settings: Settings) -> str:
    """The interface's name: the configured one, or the instance's."""
    if settings.bridge:
        return settings.bridge
    return f"buoy{instance}"[:15] if instance else "docker0"


class Bridge:
    """The driver of the network `bridge`."""

    name = "bridge"
    own_namespace = True
    bridged = True

    def __init__(self, instance: str, settings: Settings) -> None:
        self._settings = settings
        self.link = bridge_name(instance, settings)
        self.index = 0
        self.gateway = ipaddress.IPv4Interface("0.0.0.0/0")
        self._pool: ipam.AddressPool | None = None

    @property
    def default_route(self) -> ipaddress.IPv4Address:
        """Where containers send what is not for the bridge."""
        return self._settings.default_gateway or self.gateway.ip

    @property
    def rules(self) -> BridgeRules:
        """The bridge's share of the firewall."""
        return BridgeRules(
            name=self.link,
            subnet=str(self.gateway.network),
            gateway=str(self.gateway.ip),
            masquerade=self._settings.masquerade,
            icc=self._settings.icc,
        )

    def establish(self, remembered: dict[str, Any], *, in_use: bool) -> dict[str, Any]:
        """Make or adopt the interface. Blocks. Returns what to remember.

        With endpoints `in_use` the remembered subnet is kept: a new `bip` waits until none is left. Raises
        FailedPrecondition for a configured bridge that does not exist or has no address.
        """
        kernel = netlink.Netlink.open()
        try:
            link = kernel.link(self.link)
            addresses = [a for i, a in kernel.addresses() if link is not None and i == link.index]
            if link is None and self._settings.bridge:
                raise errdefs.FailedPrecondition(f"bridge device {self.link} does not exist")
            if link is not None and link.kind != "bridge":
                raise errdefs.FailedPrecondition(f"existing interface {self.link} is not a bridge")
            self.gateway = self._choose(kernel, addresses, remembered, in_use)
            if link is None:
                with contextlib.suppress(FileExistsError):
                    kernel.transact(netlink.new_bridge(self.link, mac=random_mac(), mtu=self._settings.mtu))
                link = kernel.link(self.link)
                if link is None:
                    raise errdefs.Internal(f"bridge {self.link} vanished while it was made")
            self.index = link.index
            self._sysctl(f"ipv6/conf/{self.link}/accept_ra", "0")
            if self.gateway not in addresses:
                kernel.transact(netlink.new_address(link.index, self.gateway))
            mtu = (
                0 if self._settings.bridge else self._settings.mtu
            )  # an administrator's bridge keeps its own
            if not link.up or mtu not in (0, link.mtu):
                kernel.transact(netlink.set_link(link.index, up=True, mtu=mtu))
            self._sysctl(f"ipv4/conf/{self.link}/route_localnet", "1")
        except OSError as error:
            raise errdefs.Internal(f"bridge {self.link}: {error.strerror}") from None
        finally:
            kernel.close()
        reserved = [self.gateway.ip, self.default_route]
        self._pool = ipam.AddressPool(
            self.gateway.network, within=self._settings.fixed_cidr, reserved=reserved
        )
        return {"gateway": str(self.gateway)}

    def _choose(
        self,
        kernel: netlink.Netlink,
        present: list[ipaddress.IPv4Interface],
        remembered: dict[str, Any],
        in_use: bool,
    ) -> ipaddress.IPv4Interface:
        known = ipaddress.IPv4Interface(remembered["gateway"]) if remembered else None
        wanted = self._settings.bip
        if known is not None and in_use:
            if wanted is not None and wanted != known:
                log.warning("bip %s waits: containers are attached to %s", wanted, known)
            return self._checked(known)
        if wanted is not None:
            return self._checked(wanted)
        if present:
            return self._checked(present[0])
        if self._settings.bridge:
            raise errdefs.FailedPrecondition(f"bridge device {self.link} has no IPv4 address")
        taken = [*kernel.routes(), *(a.network for _, a in kernel.addresses())]
        fixed = self._settings.fixed_cidr
        fits = known is not None and (fixed is None or fixed.subnet_of(known.network))
        if known is not None and fits and not any(known.network.overlaps(other) for other in taken):
            return known
        if fixed is not None:
            return ipaddress.IPv4Interface((fixed.network_address + 1, fixed.prefixlen))
        subnet = ipam.free_subnet(self._settings.pools, taken)
        return ipaddress.IPv4Interface((subnet.network_address + 1, subnet.prefixlen))

    def _checked(self, gateway: ipaddress.IPv4Interface) -> ipaddress.IPv4Interface:
        fixed, route = self._settings.fixed_cidr, self._settings.default_gateway
        if fixed is not None and not fixed.subnet_of(gateway.network):
            raise errdefs.FailedPrecondition(f"fixed-cidr {fixed} is not within {gateway.network}")
        if route is not None and route not in gateway.network:
            raise errdefs.FailedPrecondition(f"default-gateway {route} is not within {gateway.network}")
        return gateway

    @staticmethod
    def _sysctl(key: str, value: str) -> None:
        path = Path("/proc/sys/net") / key
        with contextlib.suppress(FileNotFoundError):
            if path.read_text().strip() != value:
                path.write_text(value)

    def rejoin(self, links: list[str]) -> list[str]:
        """Put links of running containers back into the bridge when it was made anew. Blocks. Returns those
        that had to be."""
        kernel = netlink.Netlink.open()
        try:
            lost = [link for link in kernel.links() if link.name in set(links) and link.master != self.index]
            for link in lost:
                kernel.transact(netlink.set_link(link.index, up=True, master=self.index))
                kernel.transact(
                    netlink.set_port(link.index, hairpin=bridges_filter(), isolated=not self._settings.icc)
                )
            return [link.name for link in lost]
        finally:
            kernel.close()

    def remove(self) -> None:
        """Delete the interface, unless it is the administrator's own (idempotent). Blocks."""
        if not self._settings.bridge:
            remove_link(self.link)

    # The three verbs.

    def validate(self, request: AttachRequest) -> None:
        """A container cannot choose its address on the default bridge."""
        if request.ipv4_address:
            raise errdefs.InvalidArgument(
                "invalid config for network bridge: invalid endpoint settings:\n"
                "user specified IP address is supported on user defined networks only\n"
                "user specified IP address is supported only when connecting to networks with user "
                "configured subnets"
            )

    def setup(self, request: AttachRequest, row: NetworkRow, endpoint_id: str, mac: str) -> Endpoint:
        """Reserve the lowest free address; ResourceExhausted when there is none."""
        address = self._addresses().take()
        return Endpoint(
            row.id,
            row.name,
            endpoint_id,
            gateway=str(self.default_route),
            ip_address=str(address),
            prefix_len=self.gateway.network.prefixlen,
            mac_address=mac,
        )

    def teardown(self, endpoint: Endpoint, link: str) -> None:
        """Give the address back; it is given out again once the kernel has taken the link apart."""
        self._addresses().release(
            ipaddress.IPv4Address(endpoint.ip_address), (lambda: link_gone(link)) if link else None
        )

    def hold(self, endpoint: Endpoint) -> None:
        """Mark the address of an endpoint read back from the database."""
        self._addresses().hold(ipaddress.IPv4Address(endpoint.ip_address))

    def _addresses(self) -> ipam.AddressPool:
        if self._pool is None:
            raise errdefs.NotFound("network bridge not found")
        return self._pool

    def inspect(self, row: NetworkRow) -> dict[str, Any]:
        """IPAM and options as the API shows them."""
        config = {"Subnet": str(self.gateway.network), "Gateway": str(self.gateway.ip)}
        if self._settings.fixed_cidr is not None:
            config["IPRange"] = str(self._settings.fixed_cidr)
        return {
            "EnableIPv4": True,
            "IPAM": {"Driver": "default", "Options": None, "Config": [config]},
            "Options": {
                f"{_OPTION}default_bridge": "true",
                f"{_OPTION}enable_icc": str(self._settings.icc).lower(),
                f"{_OPTION}enable_ip_masquerade": str(self._settings.masquerade).lower(),
                f"{_OPTION}host_binding_ipv4": self._settings.default_ip,
                f"{_OPTION}name": self.link,
                "com.docker.network.driver.mtu": str(self._settings.mtu),
            },
        }


def remove_link(name: str) -> None:
    """Delete an interface (idempotent). Blocks."""
    kernel = netlink.Netlink.open()
    try:
        kernel.transact(netlink.delete_link(name))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise errdefs.Internal(f"{name}: {error.strerror}") from None
    finally:
        kernel.close()


def enable_forwarding(memory: Path) -> None:
    """Let the host route between the bridge and the world; `memory` keeps what was set before."""
    switch = Path("/proc/sys/net/ipv4/ip_forward")
    before = switch.read_text().strip()
    if before == "1":
        return
    if not memory.exists():
        memory.write_text(before + "\n")
        os.chmod(memory, 0o600)
    switch.write_text("1")


def restore_forwarding(memory: Path) -> None:
    """Set forwarding to what `memory` kept (nothing kept: nothing done), unless another bridge needs it."""
    try:
        before = memory.read_text().strip()
    except FileNotFoundError:
        return
    kernel = netlink.Netlink.open()
    try:
        others = any(link.kind == "bridge" for link in kernel.links())
    finally:
        kernel.close()
    if not others:
        Path("/proc/sys/net/ipv4/ip_forward").write_text(before)
    memory.unlink()

"""The one nftables table that is ours: NAT, published ports as map elements, isolation from outside.

Rules are few and fixed per bridge; what comes and goes with containers are elements of two maps and a set,
so that a lookup costs the same with one port published or thousands, and a change is one small transaction.

At start the table is compared with what it should be and left alone when equal. nft prints rules in its own
words, so the printed form is remembered right after the table was made (`Firewall.listing`) and compared
with the next one's; the elements are compared one by one.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import errdefs

from dockerd_api.network.nft import Nft

FAMILY = "inet"
_ANY = "published-any"
_ADDRESS = "published-address"
_OPEN = "open"
# Protocols by number: names need /etc/protocols, which a small system may lack.
PROTOCOLS = {"tcp": "6", "udp": "17"}
_EITHER = "{ 6, 17 }"


@dataclass(frozen=True)
class BridgeRules:
    """One bridge in the table: its interface, IPv4 subnet and own address, what its options ask for."""

    name: str
    subnet: str
    gateway: str
    masquerade: bool = True
    icc: bool = True


@dataclass(frozen=True)
class PortRule:
    """One published IPv4 port: `host_ip` 0.0.0.0 means every local address."""

    protocol: str
    host_ip: str
    host_port: int
    container_ip: str
    container_port: int


Elements = dict[str, dict[str, str]]  # object → key → value ("" in the set)


def elements(ports: Iterable[PortRule]) -> Elements:
    """The elements of each map and set for these ports, in nft's words."""
    wanted: Elements = {_ANY: {}, _ADDRESS: {}, _OPEN: {}}
    for port in ports:
        target = f"{port.container_ip} . {port.container_port}"
        protocol = PROTOCOLS[port.protocol]
        if port.host_ip == "0.0.0.0":
            wanted[_ANY][f"{protocol} . {port.host_port}"] = target
        else:
            wanted[_ADDRESS][f"{protocol} . {port.host_ip} . {port.host_port}"] = target
        wanted[_OPEN][f"{protocol} . {target}"] = ""
    return wanted


def change(table: str, old: Elements, new: Elements) -> str:
    """The commands that turn the elements `old` into `new`; empty when they are the same."""
    lines = []
    for name in (_ANY, _ADDRESS, _OPEN):
        gone = [key for key, value in old[name].items() if new[name].get(key) != value]
        come = [key for key, value in new[name].items() if old[name].get(key) != value]
        if gone:
            lines.append(f"delete element {FAMILY} {table} {name} {{ {', '.join(gone)} }}")
        if come:
            full = (f"{key} : {new[name][key]}" if new[name][key] else key for key in come)
            lines.append(f"add element {FAMILY} {table} {name} {{ {', '.join(full)} }}")
    return "\n".join(lines)


def render(table: str, bridges: Iterable[BridgeRules]) -> str:
    """The whole table without elements, as nft's text."""
    raw, pre, post, forward, chains = [], [], [], [], []
    for bridge in bridges:
        name, subnet = f'"{bridge.name}"', bridge.subnet
        # route_localnet on the bridge lets the host's 127.0.0.1 be translated; nobody behind the bridge may
        # use it to reach the host's loopback.
        raw.append(f"iifname {name} ip daddr 127.0.0.0/8 drop")
        # Nobody outside reaches a container by its own address, whatever routes they set.
        raw.append(f"iifname != {name} ip daddr {subnet} ip daddr != {bridge.gateway} drop")
        post.append(f"oifname {name} ip saddr 127.0.0.0/8 masquerade")
        # A container that calls a published port by a host address: the answer must come back this way.
        post.append(f"oifname {name} ip saddr {subnet} ct status dnat masquerade")
        if not bridge.icc:
            # Ports are isolated from one another: a container reaches a published port by its listener.
            pre.append(f"iifname {name} return")
        if bridge.masquerade:
            post.append(f"oifname != {name} ip saddr {subnet} masquerade")
        forward.append(f"oifname {name} jump to-{bridge.name}")
        between = "accept" if bridge.icc else "drop"
        chains.append(
            f"""chain to-{bridge.name} {{
  ct state established,related accept
  meta l4proto {_EITHER} meta l4proto . ip daddr . th dport @{_OPEN} accept
  iifname {name} {between}
  drop
}}"""
        )

    def lines(rules: list[str]) -> str:
        return "\n".join(f"  {rule}" for rule in rules)

    return f"""table {FAMILY} {table} {{
map {_ANY} {{
  type inet_proto . inet_service : ipv4_addr . inet_service
}}
map {_ADDRESS} {{
  type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service
}}
set {_OPEN} {{
  type inet_proto . ipv4_addr . inet_service
}}
chain raw-prerouting {{
  type filter hook prerouting priority -300; policy accept;
{lines(raw)}
}}
chain published {{
  meta l4proto {_EITHER} dnat ip to meta l4proto . ip daddr . th dport map @{_ADDRESS}
  meta l4proto {_EITHER} dnat ip to meta l4proto . th dport map @{_ANY}
}}
chain nat-prerouting {{
  type nat hook prerouting priority -100; policy accept;
  ip daddr 127.0.0.0/8 return
{lines(pre)}
  meta nfproto ipv4 fib daddr type local jump published
}}
chain nat-output {{
  type nat hook output priority -100; policy accept;
  meta nfproto ipv4 fib daddr type local jump published
}}
chain nat-postrouting {{
  type nat hook postrouting priority 100; policy accept;
{lines(post)}
}}
{chr(10).join(chains)}
chain forward {{
  type filter hook forward priority 0; policy accept;
{lines(forward)}
}}
}}
"""


def table_name(instance: str) -> str:
    """The nftables table of an instance."""
    return f"buoy_{instance}" if instance else "buoy"


class Firewall:
    """Our table and what it should hold. Calls block for a fraction of a millisecond and are made from one
    thread; every change that fails ends in the whole table being compared and mended."""

    def __init__(self, table: str) -> None:
        self.table = table
        self._nft = Nft()
        self._bridges: tuple[BridgeRules, ...] = ()
        self._ports: set[PortRule] = set()
        self._wanted = elements(())
        self.listing = ""

    def close(self) -> None:
        """Free libnftables' context; the table stays."""
        self._nft.close()

    def reconcile(self, bridges: Iterable[BridgeRules], ports: Iterable[PortRule], known: str) -> bool:
        """Make the kernel's table what it should be; `known` is `listing` as it was remembered.

        Returns whether anything was changed. A table that is already right is not touched.
        """
        self._bridges = tuple(bridges)
        self._ports = set(ports)
        self._wanted = elements(self._ports)
        self.listing = known
        return self._mend()

    def check(self) -> bool:
        """Mend the table when somebody changed it; returns whether anything had to be."""
        return self._mend()

    def publish(self, ports: Iterable[PortRule]) -> None:
        """Add ports, in one transaction; those that are there already are no error."""
        self._become(self._ports | set(ports))

    def withdraw(self, ports: Iterable[PortRule]) -> None:
        """Remove ports, in one transaction; those that are not there are no error."""
        self._become(self._ports - set(ports))

    def _become(self, ports: set[PortRule]) -> None:
        wanted = elements(ports)
        commands = change(self.table, self._wanted, wanted)
        self._ports, before, self._wanted = ports, self._wanted, wanted
        if not commands:
            return
        try:
            self._nft.run(commands)
        except errdefs.Internal:
            # Somebody flushed the ruleset or changed our table: bring back the whole.
            try:
                self._mend()
            except errdefs.Internal:
                self._wanted = before
                raise

    def _mend(self) -> bool:
        fixed = render(self.table, self._bridges)
        live = self._live()
        if live is not None:
            listing, present = live
            if self.listing == _remembered(fixed, listing):
                commands = change(self.table, present, self._wanted)
                if commands:
                    self._nft.run(commands)
                return bool(commands)
        # One transaction: at no moment is the host without the rules.
        full = change(self.table, elements(()), self._wanted)
        self._nft.run(f"add table {FAMILY} {self.table}\ndelete table {FAMILY} {self.table}\n{fixed}{full}")
        made = self._live()
        self.listing = _remembered(fixed, made[0]) if made else ""
        return True

    def _live(self) -> tuple[str, Elements] | None:
        """The kernel's table: its fixed part as text without handles, and its elements. None without one."""
        if (FAMILY, self.table) not in self._nft.tables():
            return None
        fixed: list[dict[str, Any]] = []
        present = elements(())
        for one in self._nft.list(f"table {FAMILY} {self.table}"):
            ((kind, body),) = one.items()
            body = {key: value for key, value in body.items() if key not in ("handle", "elem")}
            fixed.append({kind: body})
            if kind in ("map", "set") and body["name"] in present:
                ((_, whole),) = one.items()
                present[body["name"]] = dict(_element(e) for e in whole.get("elem", []))
        return json.dumps(fixed, sort_keys=True), present

    def purge(self) -> None:
        """Remove the table (idempotent)."""
        if (FAMILY, self.table) in self._nft.tables():
            with contextlib.suppress(errdefs.Internal):
                self._nft.run(f"delete table {FAMILY} {self.table}")

    def foreign_drops(self) -> list[str]:
        """Other tables' chains that drop forwarded packets by policy: an accept of ours does not override
        them. Named as `family table chain`."""
        found = []
        for one in self._nft.list("chains"):
            chain = one.get("chain")
            if (
                chain
                and chain.get("hook") == "forward"
                and chain.get("policy") == "drop"
                and chain["family"] in ("ip", "inet")
                and chain["table"] != self.table
            ):
                found.append(f"{chain['family']} {chain['table']} {chain['name']}")
        return found


def _remembered(fixed: str, listing: str) -> str:
    """What is kept of a table that was made: what we asked for, and how nft prints it."""
    return json.dumps([fixed, listing])


def _element(element: Any) -> tuple[str, str]:
    if isinstance(element, list):  # of a map: [key, value]
        return _words(element[0]), _words(element[1])
    return _words(element), ""


def _words(value: Any) -> str:
    parts = value["concat"] if isinstance(value, dict) else [value]
    return " . ".join(PROTOCOLS.get(part, str(part)) for part in parts)

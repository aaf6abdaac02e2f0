"""The keys of daemon.json that concern the network, with Docker's names and defaults, checked at the door."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import errdefs

from dockerd_api.network import ipam, resolv

_REFUSED = {
    "ipv6": "IPv6 on the default bridge",
    "fixed-cidr-v6": "IPv6 on the default bridge",
    "bip6": "IPv6 on the default bridge",
    "default-gateway-v6": "IPv6 on the default bridge",
    "default-network-opts": "options for user-defined networks",
    "userland-proxy-path": "another proxy program",
    "allow-direct-routing": "direct routing to containers",
}


@dataclass(frozen=True)
class Settings:
    """`bridge` empty means our own; `none` no default bridge at all."""

    bridge: str = ""
    bip: ipaddress.IPv4Interface | None = None
    fixed_cidr: ipaddress.IPv4Network | None = None
    default_gateway: ipaddress.IPv4Address | None = None
    mtu: int = 1500
    pools: tuple[tuple[str, int], ...] = ipam.DEFAULT_POOLS
    default_ip: str = "0.0.0.0"
    ip_forward: bool = True
    masquerade: bool = True
    icc: bool = True
    userland_proxy: bool = True
    firewall: bool = True
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    host_gateways: tuple[str, ...] = ()
    resolv_conf: str = ""


def read(config: Mapping[str, object]) -> Settings:
    """The settings in a daemon.json; other keys are not looked at.

    Raises InvalidArgument for a value that is wrong, NotImplementedHere for one that is not built.
    """
    for key, what in _REFUSED.items():
        if config.get(key):
            raise errdefs.NotImplementedHere(f"daemon.json: {key}: {what} is not supported")
    if config.get("firewall-backend") not in (None, "", "nftables"):
        raise errdefs.NotImplementedHere("daemon.json: firewall-backend: only nftables is supported")
    bip = _parsed(config, "bip", ipaddress.IPv4Interface)
    fixed = _parsed(config, "fixed-cidr", ipaddress.IPv4Network)
    gateway = _parsed(config, "default-gateway", ipaddress.IPv4Address)
    default_ip = _parsed(config, "ip", ipaddress.ip_address)
    bridge = _text(config, "bridge")
    if bip is not None and bridge:
        raise errdefs.InvalidArgument("daemon.json: bridge and bip cannot be given together")
    if bip is not None and fixed is not None and not fixed.subnet_of(bip.network):
        raise errdefs.InvalidArgument(f"daemon.json: fixed-cidr {fixed} is not within {bip.network}")
    mtu = config.get("mtu") or 1500
    if not isinstance(mtu, int) or isinstance(mtu, bool) or not 68 <= mtu <= 65535:
        raise errdefs.InvalidArgument(f"daemon.json: invalid default MTU value: {mtu}")
    gateways = _texts(config, "host-gateway-ips") or tuple(filter(None, (_text(config, "host-gateway-ip"),)))
    for one in gateways:
        _parse("host-gateway-ips", one, ipaddress.ip_address)
    resolv.check_servers(_texts(config, "dns"))
    return Settings(
        bridge=bridge,
        bip=bip,
        fixed_cidr=fixed,
        default_gateway=gateway,
        mtu=mtu,
        pools=_pools(config.get("default-address-pools")),
        default_ip=str(default_ip) if default_ip else "0.0.0.0",
        ip_forward=_flag(config, "ip-forward"),
        masquerade=_flag(config, "ip-masq"),
        icc=_flag(config, "icc"),
        userland_proxy=_flag(config, "userland-proxy"),
        firewall=_flag(config, "iptables"),
        dns=_texts(config, "dns"),
        dns_search=_texts(config, "dns-search"),
        dns_options=_texts(config, "dns-opts"),
        host_gateways=gateways,
        resolv_conf=_text(config, "resolv-conf"),
    )


def _flag(config: Mapping[str, object], key: str, default: bool = True) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise errdefs.InvalidArgument(f"daemon.json: {key} must be true or false")
    return value


def _text(config: Mapping[str, object], key: str) -> str:
    value = config.get(key) or ""
    if not isinstance(value, str):
        raise errdefs.InvalidArgument(f"daemon.json: {key} must be a string")
    return value


def _texts(config: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = config.get(key) or []
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise errdefs.InvalidArgument(f"daemon.json: {key} must be a list of strings")
    return tuple(value)


def _parsed(config: Mapping[str, object], key: str, parser: Any) -> Any:
    text = _text(config, key)
    return _parse(key, text, parser) if text else None


def _parse(key: str, text: str, parser: Any) -> Any:
    try:
        return parser(text)
    except ValueError as error:
        raise errdefs.InvalidArgument(f"daemon.json: {key}: {error}") from None


def _pools(value: object) -> tuple[tuple[str, int], ...]:
    if not value:
        return ipam.DEFAULT_POOLS
    if not isinstance(value, list):
        raise errdefs.InvalidArgument("daemon.json: default-address-pools must be a list")
    pools = []
    for one in value:
        if not isinstance(one, dict) or not isinstance(one.get("size"), int):
            raise errdefs.InvalidArgument(
                "daemon.json: default-address-pools needs base and size in each entry"
            )
        base = _parse("default-address-pools", str(one.get("base")), ipaddress.ip_network)
        if base.version != 4:
            raise errdefs.NotImplementedHere("daemon.json: default-address-pools: IPv6 is not supported")
        if not base.prefixlen <= one["size"] <= 30:
            raise errdefs.InvalidArgument(
                f"daemon.json: default-address-pools: size {one['size']} does not fit {base}"
            )
        pools.append((str(base), one["size"]))
    return tuple(pools)

"""Published and exposed ports, from the API's documents to what the network room takes."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Any

import errdefs

from dockerd_api.engine import options

_PROTOCOLS = ("tcp", "udp", "sctp")


def split(key: str) -> tuple[str, str]:
    """The port and protocol of a key such as "80/tcp" or "80"."""
    port, _, protocol = key.partition("/")
    return port, (protocol or "tcp").lower()


def parse_range(text: str) -> tuple[int, int]:
    """First and last port of "80" or "80-90"; InvalidArgument with Docker's text."""
    first, dash, last = text.partition("-")
    bounds = (first, last if dash else first)
    if not all(re.fullmatch(r"[0-9]{1,5}", bound) and int(bound) < 65536 for bound in bounds):
        raise errdefs.InvalidArgument(f'invalid port specification: "{text}"')
    low, high = int(bounds[0]), int(bounds[1])
    if low > high:
        raise errdefs.InvalidArgument(f'invalid port specification: "{text}"')
    return low, high


def exposed(keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The keys of ExposedPorts in their full form, ranges unrolled."""
    found: dict[str, dict[str, Any]] = {}
    for key in keys:
        port, protocol = split(key)
        low, high = parse_range(port)
        _check_protocol(protocol, key)
        found.update({f"{number}/{protocol}": {} for number in range(low, high + 1)})
    return found


def bindings(document: Mapping[str, Any] | None) -> dict[str, list[dict[str, str]]]:
    """PortBindings checked: {"80/tcp": [{"HostIp", "HostPort"}]}."""
    checked: dict[str, list[dict[str, str]]] = {}
    for key, value in (document or {}).items():
        port, protocol = split(key)
        low, high = parse_range(port)
        if low != high or low == 0:
            raise errdefs.InvalidArgument(f'invalid port specification: "{port}"')
        _check_protocol(protocol, key)
        if not isinstance(value, list | None):
            raise errdefs.InvalidArgument(
                "invalid JSON: json: cannot unmarshal into Go struct field "
                "HostConfig.HostConfig.PortBindings of type []nat.PortBinding"
            )
        entries = options.decode_list(value, options.PORT_BINDING, "HostConfig.PortBindings")
        for entry in entries:
            if entry["HostPort"]:
                parse_range(entry["HostPort"])
            if entry["HostIp"]:
                try:
                    ipaddress.ip_address(entry["HostIp"].strip("[]"))
                except ValueError:
                    raise errdefs.InvalidArgument(f"invalid host IP address: {entry['HostIp']}") from None
        checked[f"{low}/{protocol}"] = entries or [{"HostIp": "", "HostPort": ""}]
    return checked


def requests(config: Mapping[str, Any], host_config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is to be published, as the fields of a PortRequest (0: any host port)."""
    wanted: list[dict[str, Any]] = []
    bound = host_config.get("PortBindings") or {}
    for key, entries in bound.items():
        port, protocol = split(key)
        for entry in entries:
            low, high = parse_range(entry["HostPort"]) if entry["HostPort"] else (0, 0)
            wanted.append(_request(int(port), protocol, entry["HostIp"].strip("[]"), low, high))
    if host_config.get("PublishAllPorts"):
        for key in config.get("ExposedPorts") or {}:
            if key not in bound:
                port, protocol = split(key)
                wanted.append(_request(int(port), protocol, "", 0, 0))
    return wanted


def _request(port: int, protocol: str, host_ip: str, low: int, high: int) -> dict[str, Any]:
    return {
        "container_port": port,
        "protocol": protocol,
        "host_ip": host_ip,
        "host_port": low,
        "host_port_end": high,
    }


def _check_protocol(protocol: str, key: str) -> None:
    if protocol not in _PROTOCOLS:
        raise errdefs.InvalidArgument(f'invalid port "{key}": unknown protocol {protocol}')

"""Which proxy a request goes through: HTTP_PROXY, HTTPS_PROXY, NO_PROXY as Go's clients read them."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Proxies:
    """Addresses of proxies, empty for none; `bypass`: hosts, domains, networks that are reached directly."""

    http: str = ""
    https: str = ""
    bypass: tuple[str, ...] = ()

    @classmethod
    def of(cls, environment: Mapping[str, str], given: Mapping[str, str] | None = None) -> Proxies:
        """What the environment says, capitals first as in Go, where daemon.json's keys (`http-proxy`,
        `https-proxy`, `no-proxy`) are not `given`.
        """

        def value(name: str) -> str:
            key = name.lower().replace("_", "-")
            return (given or {}).get(key) or environment.get(name) or environment.get(name.lower()) or ""

        bypass = tuple(each.strip().lower() for each in value("NO_PROXY").split(",") if each.strip())
        return cls(_url(value("HTTP_PROXY")), _url(value("HTTPS_PROXY")), bypass)

    def proxy_for(self, url: str) -> str:
        """The proxy's URL for an address, or nothing for one that is reached directly; loopback always is."""
        parts = urlsplit(url)
        proxy = self.https if parts.scheme == "https" else self.http
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if not proxy or self._is_direct((parts.hostname or "").rstrip("."), port):
            return ""
        return proxy

    def _is_direct(self, host: str, port: int) -> bool:
        address = _address(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            return True
        return any(each == "*" or _covers(each, host, address, port) for each in self.bypass)


def _covers(entry: str, host: str, address: _Address | None, port: int) -> bool:
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name, colon, wanted = entry.rpartition(":")
    if colon and wanted.isdigit() and ":" not in name.strip("[]").replace("]", ""):
        if int(wanted) != port:
            return False
        entry = name
    entry = entry.strip("[]")
    if address is not None:
        return _address(entry) == address
    if entry.startswith("*."):
        entry = entry[1:]
    if entry.startswith("."):
        return host.endswith(entry)
    return host == entry or host.endswith(f".{entry}")


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _address(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _url(value: str) -> str:
    return value if not value or "://" in value else f"http://{value}"

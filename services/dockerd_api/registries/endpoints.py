"""The places where a registry answers, and who stands between us and them (moby registry/service_v2.go)."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from dockerd_api.registries.settings import (
    HUB,
    HUB_INDEX,
    HUB_REGISTRY,
    NO_CERTIFICATES,
    Certificates,
    Registries,
)


@dataclass(frozen=True)
class Endpoint:
    """One place to ask; `url` has no slash at its end. An insecure one's certificate is not checked."""

    url: str
    insecure: bool = False
    certificates: Certificates = NO_CERTIFICATES
    mirror: bool = False

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc


async def endpoints(registries: Registries, host: str, *, mirrors: bool) -> list[Endpoint]:
    """In the order in which they are asked: mirrors, where they are wanted, before the registry itself, and
    TLS before plain HTTP, which is tried for an insecure one only. Raises InvalidArgument for certificates
    without their keys.
    """
    found = []
    is_hub = host in (HUB, HUB_INDEX)
    for mirror in registries.mirrors_of(HUB if is_hub else host) if mirrors else ():
        place = urlsplit(mirror).netloc
        insecure = await registries.is_insecure(place)
        certificates = NO_CERTIFICATES if insecure else registries.certificates_of(place)
        found.append(Endpoint(mirror.rstrip("/"), insecure, certificates, mirror=True))
    if is_hub:
        return [*found, Endpoint(f"https://{HUB_REGISTRY}")]
    if await registries.is_insecure(host):
        return [*found, Endpoint(f"https://{host}", insecure=True), Endpoint(f"http://{host}", insecure=True)]
    return [*found, Endpoint(f"https://{host}", certificates=registries.certificates_of(host))]


@dataclass(frozen=True)
class Proxies:
    """Addresses of proxies, empty for none; `bypass` is what NO_PROXY lists, as Go reads it."""

    http: str = ""
    https: str = ""
    bypass: str = ""

    @classmethod
    def of(cls, given: Mapping[str, str], environment: Mapping[str, str] = os.environ) -> Proxies:
        """daemon.json's keys, and where they are empty the environment."""

        def one(key: str) -> str:
            name = key.replace("-", "_")
            return given.get(key) or environment.get(name.upper()) or environment.get(name) or ""

        return cls(one("http-proxy"), one("https-proxy"), one("no-proxy"))

    def proxy_for(self, url: str) -> str:
        """The proxy to reach an address by, or empty. This host's own loopback is never behind one."""
        parts = urlsplit(url)
        proxy = self.https if parts.scheme == "https" else self.http
        host = (parts.hostname or "").rstrip(".")
        if not proxy or host == "localhost" or _loopback(host):
            return ""
        port = str(parts.port or (443 if parts.scheme == "https" else 80))
        if any(_covers(entry.strip().lower(), host, port) for entry in self.bypass.split(",")):
            return ""
        return proxy if "://" in proxy else f"http://{proxy}"


def _covers(entry: str, host: str, port: str) -> bool:
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    name, colon, only = entry.rpartition(":")
    if colon and only.isdigit() and name.count(":") == 0:
        if only != port:
            return False
        entry = name
    entry = entry.removeprefix("*").strip("[]")
    if entry.startswith("."):
        return host.endswith(entry)
    return bool(entry) and (host == entry or host.endswith(f".{entry}"))


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

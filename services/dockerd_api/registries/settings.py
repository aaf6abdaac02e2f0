"""The daemon's settings of registries: mirrors, insecure ones, certificates (moby registry/config.go).

A registry is *insecure* when it is named in `insecure-registries`, or has an address in a network named there
or in the host's own loopback: its certificate is not checked, and plain HTTP will do.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import errdefs

HUB = "docker.io"
HUB_INDEX = "index.docker.io"
HUB_REGISTRY = "registry-1.docker.io"
INDEX_SERVER = "https://index.docker.io/v1/"
_LOOPBACK = ("::1/128", "127.0.0.0/8")
_LOOKUP_TIMEOUT = 5.0  # seconds to learn the addresses of a registry
_HOST = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*"
    r"|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
)

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class Certificates:
    """The files of /etc/docker/certs.d/<registry>/: authorities, and pairs of certificate and key to show."""

    authorities: tuple[str, ...] = ()
    clients: tuple[tuple[str, str], ...] = ()


NO_CERTIFICATES = Certificates()


class Registries:
    """What is set of registries. Raises InvalidArgument, in Docker's words, for settings that cannot hold.

    `certs_dir` is the folder with a folder of certificates, or with a `hosts.toml`, for each registry.
    """

    def __init__(
        self,
        *,
        insecure: Sequence[str] = (),
        mirrors: Sequence[str] = (),
        per_registry: Mapping[str, Any] | None = None,
        certs_dir: Path = Path("/etc/docker/certs.d"),
    ) -> None:
        self.mirrors = _normalised(mirrors)
        self.certs_dir = certs_dir
        self._mirrors = {HUB: self.mirrors}
        for registry, listed in (per_registry or {}).items():
            if not _HOST.fullmatch(registry):
                raise errdefs.InvalidArgument(f'per-registry-mirrors: invalid host "{registry}"')
            if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
                raise errdefs.InvalidArgument(f"per-registry-mirrors: {registry}: not a list of addresses")
            own = self._mirrors.get(registry, ())
            self._mirrors[registry] = tuple(dict.fromkeys((*own, *_normalised(listed))))
        self._insecure: list[str] = []
        self._networks: list[_Network] = []
        for entry in (*insecure, *_LOOPBACK):
            self._add_insecure(entry)

    def _add_insecure(self, entry: str) -> None:
        if entry.startswith("-") or entry.endswith("-"):
            raise errdefs.InvalidArgument(f"invalid index name ({entry}). Cannot begin or end with a hyphen")
        scheme, separator, host = entry.partition("://")
        if separator:
            if scheme.lower() not in ("http", "https"):
                raise errdefs.InvalidArgument(f"insecure registry {entry} should not contain '://'")
            entry = host
        try:
            network = ipaddress.ip_network(entry, strict=False) if "/" in entry else None
        except ValueError:
            network = None
        if network is not None:
            if network not in self._networks:
                self._networks.append(network)
            return
        name, colon, port = entry.rpartition(":")
        if not _HOST.fullmatch(entry) and _address(entry) is None and _address(name) is None:
            raise errdefs.InvalidArgument(
                f'insecure registry {entry} is not valid: invalid host "{name or entry}"'
            )
        if colon and port.isdigit() and int(port) > 65535:
            raise errdefs.InvalidArgument(f'insecure registry {entry} is not valid: invalid port "{port}"')
        if entry not in self._insecure:
            self._insecure.append(entry)

    def mirrors_of(self, registry: str) -> tuple[str, ...]:
        """The addresses that are asked before the registry itself, in order, each with a slash at its end."""
        return self._mirrors.get(registry, ())

    async def is_insecure(self, registry: str) -> bool:
        """Whether `host[:port]` needs no checked TLS. A name that cannot be looked up is in no network."""
        if registry in self._insecure:
            return True
        if registry == HUB:
            return False
        host = urlsplit(f"//{registry}").hostname or registry
        address = _address(host)
        found = [address] if address is not None else await _lookup(host)
        return any(each in network for each in found for network in self._networks)

    def folder_of(self, registry: str) -> Path | None:
        """The registry's folder below `certs_dir`, by the names that containerd looks for, or None."""
        for name in (directory(registry), registry, "_default"):
            if (self.certs_dir / name).is_dir():
                return self.certs_dir / name
        return None

    def certificates_of(self, registry: str) -> Certificates:
        """What lies in the registry's folder. Raises InvalidArgument for one half of a pair."""
        folder = self.folder_of(registry)
        names = sorted(path.name for path in folder.iterdir()) if folder is not None else []
        authorities, clients = [], []
        for name in names:
            if name.endswith(".crt"):
                authorities.append(f"{folder}/{name}")
            elif name.endswith(".cert"):
                key = f"{name.removesuffix('.cert')}.key"
                if key not in names:
                    raise errdefs.InvalidArgument(
                        f"missing key {key} for client certificate {name}. "
                        "CA certificates must use the extension .crt"
                    )
                clients.append((f"{folder}/{name}", f"{folder}/{key}"))
            elif name.endswith(".key") and f"{name.removesuffix('.key')}.cert" not in names:
                raise errdefs.InvalidArgument(
                    f"missing client certificate {name.removesuffix('.key')}.cert for key {name}"
                )
        return Certificates(tuple(authorities), tuple(clients))

    def document(self) -> dict[str, Any]:
        """RegistryConfig of GET /info (API 1.50: RegistryServiceConfig)."""
        configs = {
            host: {"Name": host, "Mirrors": list(self.mirrors_of(host)), "Secure": False, "Official": False}
            for host in self._insecure
        }
        for host, mirrors in self._mirrors.items():
            if host not in configs:
                official = host == HUB
                configs[host] = {
                    "Name": host,
                    "Mirrors": list(mirrors),
                    "Secure": True,
                    "Official": official,
                }
        return {
            "AllowNondistributableArtifactsCIDRs": None,
            "AllowNondistributableArtifactsHostnames": None,
            "InsecureRegistryCIDRs": [str(network) for network in self._networks],
            "IndexConfigs": configs,
            "Mirrors": list(self.mirrors),
        }


def directory(registry: str) -> str:
    """The name of a registry's folder: `host_5000_` for `host:5000`."""
    host, colon, port = registry.rpartition(":")
    return f"{host}_{port}_" if colon and host else registry


def _normalised(mirrors: Sequence[str]) -> tuple[str, ...]:
    found = []
    for mirror in mirrors:
        scheme, separator, _ = mirror.partition("://")
        if not separator or not scheme:
            raise errdefs.InvalidArgument(
                f'invalid mirror: no scheme specified for "{mirror}": '
                "must use either 'https://' or 'http://'"
            )
        try:
            parts = urlsplit(mirror)
            _ = parts.port  # raises for one that is no number
        except ValueError:
            raise errdefs.InvalidArgument(f'invalid mirror: "{mirror}" is not a valid URI') from None
        if parts.scheme not in ("http", "https"):
            raise errdefs.InvalidArgument(
                f'invalid mirror: unsupported scheme "{parts.scheme}" in "{mirror}": '
                "must use either 'https://' or 'http://'"
            )
        if "@" in parts.netloc:
            hidden = f"{parts.scheme}://{parts.username}:xxxxx@{parts.netloc.rpartition('@')[2]}{parts.path}"
            raise errdefs.InvalidArgument(f'invalid mirror: username/password not allowed in URI "{hidden}"')
        if not parts.hostname:
            raise errdefs.InvalidArgument(f'invalid mirror: "{mirror}" is not a valid URI')
        if parts.query or parts.fragment:
            raise errdefs.InvalidArgument(f'invalid mirror: query or fragment at end of the URI "{mirror}"')
        found.append(mirror.rstrip("/") + "/")
    return tuple(dict.fromkeys(found))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None


async def _lookup(host: str) -> list[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_LOOKUP_TIMEOUT):
            answers = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, TimeoutError, UnicodeError):
        return []
    return [ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers]

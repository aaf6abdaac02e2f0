"""The places where a registry answers (moby registry/service_v2.go)."""

from __future__ import annotations

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

"""The two files of an attachment, from its request, the daemon's settings and the host's own files."""

from __future__ import annotations

from collections.abc import Sequence

from dockerd_api.network import resolv
from dockerd_api.network.model import AttachRequest
from dockerd_api.network.settings import Settings


def texts(
    request: AttachRequest,
    settings: Settings,
    *,
    address: str,
    own_namespace: bool,
    gateways: Sequence[str],
    ipv6: bool,
) -> tuple[str, str]:
    """(/etc/hosts, /etc/resolv.conf). What the request leaves open comes from daemon.json, then the host."""
    extra = resolv.extra_hosts(request.extra_hosts, gateways)
    if own_namespace:
        hosts = resolv.hosts_text(
            hostname=request.hostname,
            domainname=request.domainname,
            address=address,
            extra=extra,
            ipv6=ipv6,
        )
    else:
        hosts = resolv.host_hosts(extra)
    conf = resolv.container_conf(
        resolv.host_conf(settings.resolv_conf),
        dns=request.dns or settings.dns,
        search=request.dns_search or settings.dns_search,
        options=request.dns_options or settings.dns_options,
        own_namespace=own_namespace,
    )
    return hosts, conf.text()

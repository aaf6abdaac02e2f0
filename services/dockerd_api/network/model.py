"""What the network room takes and gives: plain frozen records, free of kernel and database.

Addresses are text in their canonical form; an empty text or 0 means "not given".
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field


@dataclass(frozen=True)
class PortRequest:
    """One wish to publish a port: `host_port` 0 means any free one; `host_port_end` > `host_port` a range."""

    container_port: int
    protocol: str
    host_ip: str = ""
    host_port: int = 0
    host_port_end: int = 0


@dataclass(frozen=True)
class AttachRequest:
    """What a container wants of its network. `mode`: bridge, default, host, none or container:<id>."""

    container_id: str
    name: str
    hostname: str = ""
    domainname: str = ""
    mode: str = "default"
    ports: tuple[PortRequest, ...] = ()
    mac_address: str = ""
    ipv4_address: str = ""
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Endpoint:
    """A container's place in one network; the addresses are empty in the networks `host` and `none`."""

    network_id: str
    network_name: str
    endpoint_id: str
    gateway: str = ""
    ip_address: str = ""
    prefix_len: int = 0
    mac_address: str = ""


@dataclass(frozen=True)
class BoundPort:
    """A published port as it was given. An IPv6 `host_ip` is served by the listener alone."""

    protocol: str
    host_ip: str
    host_port: int
    container_port: int


@dataclass
class Attachment:
    """What an attached container has. `netns_path` None means the host's own namespace.

    `listeners` are bound sockets (TCP ones listening), owned by the caller from here on: whoever holds them
    reserves the port and serves what no kernel rule takes. `hosts` and `resolv_conf` are the files' texts.
    """

    netns_path: str | None
    sandbox_id: str
    endpoints: tuple[Endpoint, ...]
    ports: tuple[BoundPort, ...]
    hosts: str
    resolv_conf: str
    listeners: tuple[tuple[BoundPort, socket.socket], ...] = field(default=(), repr=False)

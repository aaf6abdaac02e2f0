"""Whether a request can be met: everything that is wrong with it is said before anything is changed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import errdefs

from dockerd_api.network import ports, resolv
from dockerd_api.network.drivers import Driver
from dockerd_api.network.model import AttachRequest

_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")


def mac(text: str) -> str:
    """A MAC in the kernel's spelling."""
    return text.lower().replace("-", ":")


def check(request: AttachRequest, drivers: Mapping[str, Driver], gateways: Sequence[str]) -> str:
    """The name of the network that the request means, or container:<id>.

    `drivers` are the networks there are; `gateways` the addresses of host-gateway. Raises InvalidArgument for
    a wrong value, NotFound for a network that is not there, NotImplementedHere for SCTP ports.
    """
    mode = request.mode or "default"
    if mode.startswith("container:"):
        if mode.removeprefix("container:") == request.container_id:
            raise errdefs.InvalidArgument("cannot join own network namespace")
        return mode
    if mode == "default":
        mode = "bridge" if "bridge" in drivers else "none"
    driver = drivers.get(mode)
    if driver is None:
        raise errdefs.NotFound(f"network {mode} not found")
    for port in request.ports:
        ports.check(port)
    if request.mac_address and not _MAC.fullmatch(mac(request.mac_address)):
        raise errdefs.InvalidArgument(f"invalid MAC address: {request.mac_address}")
    resolv.check_servers(request.dns)
    resolv.extra_hosts(request.extra_hosts, gateways)
    if mode != "bridge" and request.ipv4_address:
        raise errdefs.InvalidArgument("user specified IP address is supported on user defined networks only")
    driver.validate(request)
    return mode

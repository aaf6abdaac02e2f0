"""Handing a container's port listeners to its shim, which reserves the ports and serves what no kernel rule
takes.

The protocol is buoy.attach.v1 over SOCK_SEQPACKET (docs/contracts.md, Stdio fields).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING

import errdefs
from pb.buoy.attach.v1 import PortMapping, Ports, Reply, Request

if TYPE_CHECKING:
    from dockerd_api.network.model import BoundPort

_MOST_AT_ONCE = 200  # SCM_MAX_FD is 253 (unix(7))


async def hand_over(
    attach_socket: str,
    container_ip: str,
    listeners: Sequence[tuple[BoundPort, socket.socket]],
    *,
    timeout: float = 10.0,
) -> None:
    """Sends every listener; the caller still closes its own. Unavailable when the shim does not take them."""
    if not listeners:
        return
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.setblocking(False)
        try:
            async with asyncio.timeout(timeout):
                await loop.sock_connect(connection, attach_socket)
                for first in range(0, len(listeners), _MOST_AT_ONCE):
                    part = listeners[first : first + _MOST_AT_ONCE]
                    request = Request(
                        ports=Ports(mappings=[_mapping(port, container_ip) for port, _ in part])
                    )
                    socket.send_fds(connection, [bytes(request)], [sock.fileno() for _, sock in part])
                    reply = Reply.parse(await loop.sock_recv(connection, 65536))
                    if reply.error:
                        raise errdefs.Unavailable(f"the shim does not take the ports: {reply.error}")
        except (OSError, TimeoutError) as error:
            raise errdefs.Unavailable(f"the shim does not take the ports: {error}") from error


def _mapping(port: BoundPort, container_ip: str) -> PortMapping:
    return PortMapping(
        protocol=port.protocol,
        host_ip=port.host_ip,
        host_port=port.host_port,
        container_ip=container_ip,
        container_port=port.container_port,
    )

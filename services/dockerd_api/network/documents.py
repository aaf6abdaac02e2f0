"""Networks as the API shows them (API 1.50, GET /networks and GET /networks/{id}), and finding one by its
name or id."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import errdefs

from dockerd_api.network.model import Endpoint
from dockerd_api.network.store import NetworkRow, Record


def find(rows: Iterable[NetworkRow], ref: str) -> NetworkRow:
    """The network with this id, name or beginning of an id. NotFound; InvalidArgument when ambiguous."""
    known = list(rows)
    for row in known:
        if ref and ref in (row.id, row.name):
            return row
    matches = [row for row in known if ref and row.id.startswith(ref)]
    if len(matches) > 1:
        raise errdefs.InvalidArgument(
            f"network {ref} is ambiguous ({len(matches)} matches found based on ID prefix)"
        )
    if not matches:
        raise errdefs.NotFound(f"network {ref} not found")
    return matches[0]


def network(row: NetworkRow, of_driver: dict[str, Any], attached: Iterable[Record]) -> dict[str, Any]:
    """The network's document, with the containers among `attached` that have an endpoint in it."""
    containers = {
        record.request.container_id: _resource(record.request.name, endpoint)
        for record in attached
        for endpoint in record.endpoints
        if endpoint.network_id == row.id
    }
    return {
        "Name": row.name,
        "Id": row.id,
        "Created": row.created,
        "Scope": "local",
        "Driver": row.driver,
        "EnableIPv4": of_driver["EnableIPv4"],
        "EnableIPv6": False,
        "IPAM": of_driver["IPAM"],
        "Internal": False,
        "Attachable": False,
        "Ingress": False,
        "ConfigFrom": {"Network": ""},
        "ConfigOnly": False,
        "Containers": containers,
        "Options": of_driver["Options"],
        "Labels": {},
    }


def _resource(name: str, endpoint: Endpoint) -> dict[str, str]:
    return {
        "Name": name,
        "EndpointID": endpoint.endpoint_id,
        "MacAddress": endpoint.mac_address,
        "IPv4Address": f"{endpoint.ip_address}/{endpoint.prefix_len}" if endpoint.ip_address else "",
        "IPv6Address": "",
    }

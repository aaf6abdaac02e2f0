"""The networks `host` (no namespace of its own) and `none` (a namespace with loopback only)."""

from __future__ import annotations

from typing import Any

from dockerd_api.network.model import AttachRequest, Endpoint
from dockerd_api.network.store import NetworkRow


class Addressless:
    """A network that gives no address; `host` and `none` differ only in whose namespace is used."""

    bridged = False

    def __init__(self, name: str, *, own_namespace: bool) -> None:
        self.name = name
        self.own_namespace = own_namespace

    def validate(self, request: AttachRequest) -> None:
        """Anything goes: ports are ignored here, as the real engine does."""

    def setup(self, request: AttachRequest, row: NetworkRow, endpoint_id: str, mac: str) -> Endpoint:
        """An endpoint without addresses."""
        return Endpoint(row.id, row.name, endpoint_id)

    def teardown(self, endpoint: Endpoint, link: str) -> None:
        """Nothing was reserved."""

    def inspect(self, row: NetworkRow) -> dict[str, Any]:
        """No addresses, no options."""
        return {
            "EnableIPv4": False,
            "IPAM": {"Driver": "default", "Options": None, "Config": None},
            "Options": {},
        }

"""Network drivers: one object per kind of network, behind one protocol of three verbs.

`validate` of every driver concerned runs before any `setup`; `teardown` gathers every error instead of
stopping at the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from dockerd_api.network.model import AttachRequest, Endpoint
from dockerd_api.network.store import NetworkRow


class Driver(Protocol):
    """What the manager asks of a kind of network."""

    name: str
    own_namespace: bool
    bridged: bool

    def validate(self, request: AttachRequest) -> None:
        """Raises errdefs before anything is changed."""

    def setup(self, request: AttachRequest, row: NetworkRow, endpoint_id: str, mac: str) -> Endpoint:
        """Reserve what an endpoint needs (its address); nothing is changed in the kernel yet."""

    def teardown(self, endpoint: Endpoint, link: str) -> None:
        """Give back what `setup` reserved (idempotent)."""

    def inspect(self, row: NetworkRow) -> dict[str, Any]:
        """The driver's part of the API's network document: EnableIPv4, IPAM, Options."""


def gather(name: str, errors: Sequence[Exception]) -> None:
    """Raise what a teardown met: the one error as it is, several as a group."""
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup(name, list(errors))

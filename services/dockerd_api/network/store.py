"""The network room's rows in engine.db.

An attachment is one intent, written before anything is made in the kernel: its container, its namespace's
name, its endpoints with their addresses, its ports. What the kernel has without a row is swept at start;
a row whose namespace is gone is removed.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from dockerd_api.network.firewall import PortRule
from dockerd_api.network.model import AttachRequest, BoundPort, Endpoint, PortRequest

MIGRATION = """
CREATE TABLE IF NOT EXISTS networks (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    driver TEXT NOT NULL,
    created TEXT NOT NULL,
    state TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS network_sandboxes (
    container_id TEXT PRIMARY KEY,
    sandbox_id TEXT NOT NULL UNIQUE,
    netns TEXT NOT NULL,
    link TEXT NOT NULL,
    request TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS network_endpoints (
    id TEXT PRIMARY KEY,
    container_id TEXT NOT NULL REFERENCES network_sandboxes ON DELETE CASCADE,
    network_id TEXT NOT NULL REFERENCES networks,
    address TEXT,
    document TEXT NOT NULL,
    UNIQUE (network_id, address)
) STRICT;
CREATE INDEX IF NOT EXISTS network_endpoints_container ON network_endpoints (container_id);
CREATE TABLE IF NOT EXISTS network_ports (
    protocol TEXT NOT NULL,
    host_ip TEXT NOT NULL,
    host_port INTEGER NOT NULL,
    container_id TEXT NOT NULL REFERENCES network_sandboxes ON DELETE CASCADE,
    container_port INTEGER NOT NULL,
    PRIMARY KEY (protocol, host_ip, host_port)
) STRICT;
CREATE INDEX IF NOT EXISTS network_ports_container ON network_ports (container_id);
CREATE TABLE IF NOT EXISTS network_facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
"""


@dataclass(frozen=True)
class NetworkRow:
    """One network; `state` is the driver's own."""

    id: str
    name: str
    driver: str
    created: str
    state: dict[str, Any]


@dataclass(frozen=True)
class Record:
    """One attachment. `netns` is the namespace's name (12 hex; empty for the host's), `link` the veth's."""

    request: AttachRequest
    sandbox_id: str
    netns: str
    link: str
    endpoints: tuple[Endpoint, ...]
    ports: tuple[BoundPort, ...]

    @property
    def address(self) -> str:
        """The container's first address; empty when it has none."""
        return next((e.ip_address for e in self.endpoints if e.ip_address), "")

    def rules(self) -> list[PortRule]:
        """The firewall's share of the published ports: IPv6 ones are served by their listener alone."""
        return [
            PortRule(p.protocol, p.host_ip, p.host_port, self.address, p.container_port)
            for p in self.ports
            if ":" not in p.host_ip
        ]


def ensure(connection: sqlite3.Connection) -> None:
    """Make the tables where the database's own migrations have not."""
    for statement in MIGRATION.split(";"):
        connection.execute(statement)


def networks(connection: sqlite3.Connection) -> list[NetworkRow]:
    """Every network, oldest first."""
    rows = connection.execute("SELECT id, name, driver, created, state FROM networks ORDER BY rowid")
    return [NetworkRow(i, n, d, c, json.loads(s)) for i, n, d, c, s in rows]


def put_networks(connection: sqlite3.Connection, rows: Iterable[NetworkRow]) -> None:
    """Write networks, new or changed."""
    connection.executemany(
        "INSERT INTO networks VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET state = excluded.state",
        [(row.id, row.name, row.driver, row.created, json.dumps(row.state)) for row in rows],
    )


def drop_network(connection: sqlite3.Connection, network_id: str) -> None:
    """Remove a network that has no endpoints."""
    connection.execute("DELETE FROM networks WHERE id = ?", (network_id,))


def put(connection: sqlite3.Connection, record: Record) -> None:
    """Write an attachment's intent."""
    container = record.request.container_id
    connection.execute(
        "INSERT INTO network_sandboxes VALUES (?, ?, ?, ?, ?)",
        (container, record.sandbox_id, record.netns, record.link, json.dumps(asdict(record.request))),
    )
    connection.executemany(
        "INSERT INTO network_endpoints VALUES (?, ?, ?, ?, ?)",
        [
            (e.endpoint_id, container, e.network_id, e.ip_address or None, json.dumps(asdict(e)))
            for e in record.endpoints
        ],
    )
    connection.executemany(
        "INSERT INTO network_ports VALUES (?, ?, ?, ?, ?)",
        [(p.protocol, p.host_ip, p.host_port, container, p.container_port) for p in record.ports],
    )


def drop(connection: sqlite3.Connection, containers: Iterable[str]) -> None:
    """Remove attachments with all that hangs on them (idempotent)."""
    connection.executemany(
        "DELETE FROM network_sandboxes WHERE container_id = ?", [(container,) for container in containers]
    )


def records(connection: sqlite3.Connection) -> list[Record]:
    """Every attachment."""
    found = []
    for container, sandbox, netns, link, request in connection.execute(
        "SELECT container_id, sandbox_id, netns, link, request FROM network_sandboxes"
    ).fetchall():
        endpoints = connection.execute(
            "SELECT document FROM network_endpoints WHERE container_id = ? ORDER BY rowid", (container,)
        )
        ports = connection.execute(
            "SELECT protocol, host_ip, host_port, container_port FROM network_ports"
            " WHERE container_id = ? ORDER BY rowid",
            (container,),
        )
        found.append(
            Record(
                _request(json.loads(request)),
                sandbox,
                netns,
                link,
                tuple(Endpoint(**json.loads(document)) for (document,) in endpoints.fetchall()),
                tuple(BoundPort(*row) for row in ports.fetchall()),
            )
        )
    return found


def _request(document: dict[str, Any]) -> AttachRequest:
    ports = tuple(PortRequest(**port) for port in document.pop("ports"))
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in document.items()}
    return AttachRequest(ports=ports, **fields)


def fact(connection: sqlite3.Connection, key: str) -> str:
    """A remembered text; empty when there is none."""
    row = connection.execute("SELECT value FROM network_facts WHERE key = ?", (key,)).fetchone()
    return str(row[0]) if row else ""


def put_fact(connection: sqlite3.Connection, key: str, value: str) -> None:
    """Remember a text."""
    connection.execute("INSERT OR REPLACE INTO network_facts VALUES (?, ?)", (key, value))

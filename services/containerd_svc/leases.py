"""Leases: what a client holds for a while, so that the collector leaves it alone.

A lease names content, snapshots, ingests and images, also ones that do not exist yet. A call that carries the
metadata `containerd-lease` adds what it makes to that lease, in the same transaction. The label
`containerd.io/gc.expire` (RFC 3339) ends a lease by itself.
"""

from __future__ import annotations

import datetime
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import errdefs
from storage.database import Database

from containerd_svc import filters, labels, namespaces

MIGRATION = """
CREATE TABLE leases (
  namespace TEXT NOT NULL, id TEXT NOT NULL, created_at INTEGER NOT NULL, labels TEXT NOT NULL,
  PRIMARY KEY (namespace, id)) WITHOUT ROWID;
CREATE TABLE lease_resources (
  namespace TEXT NOT NULL, lease TEXT NOT NULL, type TEXT NOT NULL, id TEXT NOT NULL,
  PRIMARY KEY (namespace, lease, type, id),
  FOREIGN KEY (namespace, lease) REFERENCES leases (namespace, id) ON DELETE CASCADE) WITHOUT ROWID;
"""

EXPIRES = "containerd.io/gc.expire"
_PLAIN_TYPES = ("content", "ingests", "images")


@dataclass(frozen=True)
class Lease:
    """One lease; `created_at` in nanoseconds since 1970."""

    id: str
    created_at: int
    labels: dict[str, str]

    @property
    def expires_at(self) -> float | None:
        """Seconds since 1970 at which it ends by itself, or None."""
        text = self.labels.get(EXPIRES)
        if not text:
            return None
        try:
            return datetime.datetime.fromisoformat(text).timestamp()
        except ValueError:
            return None


def hold(connection: sqlite3.Connection, namespace: str, lease: str, kind: str, name: str) -> None:
    """Within a write: add a resource to the caller's lease; nothing without a lease. NotFound for an unknown
    one.
    """
    if not lease:
        return
    try:
        connection.execute(
            "INSERT OR IGNORE INTO lease_resources VALUES (?,?,?,?)", (namespace, lease, kind, name)
        )
    except sqlite3.IntegrityError as error:
        raise errdefs.NotFound(f'lease "{lease}": not found') from error


def release(connection: sqlite3.Connection, namespace: str, lease: str, kind: str, name: str) -> None:
    """Within a write: take a resource out of the caller's lease."""
    connection.execute(
        "DELETE FROM lease_resources WHERE namespace=? AND lease=? AND type=? AND id=?",
        (namespace, lease, kind, name),
    )


class Leases:
    """The leases of all namespaces. Every change is durable when it returns."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def create(self, namespace: str, lease_id: str, wanted: Mapping[str, str]) -> Lease:
        """Make a lease. Raises InvalidArgument for a bad label or expiry, AlreadyExists for a used id."""
        if not lease_id:
            raise errdefs.InvalidArgument("lease id must be provided: invalid argument")
        labels.validate(wanted)
        lease = Lease(lease_id, labels.now(), dict(wanted))
        if wanted.get(EXPIRES) and lease.expires_at is None:
            raise errdefs.InvalidArgument(f"label {EXPIRES}: {wanted[EXPIRES]!r} is no RFC 3339 time")

        def insert(connection: sqlite3.Connection) -> None:
            namespaces.ensure(connection, namespace)
            try:
                connection.execute(
                    "INSERT INTO leases VALUES (?,?,?,?)",
                    (namespace, lease_id, lease.created_at, labels.dump(wanted)),
                )
            except sqlite3.IntegrityError as error:
                raise errdefs.AlreadyExists(f'lease "{lease_id}": already exists') from error

        await self._db.write(insert)
        return lease

    async def delete(self, namespace: str, lease_id: str) -> None:
        """End a lease. Raises NotFound."""

        def remove(connection: sqlite3.Connection) -> None:
            done = connection.execute("DELETE FROM leases WHERE namespace=? AND id=?", (namespace, lease_id))
            if not done.rowcount:
                raise errdefs.NotFound(f'lease "{lease_id}": not found')

        await self._db.write(remove)

    async def end_labelled(self, label: str) -> None:
        """End the leases of all namespaces that have a label."""

        def remove(connection: sqlite3.Connection) -> None:
            for namespace, lease_id, text in connection.execute(
                "SELECT namespace, id, labels FROM leases"
            ).fetchall():
                if label in labels.load(text):
                    connection.execute("DELETE FROM leases WHERE namespace=? AND id=?", (namespace, lease_id))

        await self._db.write(remove)

    async def list(self, namespace: str, wanted: Sequence[str] = ()) -> list[Lease]:
        """The leases that match the filters, by id."""
        match = filters.parse(wanted)

        def select(connection: sqlite3.Connection) -> list[Lease]:
            rows = connection.execute(
                "SELECT id, created_at, labels FROM leases WHERE namespace=? ORDER BY id", (namespace,)
            )
            return [Lease(row[0], row[1], labels.load(row[2])) for row in rows]

        return [lease for lease in await self._db.read(select) if match(_lookup(lease))]

    async def add_resource(self, namespace: str, lease_id: str, kind: str, name: str) -> None:
        """Hold `name` of `kind` (content, ingests, images, snapshots/<snapshotter>), whether it exists or
        not.
        """
        _check_kind(kind, name)
        await self._db.write(lambda connection: hold(connection, namespace, lease_id, kind, name))

    async def add_resources(
        self, namespace: str, lease_id: str, resources: Sequence[tuple[str, str]]
    ) -> None:
        """Hold several (type, id); not synced, since a power cut ends the work that wants them held."""

        def change(connection: sqlite3.Connection) -> None:
            for kind, name in resources:
                hold(connection, namespace, lease_id, kind, name)

        for kind, name in resources:
            _check_kind(kind, name)
        await self._db.write(change, durable=False)

    async def delete_resource(self, namespace: str, lease_id: str, kind: str, name: str) -> None:
        """Hold it no longer; fine when it was not held. Raises NotFound for an unknown lease."""
        _check_kind(kind, name)

        def remove(connection: sqlite3.Connection) -> None:
            _require(connection, namespace, lease_id)
            release(connection, namespace, lease_id, kind, name)

        await self._db.write(remove)

    async def resources(self, namespace: str, lease_id: str) -> Sequence[tuple[str, str]]:
        """(type, id) of all that a lease holds. Raises NotFound."""

        def select(connection: sqlite3.Connection) -> Sequence[tuple[str, str]]:
            _require(connection, namespace, lease_id)
            return connection.execute(
                "SELECT type, id FROM lease_resources WHERE namespace=? AND lease=? ORDER BY type, id",
                (namespace, lease_id),
            ).fetchall()

        return await self._db.read(select)


def _require(connection: sqlite3.Connection, namespace: str, lease_id: str) -> None:
    if not connection.execute(
        "SELECT 1 FROM leases WHERE namespace=? AND id=?", (namespace, lease_id)
    ).fetchone():
        raise errdefs.NotFound(f'lease "{lease_id}": not found')


def _check_kind(kind: str, name: str) -> None:
    if kind.startswith("snapshots/") and kind.count("/") == 1 and len(kind) > len("snapshots/"):
        return
    if kind not in _PLAIN_TYPES:
        raise errdefs.NotImplementedHere(f"resource type {kind} not supported yet: not implemented")
    if not name:
        raise errdefs.InvalidArgument("invalid argument: resource id is empty")


def _lookup(lease: Lease) -> filters.Lookup:
    def lookup(path: Sequence[str]) -> str | None:
        if path[0] == "id":
            return lease.id
        if path[0] == "labels":
            return filters.labels_at(path[1:], lease.labels)
        return None

    return lookup

"""Namespaces: which client a name belongs to. One exists once something was made in it, or by Create."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

import errdefs
from pb.containerd.events import NamespaceCreate, NamespaceDelete, NamespaceUpdate
from storage.database import Database

from containerd_svc import identifiers, labels
from containerd_svc.events import Events, Recorder

MIGRATION = """
CREATE TABLE namespaces (name TEXT PRIMARY KEY, labels TEXT NOT NULL) WITHOUT ROWID;
"""

# The tables whose rows must be gone before a namespace may be deleted.
_CONTENTS = ("images", "blobs", "containers", "snapshots", "sandboxes")


def ensure(connection: sqlite3.Connection, namespace: str) -> None:
    """Within a write: make the namespace unless it exists."""
    connection.execute("INSERT OR IGNORE INTO namespaces VALUES (?, '{}')", (namespace,))


class Namespaces:
    """The namespaces and their labels. Every change is durable when it returns."""

    def __init__(self, database: Database, events: Events) -> None:
        self._database = database
        self._events = events

    async def get(self, name: str) -> dict[str, str]:
        """The labels of a namespace; none for one that does not exist, as containerd answers."""

        def select(connection: sqlite3.Connection) -> dict[str, str]:
            row = connection.execute("SELECT labels FROM namespaces WHERE name=?", (name,)).fetchone()
            return labels.load(row[0]) if row else {}

        return await self._database.read(select)

    async def list(self) -> list[tuple[str, dict[str, str]]]:
        """Name and labels of each, by name. Tables that stores of other rooms fill count as well."""

        def select(connection: sqlite3.Connection) -> list[tuple[str, dict[str, str]]]:
            found = {
                name: labels.load(text)
                for name, text in connection.execute("SELECT name, labels FROM namespaces")
            }
            for table in _tables(connection):
                for (name,) in connection.execute(f"SELECT DISTINCT namespace FROM {table}"):
                    found.setdefault(name, {})
            return sorted(found.items())

        return await self._database.read(select)

    async def create(self, name: str, wanted: Mapping[str, str]) -> None:
        """Make a namespace. Raises InvalidArgument for a bad name or label, AlreadyExists."""
        identifiers.validate(name)
        labels.validate(wanted)

        def insert(connection: sqlite3.Connection, record: Recorder) -> None:
            done = connection.execute(
                "INSERT OR IGNORE INTO namespaces VALUES (?,?)", (name, labels.dump(wanted))
            )
            if not done.rowcount:
                raise errdefs.AlreadyExists(f'namespace "{name}": already exists')
            record(name, "/namespaces/create", NamespaceCreate(name=name, labels=dict(wanted)))

        await self._events.transact(insert)

    async def update(self, name: str, wanted: Mapping[str, str], paths: Sequence[str]) -> dict[str, str]:
        """Replace the labels, or those that `paths` (labels.<key>) name; returns all. Raises InvalidArgument,
        NotFound."""
        labels.validate(wanted)

        def change(connection: sqlite3.Connection, record: Recorder) -> dict[str, str]:
            row = connection.execute("SELECT labels FROM namespaces WHERE name=?", (name,)).fetchone()
            if row is None:
                raise errdefs.NotFound(f'namespace "{name}": not found')
            made = labels.masked(labels.load(row[0]), wanted, paths, f'namespace "{name}"')
            connection.execute("UPDATE namespaces SET labels=? WHERE name=?", (labels.dump(made), name))
            record(name, "/namespaces/update", NamespaceUpdate(name=name, labels=dict(wanted)))
            return {key: value for key, value in made.items() if value}

        return await self._events.transact(change)

    async def delete(self, name: str) -> None:
        """Remove an empty namespace. Raises FailedPrecondition while it holds something, NotFound."""

        def remove(connection: sqlite3.Connection, record: Recorder) -> None:
            tables = _tables(connection)
            left = [
                table
                for table in _CONTENTS
                if table in tables
                and connection.execute(f"SELECT 1 FROM {table} WHERE namespace=? LIMIT 1", (name,)).fetchone()
            ]
            if left:
                raise errdefs.FailedPrecondition(
                    f'namespace "{name}" must be empty, but it still has {", ".join(left)}: '
                    "failed precondition"
                )
            if not connection.execute("DELETE FROM namespaces WHERE name=?", (name,)).rowcount:
                raise errdefs.NotFound(f'namespace "{name}": not found')
            record(name, "/namespaces/delete", NamespaceDelete(name=name))

        await self._events.transact(remove)


def _tables(connection: sqlite3.Connection) -> set[str]:
    found = connection.execute("SELECT name FROM sqlite_master WHERE type='table'")
    return {name for (name,) in found} & set(_CONTENTS)

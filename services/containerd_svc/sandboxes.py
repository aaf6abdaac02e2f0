"""Records of sandboxes: environments that several containers share. Nothing runs by them.

As in containerd's own store (metadata/sandbox.go) no change is an event, and labels hold content and
snapshots as an image's do.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import errdefs
from pb.containerd.types import Sandbox, SandboxRuntime
from storage.database import Database

from containerd_svc import filters, identifiers, labels, namespaces

MIGRATION = """
CREATE TABLE sandboxes (
  namespace TEXT NOT NULL, id TEXT NOT NULL, labels TEXT NOT NULL, record BLOB NOT NULL,
  PRIMARY KEY (namespace, id)) WITHOUT ROWID;
"""

_CHANGEABLE = ("labels", "extensions", "spec", "runtime")


class Sandboxes:
    """The sandboxes of all namespaces, as the messages that clients see. Every change is durable when it
    returns.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, namespace: str, sandbox_id: str) -> Sandbox:
        """Raises NotFound."""
        return await self._database.read(lambda connection: _load(connection, namespace, sandbox_id))

    async def list(self, namespace: str, wanted: Sequence[str] = ()) -> list[Sandbox]:
        """Those that match the filters (id, runtime.name, labels), by id. Raises InvalidArgument."""
        match = filters.parse(wanted)

        def select(connection: sqlite3.Connection) -> list[Sandbox]:
            rows = connection.execute(
                "SELECT record FROM sandboxes WHERE namespace=? ORDER BY id", (namespace,)
            )
            return [Sandbox.parse(record) for (record,) in rows]

        return [found for found in await self._database.read(select) if match(_lookup(found))]

    async def create(self, namespace: str, wanted: Sandbox) -> Sandbox:
        """Keep a new record. Raises InvalidArgument, AlreadyExists."""
        identifiers.validate(namespace)
        _validate(wanted, "failed to validate sandbox: ")
        made = _copy(wanted)
        made.created_at = made.updated_at = labels.moment(labels.now())

        def insert(connection: sqlite3.Connection) -> None:
            namespaces.ensure(connection, namespace)
            done = connection.execute(
                "INSERT OR IGNORE INTO sandboxes VALUES (?,?,?,?)", (namespace, *_columns(made))
            )
            if not done.rowcount:
                raise errdefs.AlreadyExists(f'sandbox "{made.sandbox_id}": already exists')

        await self._database.write(insert)
        return made

    async def update(self, namespace: str, wanted: Sandbox, paths: Sequence[str]) -> Sandbox:
        """Replace what may change, or only what `paths` name; returns the record. Raises InvalidArgument,
        NotFound.
        """

        def change(connection: sqlite3.Connection) -> Sandbox:
            have = _load(connection, namespace, wanted.sandbox_id)
            made = _masked(have, wanted, paths)
            made.updated_at = labels.moment(labels.now())
            _validate(made)
            connection.execute("REPLACE INTO sandboxes VALUES (?,?,?,?)", (namespace, *_columns(made)))
            return made

        return await self._database.write(change)

    async def delete(self, namespace: str, sandbox_id: str) -> None:
        """Forget a record. Raises NotFound."""

        def remove(connection: sqlite3.Connection) -> None:
            done = connection.execute(
                "DELETE FROM sandboxes WHERE namespace=? AND id=?", (namespace, sandbox_id)
            )
            if not done.rowcount:
                raise errdefs.NotFound(f'failed to delete sandbox "{sandbox_id}": not found')

        await self._database.write(remove)


def _load(connection: sqlite3.Connection, namespace: str, sandbox_id: str) -> Sandbox:
    row = connection.execute(
        "SELECT record FROM sandboxes WHERE namespace=? AND id=?", (namespace, sandbox_id)
    ).fetchone()
    if row is None:
        raise errdefs.NotFound(f'sandbox "{sandbox_id}": not found')
    return Sandbox.parse(row[0])


def _copy(sandbox: Sandbox) -> Sandbox:
    return Sandbox.parse(bytes(sandbox))


def _validate(sandbox: Sandbox, lead: str = "") -> None:
    identifiers.validate(sandbox.sandbox_id, f"{lead}invalid sandbox ID")
    labels.validate(sandbox.labels)
    if not _runtime(sandbox).name:
        raise errdefs.InvalidArgument(f"{lead}sandbox.Runtime.Name must be set: invalid argument")


def _runtime(sandbox: Sandbox) -> SandboxRuntime:
    return sandbox.runtime or SandboxRuntime()


def _masked(have: Sandbox, want: Sandbox, paths: Sequence[str]) -> Sandbox:
    """The record after an update by field paths; without any, of all that may change."""
    if not paths and _runtime(have).name != _runtime(want).name:
        raise errdefs.InvalidArgument("sandbox.Runtime.Name field is immutable: invalid argument")
    made = _copy(have)
    for path in paths or _CHANGEABLE:
        head, _, key = path.partition(".")
        if head == "labels" and key:
            made.labels[key] = want.labels.get(key, "")
        elif head == "extensions" and key:
            if key not in want.extensions:
                raise errdefs.InvalidArgument(f'extension "{key}" is not given: invalid argument')
            made.extensions[key] = want.extensions[key]
        elif path in _CHANGEABLE:
            setattr(made, path, getattr(want, path))
        else:
            raise errdefs.InvalidArgument(
                f'cannot update "{path}" field on sandbox "{want.sandbox_id}": invalid argument'
            )
    return made


def _columns(sandbox: Sandbox) -> tuple[object, ...]:
    return sandbox.sandbox_id, labels.dump(sandbox.labels), bytes(sandbox)


def _lookup(sandbox: Sandbox) -> filters.Lookup:
    def lookup(path: Sequence[str]) -> str | None:
        if path[0] == "id":
            return sandbox.sandbox_id
        if list(path) == ["runtime", "name"]:
            return _runtime(sandbox).name
        if path[0] == "labels":
            return filters.labels_at(path[1:], sandbox.labels)
        return None

    return lookup

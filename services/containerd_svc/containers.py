"""Containers: the records of what could run. A container without a task uses no process."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import errdefs
from pb.containerd.events import (
    ContainerCreate,
    ContainerCreateRuntime,
    ContainerDelete,
    ContainerUpdate,
)
from pb.google.protobuf import Any as AnyMessage
from storage.database import Database

from containerd_svc import filters, identifiers, labels, namespaces
from containerd_svc.events import Events, Recorder

MIGRATION = """
CREATE TABLE containers (
  namespace TEXT NOT NULL, id TEXT NOT NULL, labels TEXT NOT NULL, image TEXT NOT NULL,
  runtime TEXT NOT NULL, runtime_options BLOB, spec BLOB NOT NULL, snapshotter TEXT NOT NULL, snapshot_key
  TEXT NOT NULL, extensions TEXT NOT NULL, sandbox TEXT NOT NULL, created_at INTEGER NOT NULL, updated_at
  INTEGER NOT NULL,
  PRIMARY KEY (namespace, id)) WITHOUT ROWID;
"""

_COLUMNS = (
    "id, labels, image, runtime, runtime_options, spec, snapshotter, snapshot_key, extensions, sandbox, "
    "created_at, updated_at"
)

_MARKS = f"({','.join('?' * 13)})"


@dataclass(frozen=True)
class Container:
    """One record; times in nanoseconds since 1970. `spec` is the OCI spec, its value JSON."""

    id: str
    runtime: str
    spec: AnyMessage | None
    labels: Mapping[str, str] = field(default_factory=dict)
    image: str = ""
    runtime_options: AnyMessage | None = None
    snapshotter: str = ""
    snapshot_key: str = ""
    extensions: Mapping[str, AnyMessage] = field(default_factory=dict)
    sandbox: str = ""
    created_at: int = 0
    updated_at: int = 0


# Called within the transaction of an update, with the record as it was and as it becomes.
UpdateHook = Callable[[sqlite3.Connection, Recorder, str, Container, Container], None]


class Containers:
    """The containers of all namespaces. Every change is durable when it returns, by one commit."""

    def __init__(self, database: Database, events: Events, on_update: UpdateHook | None = None) -> None:
        self._database = database
        self._events = events
        self._on_update = on_update

    async def get(self, namespace: str, container_id: str) -> Container:
        """Raises NotFound."""
        return await self._database.read(lambda connection: load(connection, namespace, container_id))

    async def list(self, namespace: str, wanted: Sequence[str] = ()) -> list[Container]:
        """Those that match the filters (id, image, runtime.name, labels), by id. Raises InvalidArgument."""
        match = filters.parse(wanted)

        def select(connection: sqlite3.Connection) -> list[Container]:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM containers WHERE namespace=? ORDER BY id", (namespace,)
            )
            return [_container(row) for row in rows]

        return [found for found in await self._database.read(select) if match(_lookup(found))]

    async def labelled(self, label: str) -> Sequence[tuple[str, Container]]:
        """(namespace, record) of all containers that have a label, in every namespace."""

        def select(connection: sqlite3.Connection) -> Sequence[tuple[str, Container]]:
            rows = connection.execute(f"SELECT namespace, {_COLUMNS} FROM containers").fetchall()
            return [(row[0], _container(row[1:])) for row in rows if label in labels.load(row[2])]

        return await self._database.read(select)

    async def create(self, namespace: str, wanted: Container) -> Container:
        """Keep a new record. Raises InvalidArgument, AlreadyExists."""
        identifiers.validate(namespace)
        _validate(wanted, "create container failed validation")
        now = labels.now()
        made = dataclasses.replace(wanted, created_at=now, updated_at=now)

        def insert(connection: sqlite3.Connection, record: Recorder) -> None:
            namespaces.ensure(connection, namespace)
            done = connection.execute(
                f"INSERT OR IGNORE INTO containers (namespace, {_COLUMNS}) VALUES {_MARKS}",
                (namespace, *_values(made)),
            )
            if not done.rowcount:
                raise errdefs.AlreadyExists(f'container "{made.id}": already exists')
            runtime = ContainerCreateRuntime(name=made.runtime, options=made.runtime_options)
            record(
                namespace,
                "/containers/create",
                ContainerCreate(id=made.id, image=made.image, runtime=runtime),
            )

        await self._events.transact(insert)
        return made

    async def update(self, namespace: str, wanted: Container, paths: Sequence[str]) -> Container:
        """Replace what may change, or only what `paths` name; returns the record. Raises InvalidArgument,
        NotFound."""
        if not wanted.id:
            raise errdefs.InvalidArgument("must specify a container id: invalid argument")

        def change(connection: sqlite3.Connection, record: Recorder) -> Container:
            have = load(connection, namespace, wanted.id)
            made = dataclasses.replace(_masked(have, wanted, paths), updated_at=labels.now())
            _validate(made, "update failed validation")
            connection.execute(
                f"REPLACE INTO containers (namespace, {_COLUMNS}) VALUES {_MARKS}",
                (namespace, *_values(made)),
            )
            record(
                namespace,
                "/containers/update",
                ContainerUpdate(
                    id=made.id, image=made.image, labels=dict(made.labels), snapshot_key=made.snapshot_key
                ),
            )
            if self._on_update is not None:
                self._on_update(connection, record, namespace, have, made)
            return made

        return await self._events.transact(change)

    async def delete(self, namespace: str, container_id: str) -> None:
        """Forget a record. Raises NotFound."""

        def remove(connection: sqlite3.Connection, record: Recorder) -> None:
            done = connection.execute(
                "DELETE FROM containers WHERE namespace=? AND id=?", (namespace, container_id)
            )
            if not done.rowcount:
                raise errdefs.NotFound(f"container {container_id}: not found")
            record(namespace, "/containers/delete", ContainerDelete(id=container_id))

        await self._events.transact(remove)


def load(connection: sqlite3.Connection, namespace: str, container_id: str) -> Container:
    """Within a read or a write: one record. Raises NotFound."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM containers WHERE namespace=? AND id=?", (namespace, container_id)
    ).fetchone()
    if row is None:
        raise errdefs.NotFound(f'container "{container_id}" in namespace "{namespace}": not found')
    return _container(row)


def _validate(container: Container, lead: str) -> None:
    identifiers.validate(container.id, f"{lead}: container.ID")
    if "" in container.extensions:
        raise errdefs.InvalidArgument(
            f"{lead}: container.Extension keys must not be zero-length: invalid argument"
        )
    labels.validate(container.labels)
    if not container.runtime:
        raise errdefs.InvalidArgument(f"{lead}: container.Runtime.Name must be set: invalid argument")
    if container.spec is None:
        raise errdefs.InvalidArgument(f"{lead}: container.Spec must be set: invalid argument")
    if container.snapshot_key and not container.snapshotter:
        raise errdefs.InvalidArgument(
            f"{lead}: container.Snapshotter must be set if container.SnapshotKey is set: invalid argument"
        )


def _masked(have: Container, want: Container, paths: Sequence[str]) -> Container:
    """The record after an update by a field mask; without one, of all that may change."""
    if not paths:
        if have.snapshotter != want.snapshotter:
            raise errdefs.InvalidArgument("container.Snapshotter field is immutable: invalid argument")
        if have.runtime != want.runtime:
            raise errdefs.InvalidArgument("container.Runtime.Name field is immutable: invalid argument")
        paths = ("labels", "spec", "extensions", "image", "snapshotkey")
    made = have
    for path in paths:
        head, _, key = path.partition(".")
        if head == "labels":
            kept = {**made.labels, key: want.labels.get(key, "")} if key else want.labels
            made = dataclasses.replace(made, labels=labels.kept(kept))
        elif head == "extensions":
            if key and key not in want.extensions:
                raise errdefs.InvalidArgument(f'extension "{key}" is not given: invalid argument')
            added = {**made.extensions, key: want.extensions[key]} if key else want.extensions
            made = dataclasses.replace(made, extensions=added)
        elif path == "spec":
            made = dataclasses.replace(made, spec=want.spec)
        elif path == "image":
            made = dataclasses.replace(made, image=want.image)
        elif path == "snapshotkey":
            made = dataclasses.replace(made, snapshot_key=want.snapshot_key)
        else:
            raise errdefs.InvalidArgument(f'cannot update "{path}" field on "{want.id}": invalid argument')
    return made


def _values(container: Container) -> tuple[object, ...]:
    return (
        container.id,
        labels.dump(container.labels),
        container.image,
        container.runtime,
        bytes(container.runtime_options) if container.runtime_options else None,
        bytes(container.spec or AnyMessage()),
        container.snapshotter,
        container.snapshot_key,
        labels.dump({key: bytes(value).hex() for key, value in container.extensions.items()}),
        container.sandbox,
        container.created_at,
        container.updated_at,
    )


def _container(row: tuple[Any, ...]) -> Container:
    return Container(
        id=row[0],
        labels=labels.load(row[1]),
        image=row[2],
        runtime=row[3],
        runtime_options=AnyMessage.parse(row[4]) if row[4] is not None else None,
        spec=AnyMessage.parse(row[5]),
        snapshotter=row[6],
        snapshot_key=row[7],
        extensions={
            key: AnyMessage.parse(bytes.fromhex(value)) for key, value in labels.load(row[8]).items()
        },
        sandbox=row[9],
        created_at=row[10],
        updated_at=row[11],
    )


def _lookup(container: Container) -> filters.Lookup:
    def lookup(path: Sequence[str]) -> str | None:
        if path[0] == "id":
            return container.id
        if path[0] == "image":
            return container.image or None
        if list(path) == ["runtime", "name"]:
            return container.runtime
        if path[0] == "labels":
            return filters.labels_at(path[1:], container.labels)
        return None

    return lookup

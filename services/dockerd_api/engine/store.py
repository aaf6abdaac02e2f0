"""The records of containers and execs: all in memory for readers, each change in `engine.db` as well.

Readers never touch the disk. Only the holder of a container's operation token (engine/tokens) writes its
record.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Sequence

import errdefs
from storage.database import Database

from dockerd_api.engine.events import Events, Happened
from dockerd_api.engine.model import Container, Exec, Phase

MIGRATION = """
CREATE TABLE IF NOT EXISTS containers (id TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS execs (id TEXT PRIMARY KEY, container_id TEXT NOT NULL, record TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS execs_of ON execs (container_id);
CREATE TABLE IF NOT EXISTS monitor (one INTEGER PRIMARY KEY CHECK (one = 1), cursor INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS boot (one INTEGER PRIMARY KEY CHECK (one = 1), id TEXT NOT NULL);
"""

_PUT_CONTAINER = "INSERT OR REPLACE INTO containers VALUES (?, ?)"
_PUT_EXEC = "INSERT OR REPLACE INTO execs VALUES (?, ?, ?)"
_PUT_CURSOR = (
    "INSERT INTO monitor VALUES (1, ?) ON CONFLICT (one) DO UPDATE SET cursor = max(cursor, excluded.cursor)"
)

_ID_PREFIX = re.compile(r"[0-9a-f]+\Z")


class Store:
    """Containers and execs by id and name. A change and the events that tell it are one transaction."""

    def __init__(self, database: Database, events: Events) -> None:
        self._database = database
        self._events = events
        self._containers: dict[str, Container] = {}
        self._names: dict[str, str] = {}
        self._execs: dict[str, Exec] = {}
        self._gone: dict[str, Container] = {}
        self._execs_of: dict[str, dict[str, None]] = {}
        self.cursor = 0

    @classmethod
    async def open(cls, database: Database, events: Events) -> Store:
        """Reads every record. The database has had MIGRATION applied."""
        store = cls(database, events)

        def read(connection: sqlite3.Connection) -> tuple[list[str], list[str], int]:
            containers = [row[0] for row in connection.execute("SELECT record FROM containers")]
            execs = [row[0] for row in connection.execute("SELECT record FROM execs")]
            cursor = connection.execute("SELECT cursor FROM monitor").fetchone()
            return containers, execs, cursor[0] if cursor else 0

        containers, execs, store.cursor = await database.read(read)
        for text in containers:
            record = Container.from_json(json.loads(text))
            if record.state.phase is Phase.GONE:
                store._gone[record.id] = record
            else:
                store._remember(record)
        for text in execs:
            store._remember_exec(Exec.from_json(json.loads(text)))
        return store

    # -- reading

    def all(self) -> Iterable[Container]:
        return list(self._containers.values())

    def gone(self) -> Iterable[Container]:
        """Containers that clients do not see any more, whose parts are still to be given back."""
        return list(self._gone.values())

    def get(self, container_id: str) -> Container | None:
        """By full id."""
        return self._containers.get(container_id)

    def resolve(self, ref: str) -> Container:
        """By full id, name (slash or not) or unambiguous id prefix; NotFound or InvalidArgument."""
        if not ref:
            raise errdefs.InvalidArgument("No container name or ID supplied")
        found = self._containers.get(ref)
        if found is None:
            found = self._containers.get(self._names.get(ref.removeprefix("/"), ""))
        if found is None and _ID_PREFIX.match(ref):
            matches = [c for key, c in self._containers.items() if key.startswith(ref)]
            if len(matches) > 1:
                raise errdefs.InvalidArgument(f"multiple IDs found with provided prefix: {ref}")
            found = matches[0] if matches else None
        if found is None:
            raise errdefs.NotFound(f"No such container: {ref}")
        return found

    def name_holder(self, name: str) -> str | None:
        """The id of the container that has the name."""
        return self._names.get(name)

    def exec(self, exec_id: str) -> Exec | None:
        return self._execs.get(exec_id)

    def execs_of(self, container_id: str) -> list[Exec]:
        return [self._execs[key] for key in self._execs_of.get(container_id, ())]

    # -- writing

    def reserve_name(self, name: str, container_id: str) -> None:
        """Takes the name at once, before the record exists; Conflict when another container has it."""
        holder = self._names.setdefault(name, container_id)
        if holder != container_id:
            raise errdefs.Conflict(
                f'Conflict. The container name "/{name}" is already in use by container "{holder}". '
                "You have to remove (or rename) that container to be able to reuse that name."
            )

    def release_name(self, name: str, container_id: str) -> None:
        if self._names.get(name) == container_id:
            del self._names[name]

    async def put(
        self,
        record: Container,
        *,
        durable: bool,
        cursor: int | None = None,
        execs: Sequence[Exec] = (),
        events: Sequence[Happened] = (),
    ) -> None:
        """Stores the record, then shows it to readers. In the same transaction: `cursor`, the monitor's;
        `execs`, whose change is a part of the container's; `events`, which tell the change.
        """
        text = _text(record)
        rows = [_row(run) for run in execs]
        for run in execs:
            self._remember_exec(run)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(_PUT_CONTAINER, (record.id, text))
            connection.executemany(_PUT_EXEC, rows)
            self._write_events(connection, events)
            _write_cursor(connection, cursor)

        await self._database.write(write, durable=durable)
        self._remember(record)
        if events:
            self._events.told()

    def forget(self, container_id: str) -> None:
        """Takes the container out of the readers' sight and frees its name; `bury` or `delete` makes it
        lasting.
        """
        record = self._containers.pop(container_id, None)
        if record is not None:
            self.release_name(record.name, container_id)
        for exec_id in self._execs_of.pop(container_id, ()):
            self._execs.pop(exec_id, None)

    async def bury(self, record: Container, *, durable: bool, events: Sequence[Happened]) -> None:
        """Makes the removal of a forgotten container lasting; its record, with the phase GONE, stays until
        `delete`. `events` tell it, in the same transaction.
        """
        self._gone[record.id] = record
        text = _text(record)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(_PUT_CONTAINER, (record.id, text))
            connection.execute("DELETE FROM execs WHERE container_id = ?", (record.id,))
            self._write_events(connection, events)

        await self._database.write(write, durable=durable)
        self._events.told()

    async def delete(self, container_id: str, *, durable: bool = True) -> None:
        """Removes the container's record and its execs'."""
        self.forget(container_id)
        self._gone.pop(container_id, None)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM containers WHERE id = ?", (container_id,))
            connection.execute("DELETE FROM execs WHERE container_id = ?", (container_id,))

        await self._database.write(write, durable=durable)

    async def put_exec(
        self, record: Exec, *, cursor: int | None = None, events: Sequence[Happened] = ()
    ) -> None:
        """Shows the record to readers at once and stores it as an intent, with `cursor` and `events` as
        `put` does.
        """
        row = _row(record)
        self._remember_exec(record)

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(_PUT_EXEC, row)
            self._write_events(connection, events)
            _write_cursor(connection, cursor)

        await self._database.write(write, durable=False)
        if events:
            self._events.told()

    async def delete_execs(self, exec_ids: Iterable[str]) -> None:
        gone = list(exec_ids)
        for exec_id in gone:
            record = self._execs.pop(exec_id, None)
            if record is not None:
                self._execs_of.get(record.container_id, {}).pop(exec_id, None)
        await self._write_many("DELETE FROM execs WHERE id = ?", [(exec_id,) for exec_id in gone])

    async def exchange_boot_id(self, boot_id: str) -> str:
        """Remembers the host's boot id; answers the one remembered before, "" at the first start."""

        def write(connection: sqlite3.Connection) -> str:
            row = connection.execute("SELECT id FROM boot").fetchone()
            connection.execute("INSERT OR REPLACE INTO boot VALUES (1, ?)", (boot_id,))
            return row[0] if row else ""

        return await self._database.write(write, durable=False)

    async def put_cursor(self, cursor: int) -> None:
        await self._database.write(lambda connection: _write_cursor(connection, cursor), durable=False)

    async def _write_many(self, statement: str, rows: list[tuple[str, ...]]) -> None:
        def write(connection: sqlite3.Connection) -> None:
            connection.executemany(statement, rows)

        await self._database.write(write, durable=False)

    def _write_events(self, connection: sqlite3.Connection, events: Sequence[Happened]) -> None:
        for event in events:
            self._events.record(connection, *event)

    def _remember(self, record: Container) -> None:
        old = self._containers.get(record.id)
        if old is not None and old.name != record.name:
            self.release_name(old.name, record.id)
        self._containers[record.id] = record
        self._names[record.name] = record.id

    def _remember_exec(self, record: Exec) -> None:
        self._execs[record.id] = record
        self._execs_of.setdefault(record.container_id, {})[record.id] = None


def _text(record: Container | Exec) -> str:
    return json.dumps(record.to_json(), separators=(",", ":"))


def _row(record: Exec) -> tuple[str, str, str]:
    return record.id, record.container_id, _text(record)


def _write_cursor(connection: sqlite3.Connection, cursor: int | None) -> None:
    """It only grows: of two facts that are applied beside each other, the earlier may be stored last."""
    if cursor is not None:
        connection.execute(_PUT_CURSOR, (cursor,))

"""Records that cannot be read: set aside and named at the start, so that one of them stops neither the daemon
nor a List call.

What a record's other columns say still holds, so only the column that is damaged begins anew; a container
or a sandbox without its specification is none, and goes as a whole. The table `quarantine` keeps the rows as
they were.
"""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from pb.containerd.types import Sandbox
from pb.google.protobuf import Any as AnyMessage
from storage.database import Database

from containerd_svc import labels

log = logging.getLogger(__name__)

MIGRATION = """
CREATE TABLE quarantine (at INTEGER NOT NULL, source TEXT NOT NULL, name TEXT NOT NULL, record TEXT NOT NULL);
"""


@dataclass(frozen=True)
class _Source:
    """A table: its key, its columns that hold a JSON object of strings, and those that hold a message."""

    table: str
    key: tuple[str, ...]
    objects: tuple[str, ...]
    messages: tuple[tuple[str, Callable[[bytes], object]], ...] = ()


_SOURCES = (
    _Source("namespaces", ("name",), ("labels",)),
    _Source(
        "containers",
        ("namespace", "id"),
        ("labels", "extensions"),
        (("spec", AnyMessage.parse), ("runtime_options", AnyMessage.parse)),
    ),
    _Source("images", ("namespace", "name"), ("labels", "annotations")),
    _Source("blobs", ("namespace", "digest"), ("labels",)),
    _Source("leases", ("namespace", "id"), ("labels",)),
    _Source("snapshots", ("namespace", "snapshotter", "key"), ("labels",)),
    _Source("sandboxes", ("namespace", "id"), ("labels",), (("record", Sandbox.parse),)),
)


async def set_aside(database: Database) -> list[str]:
    """Set aside what cannot be read; the names of the records."""
    found = await database.read(
        lambda connection: [list(_damaged(connection, source)) for source in _SOURCES]
    )
    if not any(found):
        return []

    def change(connection: sqlite3.Connection) -> list[str]:
        names = []
        for source, rows in zip(_SOURCES, found, strict=True):
            for row, objects, whole in rows:
                names.append(_move(connection, source, row, objects, whole=whole))
        return names

    names = await database.write(change)
    log.error("%d damaged records are set aside (table quarantine): %s", len(names), ", ".join(names))
    return names


Row = dict[str, object]


def _damaged(connection: sqlite3.Connection, source: _Source) -> list[tuple[Row, list[str], bool]]:
    """Each damaged row, the columns with damaged objects, and whether a message is damaged too."""
    cursor = connection.execute(f"SELECT * FROM {source.table}")
    columns = [column[0] for column in cursor.description]
    found = []
    for values in cursor:
        row = dict(zip(columns, values, strict=True))
        objects = [column for column in source.objects if not _is_object(row[column])]
        whole = any(not _is_message(row[column], parse) for column, parse in source.messages)
        if objects or whole:
            found.append((row, objects, whole))
    return found


def _is_object(text: object) -> bool:
    try:
        found = json.loads(str(text))
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and all(isinstance(value, str) for value in found.values())


def _is_message(data: object, parse: Callable[[bytes], object]) -> bool:
    if data is None:
        return True
    try:
        parse(data if isinstance(data, bytes) else str(data).encode())
    except Exception:  # whatever the parser says, the record cannot be read
        return False
    return True


def _move(
    connection: sqlite3.Connection, source: _Source, row: Row, objects: list[str], *, whole: bool
) -> str:
    name = " ".join(str(row[column]) for column in source.key)
    kept = {column: value.hex() if isinstance(value, bytes) else value for column, value in row.items()}
    connection.execute(
        "INSERT INTO quarantine VALUES (?,?,?,?)",
        (labels.now(), source.table, name, json.dumps(kept, default=str)),
    )
    where = " AND ".join(f"{column}=?" for column in source.key)
    key = tuple(row[column] for column in source.key)
    if whole:
        connection.execute(f"DELETE FROM {source.table} WHERE {where}", key)
    else:
        emptied = ", ".join(f"{column}='{{}}'" for column in objects)
        connection.execute(f"UPDATE {source.table} SET {emptied} WHERE {where}", key)
    return f"{source.table} {name}"

"""meta.db through versions of its schema, and with records that are damaged."""

from __future__ import annotations

import logging
import sqlite3
from functools import partial
from pathlib import Path

import pytest
from containerd_svc import quarantine
from containerd_svc.containers import Containers
from containerd_svc.events import Events
from containerd_svc.images import ImageStore
from containerd_svc.leases import Leases
from containerd_svc.namespaces import Namespaces
from containerd_svc.sandboxes import Sandboxes
from containerd_svc.schema import MIGRATIONS
from pb.google.protobuf import Any as AnyMessage
from storage.database import Database

DIGEST = "sha256:" + "a" * 64
# One record in each table of the first version.
ROWS = {
    "namespaces": ("n", '{"a": "b"}'),
    "containers": ("n", "c", "{}", "i", "r", None, bytes(AnyMessage(type_url="t")), "", "", "{}", "", 1, 1),
    "blobs": ("n", DIGEST, 1, 1, 1, "{}"),
    "leases": ("n", "l", 1, "{}"),
    "lease_resources": ("n", "l", "content", DIGEST),
    "images": ("n", "i", "{}", "m", DIGEST, 1, "{}", 1, 1),
    "snapshots": (1, "n", "overlayfs", "s", "committed", None, "{}", 1, 1, None, None, ""),
    "events": (1, "n", "/t", "type", b""),
    "daemon": ("uuid",),
}


def fill(connection: sqlite3.Connection) -> None:
    for table, values in ROWS.items():
        marks = ",".join("?" for _ in values)
        connection.execute(f"INSERT INTO {table} VALUES ({marks})", values)


def rows(connection: sqlite3.Connection, table: str) -> list[object]:
    return connection.execute(f"SELECT * FROM {table}").fetchall()


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
async def test_records_of_an_older_version_are_kept(tmp_path: Path, version: int) -> None:
    path = tmp_path / "meta.db"
    old = await Database.open(path, MIGRATIONS[:version])
    await old.write(fill)
    await old.close()
    new = await Database.open(path, MIGRATIONS)
    for table, values in ROWS.items():
        found = await new.read(partial(rows, table=table))
        assert found == [values]
    assert await quarantine.set_aside(new) == []
    assert await Sandboxes(new).list("n") == []
    assert (await Containers(new, await Events.open(new), lambda *_: None).get("n", "c")).image == "i"
    await new.close()


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("namespaces", "labels", "torn {"),
        ("containers", "labels", '["list"]'),
        ("containers", "extensions", '{"a": 1}'),
        ("images", "annotations", ""),
        ("blobs", "labels", "[" * 100_000),
        ("leases", "labels", "null"),
        ("snapshots", "labels", "x"),
    ],
)
async def test_a_damaged_column_begins_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, table: str, column: str, value: str
) -> None:
    database = await Database.open(tmp_path / "meta.db", MIGRATIONS)
    await database.write(fill)
    await database.write(lambda connection: connection.execute(f"UPDATE {table} SET {column}=?", (value,)))
    with caplog.at_level(logging.ERROR):
        (name,) = await quarantine.set_aside(database)
    assert name.startswith(table)
    assert name in caplog.text
    (row,) = await database.read(
        lambda connection: connection.execute(f"SELECT {column} FROM {table}").fetchall()
    )
    assert row == ("{}",)
    kept = await database.read(
        lambda connection: connection.execute("SELECT source, record FROM quarantine").fetchall()
    )
    assert [source for source, _ in kept] == [table]
    events = await Events.open(database)
    assert len(await ImageStore(database, events).list("n")) == 1
    assert len(await Leases(database).list("n")) == 1
    assert await Namespaces(database, events).list()
    assert await quarantine.set_aside(database) == []
    await database.close()


async def test_a_container_without_a_specification_goes_as_a_whole(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "meta.db", MIGRATIONS)
    await database.write(fill)
    await database.write(
        lambda connection: connection.execute("UPDATE containers SET spec=?", (b"\x0a\x01\xff",))
    )
    assert await quarantine.set_aside(database) == ["containers n c"]
    assert await Containers(database, await Events.open(database), lambda *_: None).list("n") == []
    await database.close()

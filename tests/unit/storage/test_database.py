"""storage.database against real files and a real process that dies."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import errdefs
import pytest
from storage.database import Database

SCHEMA = ["CREATE TABLE t (k TEXT PRIMARY KEY, v INTEGER NOT NULL)"]


def insert(key: str, value: int = 0) -> Callable[[sqlite3.Connection], int]:
    return lambda db: db.execute("INSERT INTO t VALUES (?, ?)", (key, value)).rowcount


def keys(db: sqlite3.Connection) -> list[str]:
    return [row[0] for row in db.execute("SELECT k FROM t ORDER BY k")]


async def test_what_is_written_is_read_at_once_and_after_reopening(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "a.db", SCHEMA)
    assert await database.write(insert("a")) == 1
    await database.write(insert("b"), durable=False)
    assert await database.read(keys) == ["a", "b"]
    await database.close()
    await database.close()
    with pytest.raises(errdefs.Unavailable):
        await database.read(keys)
    database = await Database.open(tmp_path / "a.db", SCHEMA)
    assert await database.read(keys) == ["a", "b"]
    await database.close()


async def test_an_exception_undoes_only_its_own_write(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "a.db", SCHEMA)

    def broken(db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO t VALUES ('broken', 1)")
        raise errdefs.NotFound("no such thing")

    results = await asyncio.gather(
        *(database.write(insert(f"k{i}"), durable=i % 2 == 0) for i in range(40)),
        database.write(broken),
        database.write(insert("k0")),
        return_exceptions=True,
    )
    assert isinstance(results[40], errdefs.NotFound)
    assert isinstance(results[41], sqlite3.IntegrityError)
    assert results[:40] == [1] * 40
    assert len(await database.read(keys)) == 40
    await database.close()


async def test_a_reader_cannot_write(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "a.db", SCHEMA)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await database.read(insert("a"))
    await database.close()


async def test_migrations_run_once_in_order_and_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await (await Database.open(path, SCHEMA)).close()
    longer = [*SCHEMA, "ALTER TABLE t ADD COLUMN w TEXT; INSERT INTO t VALUES ('x', 1, 'w')"]
    database = await Database.open(path, longer)
    assert await database.read(lambda db: db.execute("SELECT * FROM t").fetchall()) == [("x", 1, "w")]
    await database.close()
    with pytest.raises(errdefs.FailedPrecondition, match="newer version"):
        await Database.open(path, SCHEMA)


async def test_a_failing_migration_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    await (await Database.open(path, SCHEMA)).close()
    with pytest.raises(sqlite3.OperationalError):
        await Database.open(path, [*SCHEMA, "CREATE TABLE u (a); CREATE TABLE t (a)"])
    database = await Database.open(path, [*SCHEMA, "CREATE TABLE u (a)"])
    await database.close()


async def test_a_damaged_file_is_moved_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(b"this is no database at all" * 100)
    database = await Database.open(path, SCHEMA)
    assert await database.read(keys) == []
    await database.close()
    (aside,) = tmp_path.glob("a.db.corrupt-*")
    assert aside.read_bytes().startswith(b"this is no database")
    assert "moved to" in caplog.text


async def test_an_intent_does_not_wait_for_the_sync_of_others(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "a.db", SCHEMA)
    real = os.fdatasync

    def slow(fd: int) -> None:
        time.sleep(0.5)
        real(fd)

    os.fdatasync = slow  # type: ignore[assignment]
    try:
        durable = asyncio.create_task(database.write(insert("durable")))
        began = time.monotonic()
        await asyncio.sleep(0)
        await database.write(insert("intent"), durable=False)
        assert time.monotonic() - began < 0.25
        assert not durable.done()
        await durable
        assert time.monotonic() - began >= 0.5
    finally:
        os.fdatasync = real
        await database.close()


async def test_concurrent_acknowledgements_share_syncs(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "a.db", SCHEMA)
    real, count = os.fdatasync, 0

    def counted(fd: int) -> None:
        nonlocal count
        count += 1
        real(fd)

    os.fdatasync = counted  # type: ignore[assignment]
    try:
        await asyncio.gather(*(database.write(insert(f"k{i}")) for i in range(200)))
    finally:
        os.fdatasync = real
        await database.close()
    assert 1 <= count < 50


async def test_after_a_failed_sync_nothing_more_is_acknowledged(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "a.db", SCHEMA)
    real = os.fdatasync

    def failing(fd: int) -> None:
        raise OSError(5, "Input/output error")

    os.fdatasync = failing  # type: ignore[assignment]
    try:
        with pytest.raises(errdefs.DataLoss):
            await database.write(insert("a"))
    finally:
        os.fdatasync = real
    with pytest.raises(errdefs.DataLoss):
        await database.write(insert("b"))
    await database.close()


async def test_a_cancelled_writer_harms_nobody(tmp_path: Path) -> None:
    database = await Database.open(tmp_path / "a.db", SCHEMA)
    task = asyncio.create_task(database.write(insert("a")))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await database.write(insert("b"))
    assert await database.read(keys) == ["a", "b"]
    await database.close()


KILLED = """
import asyncio, os, sys, signal
from pathlib import Path
from storage.database import Database
async def main():
    d = await Database.open(Path(sys.argv[1]), [sys.argv[2]])
    for i in range(50):
        await d.write(lambda db: db.execute("INSERT INTO t VALUES (?, 0)", (f"{i:03}",)), durable=False)
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


async def test_intents_outlive_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    services = str(Path(__file__).parents[3] / "services")
    done = subprocess.run(  # noqa: ASYNC221
        [sys.executable, "-c", KILLED, str(path), SCHEMA[0]], env={"PYTHONPATH": services}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    database = await Database.open(path, SCHEMA)
    assert len(await database.read(keys)) == 50
    await database.close()

"""SQLite under asyncio: one thread writes, one thread reads, and one sync to disk covers many commits.

Every write commits to the write-ahead log without a sync of its own (an *intent*: the death of every process
leaves it). A write that must survive a power cut then waits for the sync thread, which syncs the log file
once for all commits that came before. So an intent never waits behind somebody else's sync, and concurrent
acknowledgements share one. (https://www.sqlite.org/wal.html,
https://www.sqlite.org/pragma.html#pragma_synchronous: in WAL mode FULL differs from NORMAL by exactly this
sync of the log after a commit.)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import errdefs

T = TypeVar("T")
log = logging.getLogger(__name__)

_BATCH = 256  # writes that share one transaction at most
_CHECKPOINT_AFTER_IDLE = 0.5  # seconds without a write before the log is copied back
_CHECKPOINT_PAGES = 4096  # pages of log after which SQLite copies back by itself, idle or not


class _Job:
    """One call of a function with a connection, and the future that waits for it."""

    __slots__ = ("committed", "durable", "error", "fn", "future", "loop", "result")

    def __init__(
        self,
        fn: Callable[[sqlite3.Connection], Any],
        durable: bool,
        committed: Callable[[], None] | None = None,
    ) -> None:
        self.fn = fn
        self.committed = committed
        self.durable = durable
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.result: Any = None
        self.error: BaseException | None = None

    def resolve(self) -> None:
        if self.future.done():  # the caller was cancelled
            return
        if self.error is None:
            self.future.set_result(self.result)
        else:
            self.future.set_exception(self.error)


def _deliver(jobs: Sequence[_Job]) -> None:
    """Wake the waiters of `jobs`, which all belong to one loop; a loop that is gone has nobody to wake."""

    def resolve_all() -> None:
        for job in jobs:
            job.resolve()

    if jobs:
        with contextlib.suppress(RuntimeError):
            jobs[0].loop.call_soon_threadsafe(resolve_all)


def _translated(error: BaseException) -> BaseException:
    """A fault of the disk or of the file as an error of the family; anything else as it is."""
    if not isinstance(error, sqlite3.Error):
        return error
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return errdefs.ResourceExhausted(f"no space left for the database: {error}")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return errdefs.DataLoss(f"the database is damaged: {error}")
    if code == sqlite3.SQLITE_IOERR:
        return errdefs.DataLoss(f"the database cannot be read or written: {error}")
    return error


class Database:
    """One SQLite file of this process. Functions given to `read` and `write` run in a thread and get a
    connection."""

    def __init__(
        self, path: Path, writer: sqlite3.Connection, reader: sqlite3.Connection, wal_fd: int
    ) -> None:
        self._path = path
        self._writer = writer
        self._reader = reader
        self._wal_fd = wal_fd
        self._closed = False
        self._failed: errdefs.BuoyError | None = None
        self._writes: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._reads: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._syncs: queue.SimpleQueue[list[_Job] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=target, name=f"{path.name}-{target.__name__.strip('_')}", daemon=True)
            for target in (self._write_loop, self._read_loop, self._sync_loop)
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    async def open(cls, path: Path, migrations: Sequence[str]) -> Database:
        """Open the file, made when missing, and bring its schema up to date.

        `migrations[i]` is the SQL script from schema i to i+1. Raises FailedPrecondition for a file whose
        schema is newer than the last migration. A damaged file is logged, moved aside as
        `<name>.corrupt-<time>`, and begun anew.
        """
        return await asyncio.get_running_loop().run_in_executor(None, cls._open, path, migrations)

    @classmethod
    def _open(cls, path: Path, migrations: Sequence[str]) -> Database:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            writer = _connect(path, migrations)
        except sqlite3.DatabaseError as error:
            if not isinstance(_translated(error), errdefs.DataLoss):
                raise
            aside = _move_aside(path)
            log.error("%s is damaged (%s): moved to %s, beginning anew", path, error, aside)
            writer = _connect(path, migrations)
        try:
            reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            reader.execute("PRAGMA busy_timeout=5000")
            reader.execute("PRAGMA query_only=1")
            wal_fd = os.open(f"{path}-wal", os.O_RDWR | os.O_CLOEXEC)
        except BaseException:
            writer.close()
            raise
        return cls(path, writer, reader, wal_fd)

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """What `fn(connection)` returns; it sees one snapshot, with every write that has answered, and cannot
        write."""
        result: T = await self._submit(self._reads, _Job(fn, False))
        return result

    async def write(
        self,
        fn: Callable[[sqlite3.Connection], T],
        *,
        durable: bool = True,
        committed: Callable[[], None] | None = None,
    ) -> T:
        """What `fn(connection)` returns, once committed; with `durable`, once synced to disk.

        Concurrent writes share a transaction. An exception of `fn` undoes what it did alone and is raised
        here. `fn` must not commit or begin. A cancelled caller's write may still happen.
        """
        result: T = await self._submit(self._writes, _Job(fn, durable, committed))
        return result

    async def close(self) -> None:
        """Finish what was submitted, then close the file. Calling again does nothing."""
        if self._closed:
            return
        self._closed = True
        self._writes.put(None)
        self._reads.put(None)
        await asyncio.get_running_loop().run_in_executor(None, self._join)

    def _join(self) -> None:
        for thread in self._threads:
            thread.join()
        os.close(self._wal_fd)
        self._reader.close()
        self._writer.close()

    async def _submit(self, jobs: queue.SimpleQueue[_Job | None], job: _Job) -> Any:
        if self._closed:
            raise errdefs.Unavailable(f"the database {self._path.name} is closed")
        jobs.put(job)
        return await job.future

    # The writer's thread.

    def _write_loop(self) -> None:
        dirty = False
        while True:
            try:
                # Copying the log back costs two syncs: it waits until nobody does.
                first = self._writes.get(timeout=_CHECKPOINT_AFTER_IDLE if dirty else None)
            except queue.Empty:
                dirty = False
                with contextlib.suppress(sqlite3.Error):
                    self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)")
                continue
            batch: list[_Job] = []
            stop = first is None
            if first is not None:
                batch.append(first)
            with contextlib.suppress(queue.Empty):
                while not stop and len(batch) < _BATCH:
                    job = self._writes.get_nowait()
                    if job is None:
                        stop = True
                    else:
                        batch.append(job)
            if batch:
                self._run_batch(batch)
                dirty = True
            if stop:
                self._syncs.put(None)
                return

    def _run_batch(self, batch: list[_Job]) -> None:
        try:
            if self._failed is not None:
                raise self._failed
            self._writer.execute("BEGIN IMMEDIATE")
            for job in batch:
                self._run_one(job)
            self._writer.execute("COMMIT")
        except BaseException as error:
            # A full disk or a failed commit takes the whole transaction with it.
            if self._writer.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    self._writer.execute("ROLLBACK")
            shared = _translated(error)
            for job in batch:
                job.error = job.error or shared
            _deliver(batch)
            return
        for job in batch:
            if job.committed is not None and job.error is None:
                job.committed()
        synced = [job for job in batch if job.durable and job.error is None]
        _deliver([job for job in batch if not job.durable or job.error is not None])
        if synced:
            self._syncs.put(synced)

    def _run_one(self, job: _Job) -> None:
        self._writer.execute("SAVEPOINT job")
        try:
            job.result = job.fn(self._writer)
        except BaseException as error:
            job.error = _translated(error)
            if not self._writer.in_transaction:
                raise
            self._writer.execute("ROLLBACK TO job")
        self._writer.execute("RELEASE job")

    # The sync thread.

    def _sync_loop(self) -> None:
        stop = False
        while not stop:
            jobs = self._syncs.get()
            waiting: list[_Job] = []
            while True:
                if jobs is None:
                    stop = True
                else:
                    waiting.extend(jobs)
                try:
                    jobs = self._syncs.get_nowait()
                except queue.Empty:
                    break
            if not waiting:
                continue
            try:
                if self._failed is not None:
                    raise self._failed
                os.fdatasync(self._wal_fd)
            except (OSError, errdefs.BuoyError) as error:
                # After a failed sync the kernel may have dropped the pages: nothing later can be acknowledged
                # either.
                self._failed = errdefs.DataLoss(f"{self._path} cannot be synced to disk: {error}")
                for job in waiting:
                    job.error = self._failed
            _deliver(waiting)

    # The reader's thread.

    def _read_loop(self) -> None:
        while (job := self._reads.get()) is not None:
            try:
                self._reader.execute("BEGIN")
                try:
                    job.result = job.fn(self._reader)
                finally:
                    self._reader.execute("ROLLBACK")
            except BaseException as error:
                job.error = _translated(error)
            _deliver([job])


def _connect(path: Path, migrations: Sequence[str]) -> sqlite3.Connection:
    """A connection for the writer, its file checked once per boot and brought to the newest schema,
    synced."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA busy_timeout=5000")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint={_CHECKPOINT_PAGES}")
        connection.execute("PRAGMA foreign_keys=1")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(migrations):
            raise errdefs.FailedPrecondition(
                f"{path} has schema {version}, this program knows {len(migrations)}: "
                "it was written by a newer version"
            )
        _check_once_per_boot(connection)
        for number, script in enumerate(migrations[version:], start=version + 1):
            # executescript commits whatever is open, so that the transaction must be part of the script.
            connection.executescript(f"BEGIN IMMEDIATE;\n{script}\n;PRAGMA user_version={number};COMMIT;")
        connection.execute("PRAGMA synchronous=NORMAL")
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_once_per_boot(connection: sqlite3.Connection) -> None:
    """Walk the whole file when the host has booted since the last time: a power cut is what damages files."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    connection.execute("CREATE TABLE IF NOT EXISTS storage_checked (boot TEXT NOT NULL)")
    if connection.execute("SELECT boot FROM storage_checked").fetchone() == (boot,):
        return
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        error = sqlite3.DatabaseError(verdict)
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error
    connection.executescript(
        f"BEGIN IMMEDIATE;DELETE FROM storage_checked;INSERT INTO storage_checked VALUES ('{boot}');COMMIT;"
    )


def _move_aside(path: Path) -> Path:
    """Rename the file and its log and index; returns the new name of the file."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime()) + f".{time.time_ns() % 10**9:09d}"
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.rename(f"{path}{suffix}", f"{path}{suffix}.corrupt-{stamp}")
    return path.with_name(f"{path.name}.corrupt-{stamp}")

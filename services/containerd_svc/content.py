"""The content store: blobs by digest, shared by all namespaces, each of which sees what it wrote or was
given.

Files: `content/blobs/<algorithm>/<hex>` (mode 0600) and one folder per ingest, `content/ingest/<hash>/` with
`data` and `info.json`, so that an ingest outlives the process and its offset is the file's size. Rows say
which namespace sees a blob, with labels. A blob's file is synced and in its place before its row exists; its
row is gone before its file goes. What a crash leaves between the two is removed at start. Hashing and files
are the work of threads.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import shutil
import sqlite3
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import errdefs
from linux.crashpoints import crashpoint
from pb.containerd.events import ContentCreate, ContentDelete
from storage.database import Database

from containerd_svc import filters, labels, leases, namespaces
from containerd_svc.events import Events, Recorder
from containerd_svc.ingest import Ingest, IngestFolder, check_digest, ingest_name

T = TypeVar("T")
log = logging.getLogger(__name__)

MIGRATION = """
CREATE TABLE blobs (
  namespace TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL,
  created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, labels TEXT NOT NULL,
  PRIMARY KEY (namespace, digest)) WITHOUT ROWID;
CREATE INDEX blobs_by_digest ON blobs (digest);
CREATE TABLE content_begun (at INTEGER NOT NULL);
"""

_CHUNK = 256 * 1024  # bytes of one Read message
_COLUMNS = "digest, size, created_at, updated_at, labels"


@dataclass(frozen=True)
class Blob:
    """One blob as a namespace sees it; times in nanoseconds since 1970, size in bytes."""

    digest: str
    size: int
    created_at: int
    updated_at: int
    labels: dict[str, str]


@dataclass(frozen=True)
class Status:
    """An ingest under way; times in nanoseconds since 1970."""

    ref: str
    offset: int
    total: int
    expected: str
    started_at: int
    updated_at: int


class ContentStore:
    """Blobs and ingests below `root/content`. Call `start` before use and `close` after it."""

    def __init__(self, root: Path, db: Database, events: Events) -> None:
        self._db = db
        self._events = events
        self._blobs = root / "content" / "blobs"
        self._ingests = root / "content" / "ingest"
        self._threads = concurrent.futures.ThreadPoolExecutor(4, thread_name_prefix="content")
        self._writing: dict[str, float] = {}  # ingest folder name → since when (a ref has one writer)
        # One lock a digest: its file is put in place and its row made, or its last row looked for and its
        # file removed, never both at once.
        self._file_locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def start(self) -> None:
        """Make the folders and remove what a crash left: files without a row, ingests without data.

        A file of another size than its row says is set aside, in `content/quarantine`, and its rows go, so
        that whoever needs the blob can write it again.
        """
        (self._blobs / "sha256").mkdir(mode=0o700, parents=True, exist_ok=True)
        self._ingests.mkdir(mode=0o700, parents=True, exist_ok=True)
        sizes, begun = await self._db.read(_sizes)
        lost = await self._in_thread(lambda: self._sweep(sizes, begun))
        if not begun:
            await self._db.write(
                lambda connection: connection.execute("INSERT INTO content_begun VALUES (?)", (labels.now(),))
            )
        if lost:
            log.error("%d blobs have lost their files or are damaged: %s", len(lost), ", ".join(sorted(lost)))
            await self._db.write(
                lambda connection: connection.executemany(
                    "DELETE FROM blobs WHERE digest=?", [(digest,) for digest in lost]
                )
            )

    async def close(self) -> None:
        """End the threads. Ingests under way stay and can be resumed."""
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)

    def path(self, digest: str) -> Path:
        """Where a blob's file is, whether it exists or not. Raises InvalidArgument for no digest."""
        algorithm, _, encoded = check_digest(digest).partition(":")
        return self._blobs / algorithm / encoded

    async def info(self, namespace: str, digest: str) -> Blob:
        """Raises NotFound."""
        check_digest(digest)
        return await self._db.read(lambda connection: _row(connection, namespace, digest))

    async def update(
        self, namespace: str, digest: str, wanted: Mapping[str, str], paths: Sequence[str]
    ) -> Blob:
        """Change labels (see labels.masked); anything else of a blob cannot change."""
        check_digest(digest)

        def change(connection: sqlite3.Connection) -> Blob:
            have = _row(connection, namespace, digest)
            result = labels.masked(have.labels, wanted, paths, f'content info "{digest}"')
            labels.validate(result)
            connection.execute(
                "UPDATE blobs SET labels=?, updated_at=? WHERE namespace=? AND digest=?",
                (labels.dump(result), labels.now(), namespace, digest),
            )
            return _row(connection, namespace, digest)

        return await self._db.write(change)

    async def list(self, namespace: str, wanted: Sequence[str] = ()) -> list[Blob]:
        """The blobs of a namespace that match the filters (digest, size, labels), by digest."""
        match = filters.parse(wanted)

        def select(connection: sqlite3.Connection) -> list[Blob]:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM blobs WHERE namespace=? ORDER BY digest", (namespace,)
            )
            return [_blob(row) for row in rows]

        return [blob for blob in await self._db.read(select) if match(_lookup(blob))]

    async def delete(self, namespace: str, digest: str) -> None:
        """Take the blob from the namespace; its file goes with the last one. Raises NotFound."""
        check_digest(digest)

        def remove(connection: sqlite3.Connection, record: Recorder) -> None:
            _row(connection, namespace, digest)
            connection.execute("DELETE FROM blobs WHERE namespace=? AND digest=?", (namespace, digest))
            record(namespace, "/content/delete", ContentDelete(digest=digest))

        await self._events.transact(remove)
        await self.drop_files([digest])

    async def drop_files(self, digests: Iterable[str]) -> None:
        """Remove the files of blobs that no namespace sees any more."""
        crashpoint("content.row-removed")
        for digest in digests:
            async with self._lock(digest):
                if not await self._db.read(partial(_is_seen, digest=digest)):
                    await self._in_thread(partial(self.path(digest).unlink, missing_ok=True))

    async def read(
        self, namespace: str, digest: str, offset: int = 0, size: int = 0
    ) -> AsyncIterator[tuple[int, bytes]]:
        """(position from where reading began, bytes) until `size` bytes, or the end with 0.

        Raises NotFound, and OutOfRange for an offset beyond the end.
        """
        blob = await self.info(namespace, digest)
        offset = max(offset, 0)
        if offset > blob.size:
            raise errdefs.OutOfRange(f"read past object length {blob.size} bytes")
        left = blob.size - offset
        if 0 < size < left:
            left = size
        try:
            descriptor = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise errdefs.NotFound(f"content digest {digest}: not found") from error
        try:
            done = 0
            while done < left:
                wanted = min(_CHUNK, left - done)
                data = await self._in_thread(partial(os.pread, descriptor, wanted, offset + done))
                if not data:
                    raise errdefs.DataLoss(f"content {digest} ends at {offset + done} of {blob.size} bytes")
                yield done, data
                done += len(data)
        finally:
            os.close(descriptor)

    async def status(self, namespace: str, ref: str) -> Status:
        """Raises NotFound for a ref without an ingest."""
        found = await self._in_thread(lambda: IngestFolder(self._ingests, namespace, ref).stored())
        if found is None:
            raise errdefs.NotFound(f'could not get status for ref "{ref}": not found')
        return Status(**found)

    async def statuses(self, namespace: str, wanted: Sequence[str] = ()) -> Sequence[Status]:
        """The namespace's ingests that match the filters (ref), by ref."""
        match = filters.parse(wanted)

        def collect() -> Sequence[Status]:
            found = []
            for folder in IngestFolder.all_in(self._ingests):
                stored = folder.stored()
                if folder.namespace == namespace and stored is not None:
                    found.append(Status(**stored))
            return sorted(found, key=lambda status: status.ref)

        return [status for status in await self._in_thread(collect) if match(_ref_lookup(status))]

    async def abort(self, namespace: str, ref: str) -> None:
        """Throw an ingest away. Raises NotFound, and Unavailable while somebody writes it."""
        name = ingest_name(namespace, ref)
        if name in self._writing:
            raise self._locked(ref, name)
        if not await self._in_thread(lambda: IngestFolder(self._ingests, namespace, ref).remove()):
            raise errdefs.NotFound(f"reference {ref}: not found")

    @contextlib.asynccontextmanager
    async def writer(
        self, namespace: str, ref: str, *, total: int = 0, expected: str = "", lease: str = ""
    ) -> AsyncIterator[Ingest]:
        """The ingest `ref`, begun or resumed, for one writer at a time; what is not committed stays
        resumable.

        Raises AlreadyExists when the namespace has a blob `expected`, Unavailable when `ref` is being
        written.
        """
        if not ref:
            raise errdefs.InvalidArgument("ref must not be empty: invalid argument")
        name = ingest_name(namespace, ref)
        if name in self._writing:
            raise self._locked(ref, name)
        self._writing[name] = time.time()
        try:
            shared = None
            if expected:
                shared = await self._shared(namespace, check_digest(expected), total, lease)
            if lease:
                await self._db.write(
                    lambda connection: leases.hold(connection, namespace, lease, "ingests", ref),
                    durable=False,
                )
            folder = IngestFolder(self._ingests, namespace, ref)
            ingest = await self._in_thread(lambda: Ingest.open(folder, total, expected, shared))
            ingest.run = self._in_thread
            try:
                yield ingest
            finally:
                await self._in_thread(ingest.close)
        finally:
            del self._writing[name]

    async def commit(
        self,
        namespace: str,
        ingest: Ingest,
        *,
        size: int = 0,
        expected: str = "",
        wanted: Mapping[str, str],
        lease: str = "",
    ) -> str:
        """Make a blob of the ingest: synced, verified, in its place, visible to the namespace. Returns its
        digest.

        Raises FailedPrecondition when size or digest are not what was asked for, and the ingest stays;
        AlreadyExists when the namespace has the blob, and the ingest goes.
        """
        labels.validate(wanted)

        def insert(connection: sqlite3.Connection, record: Recorder) -> bool:
            created = _insert(connection, namespace, actual, length, wanted, lease, ingest.ref)
            if created:
                record(namespace, "/content/create", ContentCreate(digest=actual, size=length))
            return created

        actual, length = await self._in_thread(lambda: ingest.seal(size, expected))
        crashpoint("content.synced")
        async with self._lock(actual):
            await self._in_thread(lambda: ingest.publish(self.path(actual)))
            crashpoint("content.renamed")
            created = await self._events.transact(insert)
        await self._in_thread(ingest.folder.remove)
        if not created:
            raise errdefs.AlreadyExists(f"content {actual}: already exists")
        return actual

    async def _shared(self, namespace: str, expected: str, total: int, lease: str) -> Path | None:
        """The file of a blob that another namespace has. Raises AlreadyExists when this one has it."""

        def look(connection: sqlite3.Connection) -> tuple[bool, int | None]:
            rows = dict(
                connection.execute("SELECT namespace, size FROM blobs WHERE digest=?", (expected,)).fetchall()
            )
            if namespace in rows:
                leases.hold(connection, namespace, lease, "content", expected)
            return namespace in rows, next(iter(rows.values()), None)

        own, size = await (self._db.write(look, durable=False) if lease else self._db.read(look))
        if own:
            raise errdefs.AlreadyExists(f"content {expected}: already exists")
        return self.path(expected) if size is not None and total in (0, size) else None

    def _locked(self, ref: str, name: str) -> errdefs.Unavailable:
        since = self._writing[name]
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(since))
        return errdefs.Unavailable(
            f"ref {ref} locked for {time.time() - since:.3f}s (since {stamp}): unavailable"
        )

    def _lock(self, digest: str) -> asyncio.Lock:
        lock = self._file_locks.get(digest)
        if lock is None:
            lock = self._file_locks[digest] = asyncio.Lock()
        return lock

    async def _in_thread(self, fn: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, fn)

    def _sweep(self, sizes: Mapping[str, int], begun: bool) -> set[str]:
        """Remove files without a row; return the digests whose rows have no file, or none of their size."""
        on_disk = {
            f"{folder.name}:{file.name}" for folder in self._blobs.iterdir() for file in folder.iterdir()
        }
        if on_disk and not begun:
            # The rows are gone, not the blobs: a database begun anew must not take the blobs with it.
            aside = self._blobs.with_name(f"blobs.unknown-{time.strftime('%Y%m%dT%H%M%S')}")
            self._blobs.rename(aside)
            (self._blobs / "sha256").mkdir(mode=0o700, parents=True)
            log.error("no record of %d blobs: moved to %s", len(on_disk), aside)
            return set()
        for digest in on_disk - sizes.keys():
            self.path(digest).unlink()
        damaged = {
            digest for digest in on_disk & sizes.keys() if self.path(digest).stat().st_size != sizes[digest]
        }
        for digest in damaged:
            aside = self._blobs.with_name("quarantine")
            aside.mkdir(mode=0o700, exist_ok=True)
            self.path(digest).rename(aside / digest.replace(":", "-"))
        for folder in IngestFolder.all_in(self._ingests):
            if folder.stored() is None:
                folder.remove()
        for entry in self._ingests.iterdir():
            if not (entry / "info.json").exists():
                shutil.rmtree(entry)
        return (sizes.keys() - on_disk) | damaged


def _sizes(connection: sqlite3.Connection) -> tuple[dict[str, int], bool]:
    """The size of each digest, and whether this database has ever served the store."""
    sizes = dict(connection.execute("SELECT digest, size FROM blobs"))
    return sizes, connection.execute("SELECT 1 FROM content_begun").fetchone() is not None


def _is_seen(connection: sqlite3.Connection, digest: str) -> bool:
    """Whether any namespace has the blob."""
    return connection.execute("SELECT 1 FROM blobs WHERE digest=? LIMIT 1", (digest,)).fetchone() is not None


def _ref_lookup(status: Status) -> filters.Lookup:
    return lambda path: status.ref if path[0] == "ref" else None


def _row(connection: sqlite3.Connection, namespace: str, digest: str) -> Blob:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM blobs WHERE namespace=? AND digest=?", (namespace, digest)
    ).fetchone()
    if row is None:
        raise errdefs.NotFound(f"content digest {digest}: not found")
    return _blob(row)


def _blob(row: tuple[str, int, int, int, str]) -> Blob:
    return Blob(row[0], row[1], row[2], row[3], labels.load(row[4]))


def _insert(
    connection: sqlite3.Connection,
    namespace: str,
    digest: str,
    size: int,
    wanted: Mapping[str, str],
    lease: str,
    ref: str,
) -> bool:
    """Make the row and hold it by the lease instead of the ingest; False when the row was there."""
    moment = labels.now()
    namespaces.ensure(connection, namespace)
    done = connection.execute(
        "INSERT OR IGNORE INTO blobs VALUES (?,?,?,?,?,?)",
        (namespace, digest, size, moment, moment, labels.dump(wanted)),
    )
    leases.hold(connection, namespace, lease, "content", digest)
    leases.release(connection, namespace, lease, "ingests", ref)
    return bool(done.rowcount)


def _lookup(blob: Blob) -> filters.Lookup:
    def lookup(path: Sequence[str]) -> str | None:
        if path[0] == "digest":
            return blob.digest
        if path[0] == "size":
            return str(blob.size)
        if path[0] == "labels":
            return filters.labels_at(path[1:], blob.labels)
        return None

    return lookup

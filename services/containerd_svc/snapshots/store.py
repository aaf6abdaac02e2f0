"""The snapshots of all namespaces: records in the database, trees below `snapshots/<number>/`.

A new one is made in the order temporary folder, row, rename, commit; a removed one loses its row first, then
its folder is renamed aside and deleted in the background. So every row has a folder, and a folder without a
row is what a crash left: it is removed at start.

A committed snapshot is not synced before Commit answers. It carries the boot in which it was made until a
syncfs has passed, soon after. A start in another boot finds those that still carry one: their files may be
incomplete. They are removed, so that they get unpacked again; one that containers stand on is renamed
instead, which frees its name.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import errdefs
from linux.crashpoints import crashpoint
from pb.containerd.events import SnapshotCommit, SnapshotPrepare, SnapshotRemove
from pb.containerd.types import Mount
from storage.database import Database

from containerd_svc import filters, labels, leases, namespaces
from containerd_svc.events import Events, Recorder
from containerd_svc.snapshots import records, trees
from containerd_svc.snapshots.drivers import ACTIVE, COMMITTED, DRIVERS, VIEW, Driver
from containerd_svc.snapshots.records import Info
from containerd_svc.syncfs import sync_file_system

T = TypeVar("T")
# Below a method named `list` the builtin cannot be named.
Mounts = list[Mount]
Chain = list[int]
log = logging.getLogger(__name__)

_NEW, _REMOVED = "new-", "rm-"


@dataclass(frozen=True)
class Usage:
    """What a snapshot itself takes, without its parents."""

    size: int
    inodes: int


class Snapshots:
    """Snapshots below `root/snapshots`. Call `start` before use and `close` after it."""

    def __init__(self, root: Path, db: Database, events: Events) -> None:
        self._db = db
        self._events = events
        self._root = root / "snapshots"
        self._boot = trees.boot_id()
        self._drivers: dict[str, Driver] = {name: driver() for name, driver in DRIVERS.items()}
        self._threads = concurrent.futures.ThreadPoolExecutor(2, thread_name_prefix="snapshots")
        # Deleting 50 trees must not keep Usage or a copy waiting.
        self._sweeper = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="snapshots-rm")
        self._background: set[asyncio.Task[None]] = set()
        self._syncing: asyncio.Task[None] | None = None
        self._closing = False

    async def start(self) -> None:
        """Make the folder and put right what a crash or a power cut left."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        damaged = await self._db.write(lambda connection: records.set_aside(connection, self._boot))
        for key in damaged:
            log.error("snapshot %s was not on disk when the host went down", key)
        known = await self._db.read(records.kinds_by_id)
        begun = await self._db.read(records.has_begun)
        leftovers = await self._in_thread(lambda: self._reconcile(known, begun))
        if not begun:
            await self._db.write(records.begin)
        self._delete(leftovers)
        if await self._db.read(records.unsynced):
            self._sync_soon()

    async def close(self) -> None:
        """Sync what is committed, let deletions stop after the tree that they are at, end the threads."""
        self._closing = True
        if self._syncing is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._syncing), 5.0)
        self._sweeper.shutdown(wait=False, cancel_futures=True)
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await asyncio.get_running_loop().run_in_executor(None, self._threads.shutdown)

    async def prepare(
        self,
        namespace: str,
        snapshotter: str,
        key: str,
        parent: str,
        wanted: Mapping[str, str] | None = None,
        *,
        lease: str = "",
    ) -> list[Mount]:
        """A new active snapshot on the committed `parent` (empty: on nothing), and the mounts that show it.

        Raises NotFound for the parent, AlreadyExists for the key, InvalidArgument for a parent that is
        active.
        """
        return await self._create(namespace, snapshotter, ACTIVE, key, parent, wanted or {}, lease)

    async def view(
        self,
        namespace: str,
        snapshotter: str,
        key: str,
        parent: str,
        wanted: Mapping[str, str] | None = None,
        *,
        lease: str = "",
    ) -> list[Mount]:
        """A read-only look at the committed `parent`; errors as of `prepare`."""
        return await self._create(namespace, snapshotter, VIEW, key, parent, wanted or {}, lease)

    async def mounts(self, namespace: str, snapshotter: str, key: str) -> list[Mount]:
        """The mounts of an active snapshot or a view. Raises NotFound; FailedPrecondition for a committed
        one.
        """
        driver = self._driver(snapshotter)

        def look(connection: sqlite3.Connection) -> tuple[records.Row, list[int]]:
            row = records.find(connection, namespace, snapshotter, key)
            return row, records.chain(connection, row.parent_id)

        row, chain = await self._db.read(look)
        if row.info.kind == COMMITTED:
            raise errdefs.FailedPrecondition(
                f"requested snapshot {key} not active or view: failed precondition"
            )
        return driver.mounts(self._folder(row.id), row.info.kind, self._files(chain))

    async def commit(
        self,
        namespace: str,
        snapshotter: str,
        name: str,
        key: str,
        wanted: Mapping[str, str] | None = None,
        *,
        parent: str = "",
        lease: str = "",
    ) -> None:
        """Turn the active snapshot `key` into the committed `name`; its labels become `wanted`. One that was
        made on nothing is put on `parent`.

        Raises NotFound for the key, AlreadyExists for the name, FailedPrecondition unless it is active,
        NotImplementedHere for a parent where the snapshotter does not rebase.
        """
        driver = self._driver(snapshotter)
        if not name:
            raise errdefs.InvalidArgument("snapshot name is empty: invalid argument")
        labels.validate(wanted or {})

        def change(connection: sqlite3.Connection, record: Recorder) -> None:
            number, below = records.commit(
                connection, namespace, snapshotter, name, key, wanted or {}, parent, self._boot
            )
            if below and not driver.rebases:
                raise errdefs.NotImplementedHere(
                    f"snapshotter {snapshotter} does not rebase: not implemented"
                )
            if below:
                driver.rebase(self._folder(number), self._files(below))
            leases.release(connection, namespace, lease, f"snapshots/{snapshotter}", key)
            leases.hold(connection, namespace, lease, f"snapshots/{snapshotter}", name)
            record(namespace, "/snapshot/commit", SnapshotCommit(key=key, name=name, snapshotter=snapshotter))

        await self._events.transact(change)
        crashpoint("snapshots.committed")
        self._sync_soon()

    async def remove(self, namespace: str, snapshotter: str, key: str) -> None:
        """Forget the snapshot, durably; its files go in the background. Raises NotFound; FailedPrecondition
        while another stands on it.
        """
        self._driver(snapshotter)

        def change(connection: sqlite3.Connection, record: Recorder) -> int:
            number = records.remove(connection, namespace, snapshotter, key)
            record(namespace, "/snapshot/remove", SnapshotRemove(key=key, snapshotter=snapshotter))
            return number

        number = await self._events.transact(change)
        crashpoint("snapshots.row-removed")
        await self.discard([number])

    def rebases(self, snapshotter: str) -> bool:
        """Whether `commit` can put a snapshot on a parent. Raises InvalidArgument for no snapshotter."""
        return self._driver(snapshotter).rebases

    async def folders(self, namespace: str, snapshotter: str, name: str) -> Sequence[str]:
        """The folders of a committed snapshot and of those below it, the nearest first. Raises NotFound."""

        def look(connection: sqlite3.Connection) -> list[int]:
            return records.parent_chain(connection, namespace, snapshotter, name)[1]

        return [str(path) for path in self._files(await self._db.read(look))]

    async def stat(self, namespace: str, snapshotter: str, key: str) -> Info:
        """Raises NotFound."""
        self._driver(snapshotter)
        row = await self._db.read(lambda connection: records.find(connection, namespace, snapshotter, key))
        return row.info

    async def update(
        self, namespace: str, snapshotter: str, key: str, wanted: Mapping[str, str], paths: Sequence[str]
    ) -> Info:
        """Change labels (see labels.masked). Raises NotFound, InvalidArgument."""
        self._driver(snapshotter)

        def change(connection: sqlite3.Connection) -> Info:
            row = records.find(connection, namespace, snapshotter, key)
            result = labels.masked(row.info.labels, wanted, paths, f'snapshot "{key}"')
            labels.validate(result)
            records.relabel(connection, row.id, result)
            return records.find(connection, namespace, snapshotter, key).info

        return await self._db.write(change)

    async def list(self, namespace: str, snapshotter: str, wanted: Sequence[str] = ()) -> list[Info]:
        """The snapshots that match the filters (kind, name, parent, labels), by name."""
        self._driver(snapshotter)
        match = filters.parse(wanted)
        found = await self._db.read(lambda connection: records.list_(connection, namespace, snapshotter))
        return [info for info in found if match(records.lookup(info))]

    async def usage(self, namespace: str, snapshotter: str, key: str) -> Usage:
        """What the snapshot's own files take; counted once for a committed one. Raises NotFound."""
        self._driver(snapshotter)
        row = await self._db.read(lambda connection: records.find(connection, namespace, snapshotter, key))
        if row.usage is not None:
            return Usage(*row.usage)
        if row.info.kind == VIEW:
            return Usage(0, 0)  # it has no files of its own
        size, inodes = await self._in_thread(lambda: trees.usage(self._folder(row.id) / "fs"))
        if row.info.kind == COMMITTED:
            await self._db.write(
                lambda connection: records.set_usage(connection, row.id, size, inodes), durable=False
            )
        return Usage(size, inodes)

    async def cleanup(self, snapshotter: str) -> None:
        """Return once the files of all that is removed are deleted."""
        self._driver(snapshotter)
        known = await self._db.read(records.kinds_by_id)
        for folder in await self._in_thread(lambda: self._unknown(known)):
            await self._delete_one(folder)

    async def discard(self, ids: Iterable[int]) -> None:
        """Delete, in the background, the folders of snapshots whose rows are gone."""
        removed = []
        for number in ids:
            aside = self._root / f"{_REMOVED}{number}"
            # One rename in the parent folder: fast enough for the reply path.
            with contextlib.suppress(FileNotFoundError):
                self._folder(number).rename(aside)
                removed.append(aside)
        crashpoint("snapshots.renamed-aside")
        self._delete(removed)

    # What is behind it.

    def _driver(self, snapshotter: str) -> Driver:
        if not snapshotter:
            raise errdefs.InvalidArgument("snapshotter argument missing: invalid argument")
        try:
            return self._drivers[snapshotter]
        except KeyError:
            raise errdefs.InvalidArgument(
                f"snapshotter not loaded: {snapshotter}: invalid argument"
            ) from None

    def _folder(self, number: int) -> Path:
        return self._root / str(number)

    def _files(self, chain: Iterable[int]) -> Sequence[Path]:
        return [self._folder(number) / "fs" for number in chain]

    async def _create(
        self,
        namespace: str,
        snapshotter: str,
        kind: str,
        key: str,
        parent: str,
        wanted: Mapping[str, str],
        lease: str,
    ) -> Mounts:
        driver = self._driver(snapshotter)
        if not key:
            raise errdefs.InvalidArgument("snapshot key is empty: invalid argument")
        labels.validate(wanted)
        temporary = self._root / f"{_NEW}{secrets.token_hex(8)}"
        if driver.copies:
            # The parent cannot go meanwhile: the row that is made below would not find it, and this is
            # undone.
            _, chain = await self._db.read(
                lambda connection: records.parent_chain(connection, namespace, snapshotter, parent)
            )
            await self._in_thread(lambda: _make(driver, temporary, kind, self._files(chain)))

        def change(connection: sqlite3.Connection, record: Recorder) -> tuple[int, Chain]:
            parent_id, chain = records.parent_chain(connection, namespace, snapshotter, parent)
            if not driver.copies:
                _make(driver, temporary, kind, self._files(chain))
            crashpoint("snapshots.folder-made")
            namespaces.ensure(connection, namespace)
            number = records.insert(connection, namespace, snapshotter, kind, key, parent_id, wanted)
            leases.hold(connection, namespace, lease, f"snapshots/{snapshotter}", key)
            if kind == ACTIVE:
                made = SnapshotPrepare(key=key, parent=parent, snapshotter=snapshotter)
                record(namespace, "/snapshot/prepare", made)
            self._rename_into_place(temporary, number)
            crashpoint("snapshots.renamed")
            return number, chain

        try:
            number, chain = await self._events.transact(change)
        except BaseException:
            self._delete([temporary])
            raise
        return driver.mounts(self._folder(number), kind, self._files(chain))

    def _rename_into_place(self, temporary: Path, number: int) -> None:
        target = self._folder(number)
        try:
            temporary.rename(target)
        except OSError:
            # A commit that failed (full disk) took its row back and left its folder under the same number.
            target.rename(self._root / f"{_REMOVED}{number}-{secrets.token_hex(4)}")
            temporary.rename(target)

    def _delete(self, folders: Iterable[Path]) -> None:
        for folder in folders:
            task = asyncio.get_running_loop().create_task(self._delete_one(folder))
            self._background.add(task)
            task.add_done_callback(self._background.discard)

    async def _delete_one(self, folder: Path) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._sweeper, trees.remove, folder)
        except OSError as error:
            log.warning("cannot remove %s, trying again at the next start: %s", folder, error)
        except RuntimeError:  # closing: the next start removes it
            return

    def _sync_soon(self) -> None:
        if self._closing or (self._syncing is not None and not self._syncing.done()):
            return
        self._syncing = asyncio.get_running_loop().create_task(self._sync())

    async def _sync(self) -> None:
        """Sync until nothing is left that was committed before the sync began."""
        while numbers := await self._db.read(records.unsynced):
            try:
                await self._in_thread(lambda: sync_file_system(self._root))
            except OSError as error:
                log.error("cannot sync unpacked snapshots: %s", error)
                return
            await self._db.write(partial(records.mark_synced, numbers=numbers), durable=False)

    async def _in_thread(self, fn: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, fn)

    def _unknown(self, known: Mapping[int, str]) -> Sequence[Path]:
        """Folders without a row, but for those being made."""
        return [
            entry
            for entry in self._root.iterdir()
            if entry.name.startswith(_REMOVED) or (entry.name.isdigit() and int(entry.name) not in known)
        ]

    def _reconcile(self, known: Mapping[int, str], begun: bool) -> Sequence[Path]:
        """Make the folders agree with the rows, without deleting: what is to be deleted is renamed and
        returned.
        """
        entries = list(self._root.iterdir())
        numbers = {int(entry.name) for entry in entries if entry.name.isdigit()}
        if numbers and not begun:
            # The rows are gone, not the trees: a database begun anew must not take containers' files with it.
            aside = self._root.with_name(f"snapshots.unknown-{time.strftime('%Y%m%dT%H%M%S')}")
            self._root.rename(aside)
            self._root.mkdir(mode=0o700)
            log.error("no record of %d snapshots: moved to %s", len(numbers), aside)
            return []
        for number in known.keys() - numbers:
            # Renamed before the row was committed: only a power cut can have lost it.
            log.error("snapshot %d has lost its folder: it begins empty", number)
            folder = self._folder(number)
            folder.mkdir(mode=0o700)
            (folder / "fs").mkdir(mode=0o755)
            (folder / "work").mkdir(mode=0o711)
        leftovers = [entry for entry in entries if entry.name.startswith((_NEW, _REMOVED))]
        for number in numbers - known.keys():
            aside = self._root / f"{_REMOVED}{number}"
            self._folder(number).rename(aside)
            leftovers.append(aside)
        return leftovers


def _make(driver: Driver, folder: Path, kind: str, chain: Sequence[Path]) -> None:
    os.mkdir(folder, 0o700)
    driver.make(folder, kind, chain)

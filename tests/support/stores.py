"""containerd-svc's image side on a Unix socket of its own: real stores, real database, real wire."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from containerd_svc import content, diff, events, gc, images, leases, snapshots
from containerd_svc.api.content import ContentService
from containerd_svc.api.diff import DiffService
from containerd_svc.api.images import ImagesService
from containerd_svc.api.leases import LeasesService
from containerd_svc.api.snapshots import SnapshotsService
from containerd_svc.schema import MIGRATIONS
from rpc.grpc import Channel, Server
from storage.database import Database


@dataclass
class Stores:
    """The stores, and the socket that they are served on."""

    root: Path
    socket: str
    db: Database
    events: events.Events
    content: content.ContentStore
    snapshots: snapshots.Snapshots
    images: images.ImageStore
    leases: leases.Leases
    differ: diff.Differ
    collector: gc.Collector

    def channel(self, namespace: str = "moby") -> Channel:
        """A client of its own; the caller closes it."""
        return Channel(self.socket, namespace=namespace)


@contextlib.asynccontextmanager
async def serve_stores(root: Path) -> AsyncIterator[Stores]:
    """The stores below `root`, served at `root/c.sock`; entering again on the same root is a restart."""
    db = await Database.open(root / "meta.db", MIGRATIONS)
    exchange = await events.Events.open(db)
    blobs = content.ContentStore(root, db, exchange)
    trees = snapshots.Snapshots(root, db, exchange)
    names = images.ImageStore(db, exchange)
    held = leases.Leases(db)
    place = root / "diff"
    place.mkdir(exist_ok=True)
    differ = diff.Differ(blobs, place)
    collector = gc.Collector(db, blobs, trees, exchange)
    await blobs.start()
    await trees.start()
    server = Server(
        [
            ContentService(blobs),
            SnapshotsService(trees),
            ImagesService(names, collector),
            LeasesService(held, collector),
            DiffService(differ),
        ]
    )
    path = root / "c.sock"
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(path))
    listener.listen()
    listener.setblocking(False)
    await server.serve(listener)
    try:
        yield Stores(root, os.fspath(path), db, exchange, blobs, trees, names, held, differ, collector)
    finally:
        await server.close()
        await trees.close()
        await blobs.close()
        await db.close()

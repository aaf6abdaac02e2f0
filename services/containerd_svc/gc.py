"""The collector: removes content and snapshots of a namespace that nothing holds.

Roots are images, the snapshots of containers, what the labels of either and of sandboxes refer to, live
leases, and whatever carries the label `containerd.io/gc.root`. From a blob or snapshot the labels
`containerd.io/gc.ref.content[.…]` and `containerd.io/gc.ref.snapshot.<snapshotter>[/…]` lead on; a snapshot
leads to its parent. A lease with the label `containerd.io/gc.flat` holds what it names and nothing beyond.
Marking and the removal of rows are one transaction, so that nothing made meanwhile is lost; files go
afterwards. Rules: containerd's docs/garbage-collection.md.
"""

from __future__ import annotations

import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable

from linux.crashpoints import crashpoint
from pb.containerd.events import ContentDelete, SnapshotRemove
from storage.database import Database

from containerd_svc import labels
from containerd_svc.content import ContentStore
from containerd_svc.events import Events, Recorder
from containerd_svc.leases import Lease
from containerd_svc.snapshots import Snapshots

# ("content", digest) or ("snapshots/<snapshotter>", key)
_Node = tuple[str, str]

_ROOT = "containerd.io/gc.root"
_FLAT = "containerd.io/gc.flat"
_CONTENT_REF = "containerd.io/gc.ref.content"
_SNAPSHOT_REF = "containerd.io/gc.ref.snapshot."


class Collector:
    """Runs when a client asks for it, which is the removal of an image or a lease with `sync`, and by its
    schedule (gc_schedule).
    """

    def __init__(
        self, database: Database, content: ContentStore, snapshots: Snapshots, events: Events
    ) -> None:
        self._database = database
        self._content = content
        self._snapshots = snapshots
        self._events = events

    async def collect(self, namespace: str) -> None:
        """Remove what nothing holds; durable when it returns, files of snapshots may still be on their way
        out.
        """

        def sweep(connection: sqlite3.Connection, record: Recorder) -> tuple[list[str], list[int]]:
            digests, snapshots = _sweep(connection, namespace, time.time())
            for digest in digests:
                record(namespace, "/content/delete", ContentDelete(digest=digest))
            for kind, key in snapshots:
                snapshotter = kind.removeprefix("snapshots/")
                record(namespace, "/snapshot/remove", SnapshotRemove(key=key, snapshotter=snapshotter))
            return digests, list(snapshots.values())

        digests, trees = await self._events.transact(sweep)
        crashpoint("gc.rows-removed")
        await self._content.drop_files(digests)
        await self._snapshots.discard(trees)

    async def namespaces(self) -> list[str]:
        """Those that have something to collect."""
        return await self._database.read(
            lambda connection: [
                row[0]
                for row in connection.execute(
                    "SELECT namespace FROM blobs UNION SELECT namespace FROM snapshots"
                    " UNION SELECT namespace FROM leases"
                )
            ]
        )

    async def with_expired_leases(self, now: float) -> list[str]:
        """The namespaces in which a lease has ended by itself; `now` in seconds since 1970."""

        def select(connection: sqlite3.Connection) -> list[str]:
            rows = connection.execute("SELECT DISTINCT namespace FROM leases").fetchall()
            return [
                namespace
                for (namespace,) in rows
                if any(_expired(lease, now) for lease in _leases(connection, namespace))
            ]

        return await self._database.read(select)


def _sweep(connection: sqlite3.Connection, namespace: str, now: float) -> tuple[list[str], dict[_Node, int]]:
    """Mark from the roots, remove the other rows; the digests and the snapshots with their ids that are gone,
    children first.
    """
    edges, roots, snapshots = _graph(connection, namespace)
    leased, flat = _leased(connection, namespace, now)
    live = _reachable(edges, [*roots, *leased]) | flat
    dead_content = [name for kind, name in edges if kind == "content" and (kind, name) not in live]
    dead = [(row, node) for node, row in snapshots.items() if node not in live]
    dead_snapshots = {node: row for row, node in sorted(dead, reverse=True)}  # a child's id is higher
    connection.executemany(
        "DELETE FROM blobs WHERE namespace=? AND digest=?", [(namespace, digest) for digest in dead_content]
    )
    connection.executemany("DELETE FROM snapshots WHERE id=?", [(row,) for row in dead_snapshots.values()])
    _end_leases(connection, namespace, now)
    return dead_content, dead_snapshots


def _graph(
    connection: sqlite3.Connection, namespace: str
) -> tuple[dict[_Node, list[_Node]], list[_Node], dict[_Node, int]]:
    """What leads where, the roots but for leases, and the snapshots with their ids."""
    edges: dict[_Node, list[_Node]] = {}
    roots: list[_Node] = []
    snapshots: dict[_Node, int] = {}
    for digest, text in connection.execute(
        "SELECT digest, labels FROM blobs WHERE namespace=?", (namespace,)
    ):
        node = ("content", digest)
        found = labels.load(text)
        edges[node] = list(_references(found))
        if _ROOT in found:
            roots.append(node)
    rows = connection.execute(
        "SELECT s.id, s.snapshotter, s.key, s.labels, p.key FROM snapshots s"
        " LEFT JOIN snapshots p ON p.id = s.parent WHERE s.namespace=?",
        (namespace,),
    )
    for row, snapshotter, key, text, parent in rows:
        node = (f"snapshots/{snapshotter}", key)
        found = labels.load(text)
        edges[node] = list(_references(found))
        if parent is not None:
            edges[node].append((f"snapshots/{snapshotter}", parent))
        snapshots[node] = row
        if _ROOT in found:
            roots.append(node)
    for digest, text in connection.execute(
        "SELECT digest, labels FROM images WHERE namespace=?", (namespace,)
    ):
        roots.append(("content", digest))
        roots.extend(_references(labels.load(text)))
    for snapshotter, key, text in connection.execute(
        "SELECT snapshotter, snapshot_key, labels FROM containers WHERE namespace=?", (namespace,)
    ):
        roots.append((f"snapshots/{snapshotter}", key))
        roots.extend(_references(labels.load(text)))
    for (text,) in connection.execute("SELECT labels FROM sandboxes WHERE namespace=?", (namespace,)):
        roots.extend(_references(labels.load(text)))
    return edges, roots, snapshots


def _references(found: dict[str, str]) -> Iterable[_Node]:
    for key, value in found.items():
        if key == _CONTENT_REF or key.startswith((f"{_CONTENT_REF}.", f"{_CONTENT_REF}/")):
            yield "content", value
        elif key.startswith(_SNAPSHOT_REF):
            yield f"snapshots/{key.removeprefix(_SNAPSHOT_REF).partition('/')[0]}", value


def _leased(connection: sqlite3.Connection, namespace: str, now: float) -> tuple[list[_Node], set[_Node]]:
    """What live leases hold: with all that it leads to, and alone."""
    held: dict[str, list[_Node]] = defaultdict(list)
    for lease, kind, name in connection.execute(
        "SELECT lease, type, id FROM lease_resources WHERE namespace=?", (namespace,)
    ):
        held[lease].append((kind, name))
    whole: list[_Node] = []
    flat: set[_Node] = set()
    for found in _leases(connection, namespace):
        if _expired(found, now):
            continue
        if _FLAT in found.labels:
            flat.update(held[found.id])
        else:
            whole.extend(held[found.id])
    return whole, flat


def _end_leases(connection: sqlite3.Connection, namespace: str, now: float) -> None:
    for lease in _leases(connection, namespace):
        if _expired(lease, now):
            connection.execute("DELETE FROM leases WHERE namespace=? AND id=?", (namespace, lease.id))


def _leases(connection: sqlite3.Connection, namespace: str) -> list[Lease]:
    rows = connection.execute("SELECT id, created_at, labels FROM leases WHERE namespace=?", (namespace,))
    return [Lease(row[0], row[1], labels.load(row[2])) for row in rows]


def _expired(lease: Lease, now: float) -> bool:
    return lease.expires_at is not None and lease.expires_at <= now


def _reachable(edges: dict[_Node, list[_Node]], roots: Iterable[_Node]) -> set[_Node]:
    live: set[_Node] = set()
    waiting = list(roots)
    while waiting:
        node = waiting.pop()
        if node not in live:
            live.add(node)
            waiting.extend(edges.get(node, ()))
    return live

"""The rows of snapshots: every function runs within one transaction and touches no file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import errdefs

from containerd_svc import filters, labels
from containerd_svc.snapshots.drivers import ACTIVE, COMMITTED

# AUTOINCREMENT: a number, and so a folder, is never used again. `parent` is a number, so that renaming a
# parent moves its children along. `unsynced` is the boot in which it was committed, until its files are on
# disk.
MIGRATION = """
CREATE TABLE snapshots (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  namespace TEXT NOT NULL, snapshotter TEXT NOT NULL, key TEXT NOT NULL,
  kind TEXT NOT NULL, parent INTEGER, labels TEXT NOT NULL,
  created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
  size INTEGER, inodes INTEGER, unsynced TEXT NOT NULL DEFAULT '',
  UNIQUE (namespace, snapshotter, key));
CREATE INDEX snapshots_by_parent ON snapshots (parent);
CREATE INDEX snapshots_unsynced ON snapshots (unsynced) WHERE unsynced != '';
"""

# Before this version the collector left every snapshot in work alone; those that are there stay.
MIGRATION_KEPT = """
UPDATE snapshots SET labels = json_set(labels, '$."containerd.io/gc.root"', 'kept') WHERE kind != 'committed';
"""

_SELECT = (
    "SELECT s.id, s.parent, s.size, s.inodes, s.key, p.key, s.kind, s.labels, s.created_at, s.updated_at"
    " FROM snapshots s LEFT JOIN snapshots p ON p.id = s.parent"
)
_CHAIN = """
WITH RECURSIVE chain (id, parent, depth) AS (
  SELECT id, parent, 0 FROM snapshots WHERE id=?
  UNION ALL SELECT s.id, s.parent, depth + 1 FROM snapshots s JOIN chain ON s.id = chain.parent)
SELECT id FROM chain ORDER BY depth
"""


@dataclass(frozen=True)
class Info:
    """A snapshot as clients see it; times in nanoseconds since 1970, `parent` empty for none."""

    name: str
    parent: str
    kind: str
    labels: dict[str, str]
    created_at: int
    updated_at: int


@dataclass(frozen=True)
class Row:
    """A snapshot with its number, its parent's, and (bytes, inodes) once they are counted."""

    id: int
    parent_id: int | None
    usage: tuple[int, int] | None
    info: Info


def find(connection: sqlite3.Connection, namespace: str, snapshotter: str, key: str) -> Row:
    """Raises NotFound."""
    row = connection.execute(
        f"{_SELECT} WHERE s.namespace=? AND s.snapshotter=? AND s.key=?", (namespace, snapshotter, key)
    ).fetchone()
    if row is None:
        raise errdefs.NotFound(f"snapshot {key} does not exist: not found")
    return _row(row)


def list_(connection: sqlite3.Connection, namespace: str, snapshotter: str) -> list[Info]:
    """All of a namespace and snapshotter, by name."""
    rows = connection.execute(
        f"{_SELECT} WHERE s.namespace=? AND s.snapshotter=? ORDER BY s.key", (namespace, snapshotter)
    )
    return [_row(row).info for row in rows]


def chain(connection: sqlite3.Connection, number: int | None) -> list[int]:
    """The numbers from `number` down to the snapshot without a parent."""
    return [row[0] for row in connection.execute(_CHAIN, (number,))]


def parent_chain(
    connection: sqlite3.Connection, namespace: str, snapshotter: str, parent: str
) -> tuple[int | None, list[int]]:
    """The number of the committed snapshot `parent` and its chain; (None, []) without a name."""
    if not parent:
        return None, []
    try:
        row = find(connection, namespace, snapshotter, parent)
    except errdefs.NotFound:
        raise errdefs.NotFound(f"parent snapshot {parent} does not exist: not found") from None
    if row.info.kind != COMMITTED:
        raise errdefs.InvalidArgument(f'parent "{parent}" is not committed snapshot: invalid argument')
    return row.id, chain(connection, row.id)


def insert(
    connection: sqlite3.Connection,
    namespace: str,
    snapshotter: str,
    kind: str,
    key: str,
    parent: int | None,
    wanted: Mapping[str, str],
) -> int:
    """A new row's number. Raises AlreadyExists."""
    moment = labels.now()
    try:
        done = connection.execute(
            "INSERT INTO snapshots"
            " (namespace, snapshotter, key, kind, parent, labels, created_at, updated_at)"
            " VALUES (?,?,?,?,?,?,?,?)",
            (namespace, snapshotter, key, kind, parent, labels.dump(wanted), moment, moment),
        )
    except sqlite3.IntegrityError as error:
        raise errdefs.AlreadyExists(f'snapshot "{key}": already exists') from error
    assert done.lastrowid is not None
    return done.lastrowid


def commit(
    connection: sqlite3.Connection,
    namespace: str,
    snapshotter: str,
    name: str,
    key: str,
    wanted: Mapping[str, str],
    parent: str,
    boot: str,
) -> tuple[int, list[int]]:
    """Rename active `key` to committed `name`; `parent` puts one without a parent on it. Its number, and the
    chain that it was put on. Errors as Snapshots.commit's.
    """
    exists = connection.execute(
        "SELECT 1 FROM snapshots WHERE namespace=? AND snapshotter=? AND key=?",
        (namespace, snapshotter, name),
    ).fetchone()
    if exists:
        raise errdefs.AlreadyExists(f'snapshot "{name}": already exists')
    row = find(connection, namespace, snapshotter, key)
    if row.info.kind != ACTIVE:
        raise errdefs.FailedPrecondition(f'snapshot "{key}" is not active: failed precondition')
    parent_id, below = row.parent_id, list[int]()
    if parent and parent != row.info.parent:
        if row.info.parent:
            raise errdefs.InvalidArgument(
                f'cannot change parent of active snapshot "{key}" on commit: invalid argument'
            )
        parent_id, below = parent_chain(connection, namespace, snapshotter, parent)
    moment = labels.now()
    connection.execute(
        "UPDATE snapshots"
        " SET key=?, kind=?, parent=?, labels=?, created_at=?, updated_at=?, unsynced=? WHERE id=?",
        (name, COMMITTED, parent_id, labels.dump(wanted), moment, moment, boot, row.id),
    )
    return row.id, below


def remove(connection: sqlite3.Connection, namespace: str, snapshotter: str, key: str) -> int:
    """Remove the row; its number. Raises NotFound, FailedPrecondition with children."""
    row = find(connection, namespace, snapshotter, key)
    if connection.execute("SELECT 1 FROM snapshots WHERE parent=? LIMIT 1", (row.id,)).fetchone():
        raise errdefs.FailedPrecondition("cannot remove snapshot with child: failed precondition")
    connection.execute("DELETE FROM snapshots WHERE id=?", (row.id,))
    return row.id


def relabel(connection: sqlite3.Connection, number: int, result: Mapping[str, str]) -> None:
    """Replace the labels."""
    connection.execute(
        "UPDATE snapshots SET labels=?, updated_at=? WHERE id=?", (labels.dump(result), labels.now(), number)
    )


def set_usage(connection: sqlite3.Connection, number: int, size: int, inodes: int) -> None:
    """Remember what a committed snapshot takes."""
    connection.execute("UPDATE snapshots SET size=?, inodes=? WHERE id=?", (size, inodes, number))


def kinds_by_id(connection: sqlite3.Connection) -> dict[int, str]:
    """Every number with its kind."""
    return dict(connection.execute("SELECT id, kind FROM snapshots").fetchall())


def has_begun(connection: sqlite3.Connection) -> bool:
    """Whether this database has served the store before: a folder without a row is then a crash's."""
    row = connection.execute("SELECT 1 FROM sqlite_sequence WHERE name='snapshots'").fetchone()
    return row is not None


def begin(connection: sqlite3.Connection) -> None:
    """Note that the database serves the store; sqlite_sequence may be written to (SQLite, Autoincrement)."""
    connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('snapshots', 0)")


def unsynced(connection: sqlite3.Connection) -> list[int]:
    """The numbers of committed snapshots whose files may not be on disk yet."""
    return [row[0] for row in connection.execute("SELECT id FROM snapshots WHERE unsynced != ''")]


def mark_synced(connection: sqlite3.Connection, numbers: Iterable[int]) -> None:
    """Their files are on disk."""
    connection.executemany("UPDATE snapshots SET unsynced='' WHERE id=?", [(number,) for number in numbers])


def set_aside(connection: sqlite3.Connection, boot: str) -> list[str]:
    """Forget the committed snapshots that another boot left unsynced, and rename those with children.

    Returns their names. The name is free afterwards, so that the layer can be unpacked again.
    """
    names = []
    query = (
        "SELECT id, key FROM snapshots s WHERE unsynced NOT IN ('', ?)"
        " AND NOT EXISTS (SELECT 1 FROM snapshots c WHERE c.parent = s.id)"
    )
    while rows := connection.execute(query, (boot,)).fetchall():
        names += [key for _, key in rows]
        connection.executemany("DELETE FROM snapshots WHERE id=?", [(number,) for number, _ in rows])
    rows = connection.execute(
        "SELECT id, key FROM snapshots WHERE unsynced NOT IN ('', ?)", (boot,)
    ).fetchall()
    for number, key in rows:
        names.append(key)
        connection.execute(
            "UPDATE snapshots SET key=?, unsynced='' WHERE id=?", (f"damaged-{number} {key}", number)
        )
    return names


def lookup(info: Info) -> filters.Lookup:
    """The snapshot for containerd's filters."""

    def look(path: Sequence[str]) -> str | None:
        match path[0]:
            case "kind":
                return info.kind
            case "name":
                return info.name
            case "parent":
                return info.parent
            case "labels":
                return filters.labels_at(path[1:], info.labels)
        return None

    return look


def _row(row: tuple[int, int | None, int | None, int | None, str, str | None, str, str, int, int]) -> Row:
    usage = None if row[2] is None or row[3] is None else (row[2], row[3])
    info = Info(row[4], row[5] or "", row[6], labels.load(row[7]), row[8], row[9])
    return Row(row[0], row[1], usage, info)

"""Images: names that point at a descriptor in the content store."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field

import errdefs
from pb.containerd.services.images.v1 import ImageCreate, ImageDelete, ImageUpdate
from storage.database import Database

from containerd_svc import filters, labels, leases, namespaces
from containerd_svc.events import Events, Recorder
from containerd_svc.ingest import check_digest

MIGRATION = """
CREATE TABLE images (
  namespace TEXT NOT NULL, name TEXT NOT NULL, labels TEXT NOT NULL,
  media_type TEXT NOT NULL, digest TEXT NOT NULL, size INTEGER NOT NULL, annotations TEXT NOT NULL,
  created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
  PRIMARY KEY (namespace, name)) WITHOUT ROWID;
"""

_COLUMNS = "name, labels, media_type, digest, size, annotations, created_at, updated_at"


@dataclass(frozen=True)
class Target:
    """A descriptor: what an image's name points at; size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Image:
    """One image; times in nanoseconds since 1970."""

    name: str
    target: Target
    labels: dict[str, str]
    created_at: int = 0
    updated_at: int = 0


class ImageStore:
    """The images of all namespaces. Every change is durable when it returns."""

    def __init__(self, db: Database, events: Events) -> None:
        self._db = db
        self._events = events

    async def get(self, namespace: str, name: str) -> Image:
        """Raises NotFound."""
        return await self._db.read(lambda connection: _row(connection, namespace, name))

    async def list(self, namespace: str, wanted: Sequence[str] = ()) -> list[Image]:
        """The images that match the filters (name, target.digest, target.mediatype, labels), by name."""
        match = filters.parse(wanted)

        def select(connection: sqlite3.Connection) -> list[Image]:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM images WHERE namespace=? ORDER BY name", (namespace,)
            )
            return [_image(row) for row in rows]

        return [image for image in await self._db.read(select) if match(_lookup(image))]

    async def create(self, namespace: str, image: Image, *, at: int | None = None, lease: str = "") -> Image:
        """Make an image, dated `at` when given. Raises InvalidArgument for a bad field, AlreadyExists."""
        _validate(image)
        moment = labels.now() if at is None else at
        made = dataclasses.replace(image, created_at=moment, updated_at=moment)

        def insert(connection: sqlite3.Connection, record: Recorder) -> None:
            namespaces.ensure(connection, namespace)
            try:
                connection.execute(
                    f"INSERT INTO images (namespace, {_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?)",
                    (namespace, *_values(made)),
                )
            except sqlite3.IntegrityError as error:
                raise errdefs.AlreadyExists(f'image "{image.name}": already exists') from error
            leases.hold(connection, namespace, lease, "images", image.name)
            record(namespace, "/images/create", ImageCreate(name=made.name, labels=made.labels))

        await self._events.transact(insert)
        return made

    async def update(
        self, namespace: str, image: Image, paths: Sequence[str], *, at: int | None = None
    ) -> Image:
        """Replace the image, or with `paths` (labels, labels.<key>, target, annotations, annotations.<key>)
        only those parts. Raises NotFound, InvalidArgument.
        """
        if not image.name:
            raise errdefs.InvalidArgument("image name is required for update: invalid argument")

        def change(connection: sqlite3.Connection, record: Recorder) -> Image:
            have = _row(connection, namespace, image.name)
            made = dataclasses.replace(
                _masked(have, image, paths),
                created_at=have.created_at,
                updated_at=labels.now() if at is None else at,
            )
            _validate(made)
            connection.execute(
                f"REPLACE INTO images (namespace, {_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?)",
                (namespace, *_values(made)),
            )
            record(namespace, "/images/update", ImageUpdate(name=made.name, labels=made.labels))
            return _row(connection, namespace, image.name)

        return await self._events.transact(change)

    async def delete(self, namespace: str, name: str, *, target: str = "") -> None:
        """Remove the name. Raises NotFound, also when it does not point at the digest `target`."""

        def remove(connection: sqlite3.Connection, record: Recorder) -> None:
            have = _row(connection, namespace, name)
            if target and have.target.digest != target:
                raise errdefs.NotFound(
                    f'image "{name}" has target {have.target.digest}, not {target}: not found'
                )
            connection.execute("DELETE FROM images WHERE namespace=? AND name=?", (namespace, name))
            record(namespace, "/images/delete", ImageDelete(name=name))

        await self._events.transact(remove)


def _masked(have: Image, want: Image, paths: Sequence[str]) -> Image:
    if not paths:
        return want
    label_paths = [path for path in paths if path == "labels" or path.startswith("labels.")]
    result = have
    if label_paths:
        changed = labels.masked(have.labels, want.labels, label_paths, "")
        result = dataclasses.replace(result, labels=changed)
    for path in paths:
        target = result.target
        if path in label_paths:
            continue
        if path == "target":
            target = want.target
        elif path == "annotations":
            target = dataclasses.replace(target, annotations=dict(want.target.annotations))
        elif path.startswith("annotations."):
            key = path.removeprefix("annotations.")
            value = want.target.annotations.get(key, "")
            target = dataclasses.replace(target, annotations=target.annotations | {key: value})
        else:
            raise errdefs.InvalidArgument(
                f'cannot update "{path}" field on image "{want.name}": invalid argument'
            )
        result = dataclasses.replace(result, target=target)
    return result


def _validate(image: Image) -> None:
    if not image.name:
        raise errdefs.InvalidArgument("image name must not be empty: invalid argument")
    labels.validate(image.labels)
    check_digest(image.target.digest)
    if image.target.size <= 0:
        raise errdefs.InvalidArgument("target.Size must be greater than zero: invalid argument")
    if not image.target.media_type:
        raise errdefs.InvalidArgument("target.MediaType must be set: invalid argument")


def _row(connection: sqlite3.Connection, namespace: str, name: str) -> Image:
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM images WHERE namespace=? AND name=?", (namespace, name)
    ).fetchone()
    if row is None:
        raise errdefs.NotFound(f'image "{name}": not found')
    return _image(row)


def _image(row: tuple[str, str, str, str, int, str, int, int]) -> Image:
    target = Target(row[2], row[3], row[4], json.loads(row[5]))
    return Image(row[0], target, labels.load(row[1]), row[6], row[7])


def _values(image: Image) -> tuple[str, str, str, str, int, str, int, int]:
    target = image.target
    return (
        image.name,
        labels.dump(image.labels),
        target.media_type,
        target.digest,
        target.size,
        json.dumps(target.annotations, sort_keys=True),
        image.created_at,
        image.updated_at,
    )


def _lookup(image: Image) -> filters.Lookup:
    def lookup(path: Sequence[str]) -> str | None:
        match path[0]:
            case "name":
                return image.name
            case "target" if len(path) > 1 and path[1] == "digest":
                return image.target.digest
            case "target" if len(path) > 1 and path[1] == "mediatype":
                return image.target.media_type
            case "labels":
                return filters.labels_at(path[1:], image.labels)
            case "annotations":
                return filters.labels_at(path[1:], image.target.annotations)
        return None

    return lookup

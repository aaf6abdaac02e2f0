"""What happened in the engine, as Docker's event messages: kept in `engine.db`, told to everyone who listens.

An event's time in nanoseconds is unique and grows with each one, so that it is also the cursor of a listener.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import errdefs
from storage.database import Database

MIGRATION = """
CREATE TABLE IF NOT EXISTS events (nano INTEGER PRIMARY KEY, type TEXT NOT NULL, document TEXT NOT NULL);
"""

#: Events that `since` can reach back to. The real engine keeps 256, in memory.
KEPT = 4096
#: Events after which the older ones are deleted.
_TRIM_EVERY = 256
#: Events read from the database at once.
_PAGE = 256

_FUZZY_EVENTS = {"health_status", "exec_create", "exec_start"}
_BY_NAME = (
    "daemon", "container", "plugin", "volume", "network", "node", "service", "secret", "config",
)  # fmt: skip
_FILTERS = {"event", "type", "scope", "label", "image", *_BY_NAME}

Filters = Mapping[str, Sequence[str]]


class Happened(NamedTuple):
    """What an event is made of. `attributes` are the labels and facts that Docker shows with it."""

    type: str
    action: str
    actor_id: str
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Event:
    """`cursor` is the time in nanoseconds since 1970; `document` the API's message."""

    cursor: int
    document: dict[str, Any]

    @property
    def line(self) -> bytes:
        """The message as the API sends it, with the line's end."""
        return json.dumps(self.document, separators=(",", ":")).encode() + b"\n"


def filters_of(text: str) -> dict[str, list[str]]:
    """The query's `filters`: {"name": ["value", …]}, or the values as an object's keys, as once."""
    if not text:
        return {}
    try:
        given = json.loads(text)
    except ValueError:
        raise errdefs.InvalidArgument("invalid filter") from None
    found: dict[str, list[str]] = {}
    for name, values in given.items() if isinstance(given, dict) else [("", None)]:
        if isinstance(values, dict):
            values = [value for value, on in values.items() if on]
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise errdefs.InvalidArgument("invalid filter")
        found[name] = values
    return found


def included(document: Mapping[str, Any], filters: Filters) -> bool:
    """Whether a message passes the filters: each named one must match, one of its values is enough.

    Names and ids match by their beginning, the rest as a whole, as Docker has it. A filter without values
    lets all pass.
    """
    actor = document["Actor"]
    attributes = actor["Attributes"]
    for name, values in filters.items():
        if not values:
            continue
        match name:
            case "event":
                fuzzy = not _FUZZY_EVENTS.isdisjoint(values)
                passes = _any(values, document["Action"], prefix=fuzzy)
            case "type":
                passes = document["Type"] in values
            case "scope":
                passes = document["scope"] in values
            case "label":
                passes = all(_has_label(attributes, value) for value in values)
            case "image":
                image = attributes.get("name" if document["Type"] == "image" else "image", "")
                passes = not {actor["ID"], image, _untagged(actor["ID"]), _untagged(image)}.isdisjoint(values)
            case _ if name in _BY_NAME:
                passes = _any(values, actor["ID"], prefix=True) or _any(
                    values, attributes.get("name", ""), prefix=True
                )
            case _:
                passes = True
        if not passes:
            return False
    return True


def _any(values: Sequence[str], source: str, *, prefix: bool) -> bool:
    return source in values or (prefix and any(source.startswith(value) for value in values))


def _has_label(attributes: Mapping[str, str], wanted: str) -> bool:
    key, equals, value = wanted.partition("=")
    return key in attributes and (not equals or attributes[key] == value)


def _untagged(reference: str) -> str:
    """An image's familiar name without tag and digest."""
    name = reference.partition("@")[0]
    head, colon, tag = name.rpartition(":")
    if colon and "/" not in tag:
        name = head
    return name.removeprefix("docker.io/library/").removeprefix("docker.io/")


class Events:
    """All events of the engine, numbered as they are written, one after the other: no listener sees a later
    one first, and each reads on from the number that it has seen.
    """

    def __init__(self, database: Database, last: int) -> None:
        self._database = database
        self._last = last
        self._since_trim = 0
        self._more = asyncio.Event()

    @classmethod
    async def open(cls, database: Database) -> Events:
        """The database has had MIGRATION applied."""
        newest = await database.read(lambda c: c.execute("SELECT max(nano) FROM events").fetchone()[0])
        return cls(database, newest or 0)

    @property
    def last(self) -> int:
        """The cursor of the newest event."""
        return self._last

    async def publish(self, type: str, action: str, actor_id: str, attributes: Mapping[str, str]) -> None:
        """Store one event as an intent (docs/contracts.md) and tell the listeners.

        Attributes are the labels and facts that Docker shows with it.
        """
        await self._database.write(
            lambda connection: self.record(connection, type, action, actor_id, attributes), durable=False
        )
        self.told()

    def record(
        self,
        connection: sqlite3.Connection,
        type: str,
        action: str,
        actor_id: str,
        attributes: Mapping[str, str],
    ) -> None:
        """Write one event in the caller's transaction, so that a change and its event are one. To be called
        in the function of a `Database.write`; `told` is to follow once that has returned.
        """
        document: dict[str, Any] = {}
        if type in ("container", "image"):
            document = {"status": action, "id": actor_id}
            if type == "container" and attributes.get("image"):
                document["from"] = attributes["image"]
        nano = max(time.time_ns(), self._last + 1)
        document |= {
            "Type": type,
            "Action": action,
            "Actor": {"ID": actor_id, "Attributes": dict(sorted(attributes.items()))},
            "scope": "local",
            "time": nano // 1_000_000_000,
            "timeNano": nano,
        }
        connection.execute("INSERT INTO events VALUES (?, ?, ?)", (nano, type, json.dumps(document)))
        self._last = nano
        self._since_trim += 1
        if self._since_trim >= _TRIM_EVERY:
            self._since_trim = 0
            connection.execute(
                "DELETE FROM events WHERE nano <="
                " (SELECT nano FROM events ORDER BY nano DESC LIMIT 1 OFFSET ?)",
                (KEPT,),
            )

    def told(self) -> None:
        """Wake the listeners: events were committed."""
        self._more.set()
        self._more = asyncio.Event()

    async def iterate(
        self, *, after: int, until: int | None = None, filters: Filters | None = None
    ) -> AsyncIterator[Event]:
        """Every event later than the cursor `after`, in order, then those to come, without end.

        With `until` (nanoseconds since 1970) it ends after the last event up to then.
        """
        cursor = after
        filters = filters or {}
        while True:
            more = self._more
            batch = await self._later(cursor)
            for event in batch:
                if until is not None and event.cursor > until:
                    return
                cursor = event.cursor
                if included(event.document, filters):
                    yield event
            if batch:
                continue
            if until is None:
                await more.wait()
                continue
            left = (until - time.time_ns()) / 1e9
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await more.wait()

    async def _later(self, cursor: int) -> list[Event]:
        """The next events after the cursor."""
        rows = await self._database.read(
            lambda c: c.execute(
                "SELECT nano, document FROM events WHERE nano > ? ORDER BY nano LIMIT ?", (cursor, _PAGE)
            ).fetchall()
        )
        return [Event(nano, json.loads(text)) for nano, text in rows]

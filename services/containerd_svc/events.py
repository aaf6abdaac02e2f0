"""What happened, in one order for all subscribers, kept so that a subscriber which was away gets what it
missed.

Each envelope has a time of its own, in microseconds, greater than every one before it: the time is the
cursor. An envelope is written in the same transaction as the change that it tells, and delivered when that
transaction has committed, in the order of the times. The newest 100,000 are kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeVar

import betterproto2
import errdefs
import pb.buoy.events.v1
import pb.containerd.events  # noqa: F401 - importing a message makes it known to the pool
from pb.google.protobuf import Any as AnyMessage
from pb.message_pool import default_message_pool
from storage.database import Database

from containerd_svc import filters, identifiers

MIGRATION = """
CREATE TABLE events (
  at INTEGER PRIMARY KEY, namespace TEXT NOT NULL, topic TEXT NOT NULL, type TEXT NOT NULL, event BLOB NOT
  NULL);
CREATE TABLE events_kept_after (at INTEGER NOT NULL);
INSERT INTO events_kept_after VALUES (CAST((julianday('now') - 2440587.5) * 86400000000 AS INTEGER));
"""

T = TypeVar("T")

_KEEP = 100_000  # newest events that are kept
_TRIM_EVERY = 1_000  # events between two trims
_RECENT = 4_096  # newest events in memory, for subscribers that keep up
_PAGE = 1_000  # events that a subscriber who lags reads at once


@dataclass(frozen=True, slots=True)
class Event:
    """One envelope. `at` is its time in microseconds since 1970 and its place in the order."""

    at: int
    namespace: str
    topic: str
    type_url: str
    value: bytes

    @property
    def moment(self) -> datetime.datetime:
        """`at` as a time."""
        return datetime.datetime.fromtimestamp(self.at // 10**6, tz=datetime.UTC) + datetime.timedelta(
            microseconds=self.at % 10**6
        )


# Writes one event within a transaction: namespace, topic, message.
Recorder = Callable[[str, str, betterproto2.Message | AnyMessage], Event]


class Events:
    """The exchange: publishers write into it, subscribers follow it."""

    def __init__(self, database: Database, last: int, kept_after: int) -> None:
        self._database = database
        self._last = last  # only the writer's thread touches these three
        self._kept_after = kept_after
        self._since_trim = 0
        self._recent: deque[Event] = deque(maxlen=_RECENT)
        self._delivered = last
        self._forgotten = last  # newest event that left _recent, or was never in it
        self._subscribers: set[asyncio.Event] = set()
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def open(cls, database: Database) -> Events:
        """The exchange over a database that has MIGRATION."""

        def state(connection: sqlite3.Connection) -> tuple[int, int]:
            kept_after = connection.execute("SELECT at FROM events_kept_after").fetchone()[0]
            newest = connection.execute("SELECT max(at) FROM events").fetchone()[0]
            return max(newest or 0, kept_after), kept_after

        return cls(database, *await database.read(state))

    async def publish(self, namespace: str, topic: str, message: betterproto2.Message | AnyMessage) -> Event:
        """Write and deliver one event (an intent: it survives the death of every process).

        Raises InvalidArgument for a bad namespace or topic.
        """
        identifiers.validate(namespace, "event envelope has invalid namespace")
        identifiers.validate_topic(topic)
        return await self.transact(
            lambda connection, record: record(namespace, topic, message), durable=False
        )

    async def transact(
        self, change: Callable[[sqlite3.Connection, Recorder], T], *, durable: bool = True
    ) -> T:
        """What `change(connection, record)` returns, committed together with the events that it records.

        The events are delivered at the commit, before the sync of a durable write.
        """
        recorded: list[Event] = []

        def run(connection: sqlite3.Connection) -> T:
            def record(namespace: str, topic: str, message: betterproto2.Message | AnyMessage) -> Event:
                event = self._write(connection, namespace, topic, message)
                recorded.append(event)
                return event

            return change(connection, record)

        return await self._database.write(run, durable=durable, committed=lambda: self._committed(recorded))

    async def subscribe(self, wanted: Sequence[str] = (), after: int | None = None) -> Subscription:
        """Follow the events that match the filters, from now on, or from the first one later than `after`.

        Raises InvalidArgument for a filter that does not parse.
        """
        match = filters.parse(wanted)
        kept_after = await self._database.read(
            lambda connection: connection.execute("SELECT at FROM events_kept_after").fetchone()[0]
        )
        resumed = after is not None and kept_after <= after <= self._delivered
        cursor = after if resumed and after is not None else self._delivered
        return Subscription(self, match, cursor, resumed)

    # In the writer's thread.

    def _write(
        self,
        connection: sqlite3.Connection,
        namespace: str,
        topic: str,
        message: betterproto2.Message | AnyMessage,
    ) -> Event:
        self._last = max(self._last + 1, time.time_ns() // 1000)
        packed = packed_any(message)
        event = Event(self._last, namespace, topic, packed.type_url, packed.value)
        connection.execute(
            "INSERT INTO events VALUES (?,?,?,?,?)",
            (event.at, event.namespace, event.topic, event.type_url, event.value),
        )
        self._since_trim += 1
        if self._since_trim >= _TRIM_EVERY:
            self._since_trim = 0
            self._trim(connection)
        return event

    @staticmethod
    def _trim(connection: sqlite3.Connection) -> None:
        row = connection.execute(
            "SELECT at FROM events ORDER BY at DESC LIMIT 1 OFFSET ?", (_KEEP,)
        ).fetchone()
        if row is not None:
            connection.execute("DELETE FROM events WHERE at <= ?", row)
            connection.execute("UPDATE events_kept_after SET at = ?", row)

    def _committed(self, recorded: list[Event]) -> None:
        if recorded:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                self._loop.call_soon_threadsafe(self._deliver, recorded)

    # In the event loop.

    def _deliver(self, recorded: list[Event]) -> None:
        for event in recorded:
            if len(self._recent) == _RECENT:
                self._forgotten = self._recent[0].at
            self._recent.append(event)
        self._delivered = recorded[-1].at
        for subscriber in self._subscribers:
            subscriber.set()

    async def _after(self, cursor: int) -> list[Event]:
        """A page of events later than the cursor, or all of them when they are in memory."""
        if cursor >= self._delivered:
            return []
        if cursor >= self._forgotten:
            newest_first = takewhile(lambda event: event.at > cursor, reversed(self._recent))
            return list(newest_first)[::-1]
        limit = self._delivered  # what is committed but not yet delivered waits for its turn

        def select(connection: sqlite3.Connection) -> list[Event]:
            rows = connection.execute(
                "SELECT at, namespace, topic, type, event FROM events "
                "WHERE at > ? AND at <= ? ORDER BY at LIMIT ?",
                (cursor, limit, _PAGE),
            )
            return [Event(*row) for row in rows]

        return await self._database.read(select)


class Subscription:
    """One subscriber's place in the order. It holds no events: a slow subscriber costs no memory."""

    def __init__(self, events: Events, match: filters.Filter, cursor: int, resumed: bool) -> None:
        self._events = events
        self._match = match
        self._cursor = cursor
        # Whether every event later than the subscriber's cursor follows; else it must compare by itself.
        self.resumed = resumed

    async def follow(self) -> AsyncIterator[Event]:
        """The matching events, without end, until the caller stops asking."""
        wake = asyncio.Event()
        self._events._subscribers.add(wake)
        try:
            while True:
                wake.clear()
                page = await self._events._after(self._cursor)
                for event in page:
                    self._cursor = event.at
                    if self._match(_lookup(event)):
                        yield event
                if not page:
                    await wake.wait()
        finally:
            self._events._subscribers.discard(wake)


def packed_any(message: betterproto2.Message | AnyMessage) -> AnyMessage:
    """A message as an Any whose type_url is its full name, as containerd's typeurl has it; an Any as it
    is."""
    if isinstance(message, AnyMessage):
        return message
    url = default_message_pool.type_to_url[type(message)]
    return AnyMessage(type_url=url.rpartition("/")[2], value=bytes(message))


def unpacked(type_url: str, value: bytes) -> betterproto2.Message | None:
    """The message in an Any, or None for a type that is not known here."""
    kind = default_message_pool.url_to_type.get(f"type.googleapis.com/{type_url.rpartition('/')[2]}")
    return None if kind is None else kind.parse(value)


def _lookup(event: Event) -> filters.Lookup:
    """Where a filter finds an event's parts: namespace, topic, event.<field> and event.<map>.<key>."""

    def lookup(path: Sequence[str]) -> str | None:
        head = path[0]
        if head == "namespace":
            return event.namespace or None
        if head == "topic":
            return event.topic or None
        if head != "event" or len(path) < 2:
            return None
        message = unpacked(event.type_url, event.value)
        value = getattr(message, path[1], None)
        if isinstance(value, dict):
            return filters.labels_at(path[2:], value)
        return value if isinstance(value, str) and value and len(path) == 2 else None

    return lookup


def cursor_of(metadata: str) -> int:
    """The `buoy-events-after` of a subscriber, in microseconds. Raises InvalidArgument."""
    if not metadata.isascii() or not metadata.isdigit():
        raise errdefs.InvalidArgument(f"buoy-events-after: {metadata!r} is no number of microseconds")
    return int(metadata)

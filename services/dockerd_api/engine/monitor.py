"""The only reader of containerd's event stream.

Facts of one container are applied in their order, those of different containers beside each other, so that
one that is stuck delays no other. The cursor, stored with the effects, is the time of the last fact before
which none is unapplied; a fact that comes again after a crash finds its effect recorded (engine/exits). A
stream that does not resume (a foreign containerd) is made good by listing the tasks and comparing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

import betterproto2
import errdefs
import grpclib.const
from pb.buoy.events.v1 import LogDropped, RestartDecision
from pb.containerd.events import TaskExit, TaskOom, TaskPaused, TaskResumed, TaskStart
from pb.containerd.services.events.v1 import SubscribeRequest
from pb.containerd.types import Envelope
from rpc.grpc import Channel

from dockerd_api.engine import exits
from dockerd_api.engine.engine import Engine
from dockerd_api.engine.execs import Execs
from dockerd_api.engine.model import Fact, now_rfc3339, rfc3339
from dockerd_api.engine.tasks import is_alive

log = logging.getLogger(__name__)

_SUBSCRIBE = "/containerd.services.events.v1.Events/Subscribe"
_OURS = "buoy"  # the revision of a containerd that reads our restart labels (docs/contracts.md)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FLUSH_EVERY = 2.0  # seconds between writes of a cursor that moved without an effect

M = TypeVar("M", bound=betterproto2.Message)


class Monitor:
    """Reads facts and applies them until it is closed."""

    def __init__(self, engine: Engine, execs: Execs, channel: Channel) -> None:
        self._engine = engine
        self._execs = execs
        self._channel = channel
        self._queues: dict[str, asyncio.Queue[tuple[int, Envelope]]] = {}
        self._workers: dict[str, asyncio.Task[None]] = {}
        # Times of the facts that are not applied yet, in their order.
        self._pending: dict[int, None] = {}
        self._seen = engine.store.cursor
        self._stored = engine.store.cursor
        self._tasks: list[asyncio.Task[None]] = []
        self.subscribed = asyncio.Event()

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._run()), loop.create_task(self._flush())]

    async def close(self) -> None:
        """Stops reading, and ends what is being applied; the rest comes again at the next start."""
        for task in [*self._tasks, *self._workers.values()]:
            task.cancel()
        for task in [*self._tasks, *self._workers.values()]:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def caught_up(self, timeout: float) -> None:
        """Returns when the ends of processes that containerd knows of now are recorded, or after `timeout`
        seconds: the first client of a new process reads what is, not what was.
        """
        with contextlib.suppress(TimeoutError, errdefs.BuoyError):
            async with asyncio.timeout(timeout):
                await self.subscribed.wait()
                tasks = await self._engine.tasks.list()
                ended = [container_id for container_id, process in tasks.items() if not is_alive(process)]
                while any(self._alive(container_id) for container_id in ended):  # noqa: ASYNC110 - once a start
                    await asyncio.sleep(0.002)

    def _alive(self, container_id: str) -> bool:
        record = self._engine.store.get(container_id)
        return record is not None and record.state.alive

    async def _run(self) -> None:
        wait = 0.05
        while True:
            try:
                await self._read()
                wait = 0.05
            except (errdefs.BuoyError, OSError) as error:
                log.warning("the event stream of containerd ended: %s", error)
            except Exception:
                log.exception("the event stream of containerd ended")
            await asyncio.sleep(wait)
            wait = min(wait * 2, 1.0)

    async def _read(self) -> None:
        _, revision = await self._engine.tasks.version()
        self._engine.restarts_below = revision == _OURS
        metadata = {"buoy-events-after": str(self._low_water())}
        async with self._channel.request(
            _SUBSCRIBE,
            grpclib.const.Cardinality.UNARY_STREAM,
            SubscribeRequest,
            Envelope,
            metadata=metadata,
            timeout=math.inf,
        ) as stream:
            await stream.send_message(SubscribeRequest(filters=_FILTERS), end=True)
            await stream.recv_initial_metadata()
            resumed = (stream.initial_metadata or {}).get("buoy-events-resumed") == "1"
            self.subscribed.set()
            if not resumed:
                self._engine.spawn(self._compare())
            async for envelope in stream:
                self._take(envelope)
        raise errdefs.Unavailable("containerd closed it")

    def _take(self, envelope: Envelope) -> None:
        if envelope.namespace != self._channel.namespace or envelope.timestamp is None:
            return
        at = int((envelope.timestamp - _EPOCH).total_seconds() * 1_000_000 + 0.5)
        if at <= self._seen or envelope.topic not in _TOPICS or envelope.event is None:
            self._seen = max(self._seen, at)
            return
        self._seen = at
        subject = _subject(envelope)
        self._pending[at] = None
        queue = self._queues.get(subject)
        if queue is None:
            queue = self._queues[subject] = asyncio.Queue()
            self._workers[subject] = asyncio.get_running_loop().create_task(self._apply_all(subject, queue))
        queue.put_nowait((at, envelope))

    async def _apply_all(self, subject: str, queue: asyncio.Queue[tuple[int, Envelope]]) -> None:
        try:
            while not queue.empty():
                at, envelope = queue.get_nowait()
                try:
                    await self._apply(envelope, Fact(at, self._cursor_after(at)))
                except errdefs.BuoyError as error:
                    log.error("fact %s of %s is not applied: %s", envelope.topic, subject, error)
                except Exception:
                    log.exception("fact %s of %s is not applied", envelope.topic, subject)
                self._pending.pop(at, None)
        finally:
            del self._queues[subject], self._workers[subject]

    async def _apply(self, envelope: Envelope, fact: Fact) -> None:
        engine = self._engine
        match envelope.topic:
            case "/tasks/exit":
                exit_ = _parse(envelope, TaskExit)
                if exit_.id and exit_.id != exit_.container_id:
                    await self._execs.exited(exit_.container_id, exit_.id, exit_.exit_status, fact)
                    return
                at = rfc3339(exit_.exited_at) if exit_.exited_at else now_rfc3339()
                await exits.exited(engine, exit_.container_id, exit_.pid, exit_.exit_status, at, fact)
            case "/tasks/start":
                begun = _parse(envelope, TaskStart)
                at = rfc3339(envelope.timestamp) if envelope.timestamp else now_rfc3339()
                await exits.started_again(engine, begun.container_id, begun.pid, at, fact)
            case "/buoy/restart":
                decision = _parse(envelope, RestartDecision)
                await exits.decided(engine, decision.container_id, decision.restart, decision.count, fact)
            case "/buoy/log-dropped":
                await exits.log_dropped(engine, _parse(envelope, LogDropped).container_id, fact)
            case "/tasks/oom":
                await exits.out_of_memory(engine, _parse(envelope, TaskOom).container_id, fact)
            case "/tasks/paused":
                await exits.paused(engine, _parse(envelope, TaskPaused).container_id, True, fact)
            case "/tasks/resumed":
                await exits.paused(engine, _parse(envelope, TaskResumed).container_id, False, fact)

    def _cursor_after(self, at: int) -> int:
        """The cursor once the fact of this time is applied."""
        others = (time for time in self._pending if time != at)
        return next(others, self._seen + 1) - 1

    def _low_water(self) -> int:
        return next(iter(self._pending), self._seen + 1) - 1

    async def _flush(self) -> None:
        while True:
            await asyncio.sleep(_FLUSH_EVERY)
            cursor = self._low_water()
            if cursor > self._stored:
                self._stored = cursor
                await self._engine.store.put_cursor(cursor)

    async def _compare(self) -> None:
        """What was missed while nobody listened, by the tasks as they are."""
        for record in self._engine.store.all():
            if record.state.running:
                with contextlib.suppress(errdefs.BuoyError):
                    await exits.check(self._engine, record.id)
            for run in self._engine.store.execs_of(record.id):
                if run.running:
                    with contextlib.suppress(errdefs.BuoyError):
                        await self._execs.inspect(run.id)


_TOPICS = frozenset(
    (
        *("/tasks/exit", "/tasks/start", "/tasks/oom", "/tasks/paused", "/tasks/resumed"),
        *("/buoy/log-dropped", "/buoy/restart"),
    )
)
# Only these wake us up: a single start makes as many facts of other kinds.
_FILTERS = [f'topic=="{topic}"' for topic in sorted(_TOPICS)]
_KINDS: dict[str, Callable[[bytes], betterproto2.Message]] = {
    "/tasks/exit": TaskExit.parse,
    "/tasks/start": TaskStart.parse,
    "/tasks/oom": TaskOom.parse,
    "/tasks/paused": TaskPaused.parse,
    "/tasks/resumed": TaskResumed.parse,
    "/buoy/log-dropped": LogDropped.parse,
    "/buoy/restart": RestartDecision.parse,
}


def _subject(envelope: Envelope) -> str:
    assert envelope.event is not None
    return str(getattr(_KINDS[envelope.topic](envelope.event.value), "container_id", ""))


def _parse(envelope: Envelope, kind: type[M]) -> M:
    assert envelope.event is not None
    return kind.parse(envelope.event.value)

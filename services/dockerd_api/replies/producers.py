"""What fills each kind of long reply.

The same function begins a reply and goes on with one that an earlier process began.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import errdefs
from container_log.reader import LogOptions, LogReader

from dockerd_api.engine import journald_log
from dockerd_api.engine.model import WaitOutcome
from dockerd_api.streams.attach import PendingAttach
from dockerd_api.streams.reply import ClientGone, ReplyStream, Streams
from dockerd_api.streams.watch import LOOK, FolderWatch

if TYPE_CHECKING:
    from dockerd_api.engine.containers import Containers
    from dockerd_api.engine.events import Events

log = logging.getLogger(__name__)

_STDOUT = 1
_TORN_WAIT = 0.1  # seconds in which a record that is being written is whole
_LOOK_AT_JOURNAL = 0.2  # seconds between looks of a follower

Reader = LogReader | journald_log.JournaldReader


class ExecStarter(Protocol):
    """What is asked of the engine's execs."""

    async def start_attached(self, exec_id: str, attach: PendingAttach) -> None: ...
    def claim(self, exec_id: str) -> None: ...
    def give_up(self, exec_id: str) -> None: ...


class Producers:
    """Registers itself with the streams; `close` before the loop ends."""

    def __init__(self, streams: Streams, containers: Containers, execs: ExecStarter, events: Events) -> None:
        self._containers = containers
        self._execs = execs
        self._events = events
        self._watch = FolderWatch()
        streams.produce("wait", self.wait)
        streams.produce("logs", self.logs)
        streams.produce("events", self.events)
        streams.produce("attach", self.attach)
        streams.produce("exec", self.exec)

    def close(self) -> None:
        self._watch.close()

    async def wait(self, stream: ReplyStream) -> None:
        """params: container, condition, finished_at (of the run before the one that is waited for)."""
        container, condition = stream.params["container"], stream.params["condition"]
        try:
            record = self._containers.resolve(container)
        except errdefs.NotFound as error:
            stream.finish(wait_body(WaitOutcome(0, error.message)))
            return
        if (
            condition == "next-exit"
            and not record.state.running
            and record.state.finished_at != stream.params["finished_at"]
        ):
            # It ended between the death of the process that was asked and now.
            stream.finish(wait_body(WaitOutcome(record.state.exit_code, record.state.error)))
            return

        async def deliver(outcome: WaitOutcome) -> None:
            with contextlib.suppress(ClientGone):
                stream.finish(wait_body(outcome))

        waiter = self._containers.add_waiter(container, condition, deliver)
        if isinstance(waiter, WaitOutcome):
            await deliver(waiter)
            return
        stream.on_gone = lambda: self._containers.remove_waiter(waiter)

    async def logs(self, stream: ReplyStream) -> None:
        """params: container, path, follow, options (LogOptions)."""
        options = LogOptions.from_json(stream.params["options"])
        path = Path(stream.params["path"])
        stopped = asyncio.Event()
        waiter = None
        if stream.params["follow"]:
            waiter = self._when_stopped(stream.params["container"], stopped)
        else:
            stopped.set()
        reader = await _reader(stream, options)
        try:
            # Where the tail begins is decided once.
            stream.append(b"", reader.position)
            with self._watch.watching(path.parent) as changed:
                await self._copy(stream, reader, options, stopped, changed)
                if reader.torn and not reader.done:
                    await self._tell_torn(stream, reader)
            stream.finish()
        finally:
            reader.close()
            if waiter is not None and not isinstance(waiter, WaitOutcome):
                self._containers.remove_waiter(waiter)

    async def _copy(
        self,
        stream: ReplyStream,
        reader: Reader,
        options: LogOptions,
        stopped: asyncio.Event,
        changed: asyncio.Event,
    ) -> None:
        journald = isinstance(reader, journald_log.JournaldReader)
        look = _LOOK_AT_JOURNAL if journald else LOOK
        while True:
            await stream.room()
            changed.clear()
            # Asked before the read: what was written before the stop is read after it.
            last = stopped.is_set()
            data, end = reader.read()
            if data or not end:
                stream.append(data, reader.position)
            if reader.done:
                return
            if not end:
                await asyncio.sleep(0)
                continue
            if last or (options.until and time.time_ns() > options.until):
                return
            await _first(changed, stopped, look)
            if stopped.is_set() and journald:
                await asyncio.to_thread(journald_log.synchronise)

    async def _tell_torn(self, stream: ReplyStream, reader: Reader) -> None:
        """The log ends in bytes that are no record. Unless they are being written: say so."""
        size = reader.torn
        await asyncio.sleep(_TORN_WAIT)
        data, _ = reader.read()
        if not data and reader.torn == size:
            log.warning("a log of %s ends with %d damaged bytes", stream.params["container"], size)
            data = reader.damage(size)
        stream.append(data, reader.position)

    def _when_stopped(self, container: str, stopped: asyncio.Event) -> Any:
        async def deliver(outcome: WaitOutcome) -> None:
            stopped.set()

        try:
            waiter = self._containers.add_waiter(container, "not-running", deliver)
        except errdefs.NotFound:
            stopped.set()
            return None
        if isinstance(waiter, WaitOutcome):
            stopped.set()
        return waiter

    async def events(self, stream: ReplyStream) -> None:
        """params: after (cursor), until (nanoseconds, 0 for none), filters."""
        after = int(stream.position or stream.params["after"])
        until = stream.params["until"] or None
        async for event in self._events.iterate(after=after, until=until, filters=stream.params["filters"]):
            stream.append(event.line, str(event.cursor))
            await stream.room()
        stream.finish()

    async def attach(self, stream: ReplyStream) -> None:
        """params: container, path (of the log), attach (fields of PendingAttach)."""
        container = stream.params["container"]
        pending = _pending(stream, "")
        record = self._containers.resolve(container)
        if pending.logs and (stream.position or not record.state.alive or record.log_driver == "journald"):
            # No shim is there to replay the log: what earlier runs wrote is sent now, the rest by the shim.
            await self._replay(stream, pending)
            pending.logs = False
        await stream.flushed()
        stream.on_gone = lambda: self._containers.drop_attach(container, stream.id)
        await self._containers.add_attach(container, pending)

    async def _replay(self, stream: ReplyStream, attach: PendingAttach) -> None:
        if not stream.params["path"] and stream.params.get("driver") != "journald":
            return
        options = LogOptions(stdout=attach.stdout, stderr=attach.stderr, multiplexed=attach.multiplexed)
        reader = await _reader(stream, options)
        try:
            end = False
            while not end:
                data, end = reader.read()
                stream.append(data, reader.position)
                await stream.room()
        finally:
            reader.close()

    async def exec(self, stream: ReplyStream) -> None:
        """params: exec, attach (fields of PendingAttach)."""
        exec_id = stream.params["exec"]
        self._execs.claim(exec_id)
        try:
            await stream.flushed()
            await self._execs.start_attached(exec_id, _pending(stream, exec_id))
        except errdefs.BuoyError as error:
            if stream.gone:
                self._execs.give_up(exec_id)
                raise
            # The upgrade is answered already: the client reads it where it expects output, as from the real
            # engine.
            log.info("exec %s cannot be started: %s", exec_id, error)
            text = f"{error.message}\r\n".encode()
            framed = struct.pack(">BxxxI", _STDOUT, len(text)) + text
            stream.finish(framed if stream.params["attach"]["multiplexed"] else text)
        except asyncio.CancelledError:
            if stream.gone:  # else this process ends, and the next one goes on
                self._execs.give_up(exec_id)
            raise


async def _reader(stream: ReplyStream, options: LogOptions) -> Reader:
    """The reader of the log that a stream's params name: container, driver, path."""
    driver = stream.params.get("driver", "json-file")
    if driver != "journald":
        return LogReader(Path(stream.params["path"]), options, stream.position, driver)
    await asyncio.to_thread(journald_log.synchronise)
    return journald_log.JournaldReader(stream.params["container"], options, stream.position)


def _pending(stream: ReplyStream, exec_id: str) -> PendingAttach:
    fields = dict(stream.params["attach"])
    fields["leading_input"] = base64.b64decode(fields["leading_input"])
    return PendingAttach(
        attach_id=stream.id,
        sock=stream.sock,
        exec_id=exec_id,
        handed_over=stream.detach,
        abandon=stream.drop,
        **fields,
    )


def wait_body(outcome: WaitOutcome) -> bytes:
    """The reply to a wait."""
    body: dict[str, Any] = {"StatusCode": outcome.status_code}
    if outcome.error:
        body["Error"] = {"Message": outcome.error}
    return json.dumps(body, separators=(",", ":")).encode() + b"\n"


async def _first(one: asyncio.Event, other: asyncio.Event, timeout: float) -> None:
    """Return when one of the two is set, or after `timeout` seconds."""
    waits = [asyncio.ensure_future(one.wait()), asyncio.ensure_future(other.wait())]
    try:
        await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waits:
            task.cancel()

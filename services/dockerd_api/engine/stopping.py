"""Stopping, killing, restarting, pausing. None of them holds the container's token while it waits for an
exit.
"""

from __future__ import annotations

import asyncio
import dataclasses
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import errdefs
from linux.crashpoints import crashpoint

from dockerd_api.engine import signals
from dockerd_api.engine.engine import Engine
from dockerd_api.engine.model import Container, Phase, WaitOutcome
from dockerd_api.engine.starting import start

_DEFAULT_STOP_TIMEOUT = 10
_AFTER_KILL = 30.0  # seconds that a killed process may take to end (a stuck disk)


async def stop(engine: Engine, ref: str, *, timeout: int | None, signal_name: str = "") -> None:
    """Asks the container to end, kills it after `timeout` seconds (negative: never); NotModified when it
    does not run.

    The default is the container's own, else 10. The flag that keeps it from being restarted is durable first.
    """
    record = engine.containers.resolve(ref)
    if not record.state.running:
        raise errdefs.NotModified("")
    try:
        number = signals.parse(signal_name) if signal_name else signals.stop_signal(record.config)
    except errdefs.InvalidArgument as error:
        raise errdefs.Internal(f"cannot stop container: {ref}: {error.message}") from None
    if timeout is None:
        own = record.config.get("StopTimeout")
        timeout = _DEFAULT_STOP_TIMEOUT if own is None else int(own)
    engine.stopping.add(record.id)
    try:
        async with _exit_of(engine, record) as exited:
            await mark_stopped(engine, record)
            try:
                await _signal(engine, record, number)
                async with asyncio.timeout(None if timeout < 0 else timeout):
                    await asyncio.shield(exited)
            except (TimeoutError, errdefs.FailedPrecondition):
                await _signal(engine, record, signal.SIGKILL)
                await _end(exited, record)
    finally:
        engine.stopping.discard(record.id)


async def kill(engine: Engine, ref: str, signal_name: str) -> None:
    """Sends a signal (SIGKILL by default, and then waits for the end); Conflict when the container does not
    run.
    """
    try:
        record = engine.containers.resolve(ref)
        number = signals.parse(signal_name) if signal_name else int(signal.SIGKILL)
        if not record.state.running:
            raise errdefs.Conflict(f"container {record.id} is not running")
    except errdefs.BuoyError as error:
        raise type(error)(f"cannot kill container: {ref}: {error.message}") from None
    if number == signal.SIGKILL:
        await kill_and_wait(engine, record)
        return
    if number == signals.stop_signal(record.config):
        await mark_stopped(engine, record)
    await _signal(engine, record, number)


async def kill_and_wait(engine: Engine, record: Container) -> None:
    async with _exit_of(engine, record) as exited:
        await mark_stopped(engine, record)
        await _signal(engine, record, signal.SIGKILL)
        await _end(exited, record)


async def restart(engine: Engine, ref: str, *, timeout: int | None, signal_name: str = "") -> None:
    """Stops (when it runs) and starts."""
    record = engine.containers.resolve(ref)
    engine.kept.add(record.id)
    try:
        with suppress(errdefs.NotModified):
            await stop(engine, record.id, timeout=timeout, signal_name=signal_name)
        await start(engine, record.id, restarts=True)
    finally:
        engine.kept.discard(record.id)


async def pause(engine: Engine, ref: str) -> None:
    """Freezes every process of a running container."""
    record = engine.containers.resolve(ref)
    async with engine.tokens.hold(record.id):
        record = engine.containers.resolve(record.id)
        match record.state.phase:
            case Phase.RUNNING:
                pass
            case Phase.PAUSED:
                raise errdefs.Conflict(f"container {record.id} is already paused")
            case Phase.RESTARTING:
                raise errdefs.Conflict(
                    f"Container {record.id} is restarting, wait until the container is running"
                )
            case _:
                raise errdefs.Conflict(f"container {record.id} is not running")
        await engine.tasks.pause(record.id)
        await _put_frozen(engine, record, Phase.PAUSED, "pause")


async def unpause(engine: Engine, ref: str) -> None:
    """Thaws a paused container."""
    record = engine.containers.resolve(ref)
    async with engine.tokens.hold(record.id):
        record = engine.containers.resolve(record.id)
        if not record.state.paused:
            raise errdefs.Internal(f"Container {record.id} is not paused")
        await engine.tasks.resume(record.id)
        await _put_frozen(engine, record, Phase.RUNNING, "unpause")


async def _put_frozen(engine: Engine, record: Container, phase: Phase, action: str) -> None:
    """containerd reports the same as a fact, which is old news then."""
    frozen = dataclasses.replace(record.with_state(phase=phase), frozen_at=time.time_ns() // 1000)
    await engine.store.put(frozen, durable=True, events=[engine.happened(frozen, action)])


async def mark_stopped(engine: Engine, record: Container) -> None:
    """Records, durably and before any signal, that the container is to stay stopped."""
    async with engine.tokens.hold(record.id):
        current = engine.store.get(record.id)
        if current is None or not current.state.running:
            return
        wanted = dataclasses.replace(current, manually_stopped=True)
        if current.restart_policy[0] == "no":
            await engine.store.put(wanted, durable=False)  # a power cut ends it as well
            return
        await engine.store.put(wanted, durable=True)
        crashpoint("engine.stop.marked")
        if current.state.restarting and not engine.restarts_below:
            stopped = dataclasses.replace(wanted.with_state(phase=Phase.EXITED), network_settings={})
            told = engine.networks_happened(wanted, "disconnect")
            if record.id in engine.stopping:
                told.append(engine.happened(stopped, "stop"))
            await engine.store.put(stopped, durable=True, events=told)
            await engine.containers.exited(record.id, WaitOutcome(stopped.state.exit_code))
        elif engine.restarts_below:
            with suppress(errdefs.NotFound):
                await engine.tasks.set_label(record.id, "containerd.io/restart.explicitly-stopped", "true")


async def _signal(engine: Engine, record: Container, number: int) -> None:
    """Sends the signal; a process that is gone already is no error. A frozen one gets it when thawed."""
    try:
        # Under the token: the end is told after what brought it.
        async with engine.tokens.hold(record.id):
            current = engine.store.get(record.id)
            if current is None or not current.state.alive:
                return
            await engine.tasks.kill(record.id, number)
            await engine.publish(current, "kill", signal=str(int(number)))
    except (errdefs.NotFound, errdefs.FailedPrecondition):
        if engine.store.get(record.id) is not None:
            await engine.check_exit(record.id)
        return
    if current.state.paused and number in (signal.SIGKILL, signals.stop_signal(current.config)):
        try:
            await engine.tasks.resume(record.id)
        except (errdefs.NotFound, errdefs.FailedPrecondition):
            return


@asynccontextmanager
async def _exit_of(engine: Engine, record: Container) -> AsyncIterator[asyncio.Future[WaitOutcome]]:
    """A future that ends when the container does not run; registered before any signal is sent."""
    exited: asyncio.Future[WaitOutcome] = asyncio.get_running_loop().create_future()

    async def deliver(outcome: WaitOutcome) -> None:
        if not exited.done():
            exited.set_result(outcome)

    waiter = engine.containers.add_waiter(record.id, "not-running", deliver)
    if isinstance(waiter, WaitOutcome):
        exited.set_result(waiter)
        yield exited
        return
    try:
        yield exited
    finally:
        engine.containers.remove_waiter(waiter)


async def _end(exited: asyncio.Future[WaitOutcome], record: Container) -> None:
    try:
        async with asyncio.timeout(_AFTER_KILL):
            await asyncio.shield(exited)
    except TimeoutError:
        raise errdefs.DeadlineExceeded(
            f"cannot kill container: {record.name}: "
            "tried to kill container, but did not receive an exit event"
        ) from None

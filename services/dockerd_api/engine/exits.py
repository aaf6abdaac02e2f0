"""What follows from a fact that containerd reports about a container: its exit, its restart, its OOM kill.

Every function takes the container's token. The effect, the event that tells it, the monitor's cursor and the
fact's own time in the record are one transaction, so that a fact that comes again after a crash does nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
from typing import Any

import errdefs
from linux.crashpoints import crashpoint

from dockerd_api.engine import restarts
from dockerd_api.engine.engine import Engine
from dockerd_api.engine.events import Happened
from dockerd_api.engine.model import Container, Exec, Fact, Phase, WaitOutcome, now_rfc3339
from dockerd_api.engine.release import release_and_log
from dockerd_api.engine.removal import forget, remove_exited
from dockerd_api.engine.tasks import is_alive

log = logging.getLogger(__name__)

_KILLED = 137
_LOST = 255  # as Docker says of a container whose end nobody saw
_TOKEN = 300.0
_AT_REST = (Phase.CREATED, Phase.EXITED)
_FIRST_RETRY, _LAST_RETRY = 0.1, 10.0  # seconds between tries of a clean-up


async def exited(
    engine: Engine, container_id: str, pid: int, code: int, at: str, fact: Fact | None = None
) -> None:
    """The first process of the task ended. `pid` 0 means whichever is recorded."""
    async with engine.tokens.hold(container_id, timeout=_TOKEN):
        record = engine.store.get(container_id)
        if record is None or not record.state.alive or (pid and record.state.pid != pid):
            return
        ended = _applied(record, fact).with_state(
            pid=0,
            exit_code=code,
            finished_at=at,
            oom_killed=record.state.oom_killed or _oom_killed(engine, record),
        )
        if await _told_to_restart(engine, ended, fact):
            return
        await _finish(engine, ended, fact, died=False)


async def decided(
    engine: Engine, container_id: str, restart: bool, count: int, fact: Fact | None = None
) -> None:
    """containerd says whether it starts the task again."""
    async with engine.tokens.hold(container_id, timeout=_TOKEN):
        record = engine.store.get(container_id)
        if record is None or record.state.phase is not Phase.RESTARTING or _known(record, fact):
            return
        record = _applied(record, fact)
        if restart:
            counted = dataclasses.replace(record, restart_count=count)
            await engine.store.put(counted, durable=False, cursor=_cursor(fact))
            return
        await _finish(engine, record, fact, died=True)


async def started_again(
    engine: Engine, container_id: str, pid: int, at: str, fact: Fact | None = None
) -> None:
    """containerd started the task again by policy."""
    async with engine.tokens.hold(container_id, timeout=_TOKEN):
        record = engine.store.get(container_id)
        if record is None or record.state.phase is not Phase.RESTARTING or _known(record, fact):
            return
        running = dataclasses.replace(
            _applied(record, fact).with_state(phase=Phase.RUNNING, pid=pid, started_at=at, oom_killed=False),
            runs=record.runs + 1,
        )
        told = [engine.happened(running, "start")]
        await engine.store.put(running, durable=False, cursor=_cursor(fact), events=told)


async def out_of_memory(engine: Engine, container_id: str, fact: Fact | None = None) -> None:
    async with engine.tokens.hold(container_id, timeout=_TOKEN):
        record = engine.store.get(container_id)
        if record is None or not record.state.alive or record.state.oom_killed or _known(record, fact):
            return
        killed = _applied(record, fact).with_state(oom_killed=True)
        told = [engine.happened(killed, "oom")]
        await engine.store.put(killed, durable=False, cursor=_cursor(fact), events=told)


async def log_dropped(engine: Engine, container_id: str, fact: Fact | None = None) -> None:
    """Lines begin to be missing in the container's log: tell it as an event, which Docker has not."""
    async with engine.tokens.hold(container_id, timeout=_TOKEN):
        record = engine.store.get(container_id)
        if record is None or _known(record, fact):
            return
        told = [engine.happened(record, "log-dropped")]
        await engine.store.put(_applied(record, fact), durable=False, cursor=_cursor(fact), events=told)


async def paused(engine: Engine, container_id: str, frozen: bool, fact: Fact | None = None) -> None:
    """The task was paused or resumed, maybe by somebody else than us."""
    async with engine.tokens.hold(container_id, timeout=_TOKEN):
        record = engine.store.get(container_id)
        wanted = Phase.PAUSED if frozen else Phase.RUNNING
        if record is None or not record.state.alive or record.state.phase is wanted or _known(record, fact):
            return
        if fact is not None and fact.time <= record.frozen_at:
            return
        changed = _applied(record, fact).with_state(phase=wanted)
        told = [engine.happened(changed, "pause" if frozen else "unpause")]
        await engine.store.put(changed, durable=False, cursor=_cursor(fact), events=told)


def _known(record: Container, fact: Fact | None) -> bool:
    """Is the fact's effect, or that of a later one, in the record?"""
    return fact is not None and fact.time <= record.last_fact


def _applied(record: Container, fact: Fact | None) -> Container:
    return record if fact is None else dataclasses.replace(record, last_fact=fact.time)


def _cursor(fact: Fact | None) -> int | None:
    return None if fact is None else fact.cursor


async def check(engine: Engine, container_id: str) -> None:
    """Compares a container that is recorded as alive with containerd's task, and catches up on what was
    missed.
    """
    record = engine.store.get(container_id)
    if record is None or not record.state.running:
        return
    process = await engine.tasks.get(container_id)
    if is_alive(process):
        assert process is not None
        if record.state.phase is Phase.RESTARTING:
            await started_again(engine, container_id, process.pid, now_rfc3339())
        return
    if record.state.phase is Phase.RESTARTING:
        await decided(engine, container_id, False, record.restart_count)
        return
    code, at = exit_facts(engine, record, _LOST)
    await exited(engine, container_id, record.state.pid, code, at)


def exit_facts(engine: Engine, record: Container, otherwise: int) -> tuple[int, str]:
    """Exit code and time of the last run by the shim's exit record, else `otherwise` and now."""
    facts = _exit_record(engine, record)
    if facts is None:
        return otherwise, now_rfc3339()
    return int(facts.get("exit_status", otherwise)), str(facts.get("exited_at") or now_rfc3339())


def began(engine: Engine, record: Container, pid: int) -> str:
    """When this process of the container was started, by the shim's exit record; "" unless it was and has
    ended.
    """
    facts = _exit_record(engine, record.with_state(pid=pid))
    return str(facts.get("started_at") or "") if facts and facts.get("pid") == pid else ""


def _exit_record(engine: Engine, record: Container) -> dict[str, Any] | None:
    """Of the record's process. After a power cut the newest may still have its first name
    (docs/contracts.md, Exit record).
    """
    found = []
    for name in ("exit.json", "exit.json.new"):
        with contextlib.suppress(OSError, ValueError):
            facts = json.loads((engine.folder(record.id) / name).read_text())
            if isinstance(facts, dict) and facts.get("pid") in (record.state.pid, None):
                found.append(facts)
    return max(found, key=lambda facts: int(facts.get("run", 0)), default=None)


def _oom_killed(engine: Engine, record: Container) -> bool:
    facts = _exit_record(engine, record)
    return bool(facts and facts.get("oom_killed"))


async def _told_to_restart(engine: Engine, ended: Container, fact: Fact | None) -> bool:
    """Records that somebody will, or may, start the task again: containerd says so next, or we do it
    ourselves.
    """
    if ended.restart_policy[0] == "no":
        return False
    delay = None
    if not engine.restarts_below:
        delay = restarts.delay(ended)
        if delay is None:
            return False
        ended = dataclasses.replace(ended, restart_count=ended.restart_count + 1)
    restarting = ended.with_state(phase=Phase.RESTARTING)
    execs, told = _ended_execs(engine, restarting)
    told.append(_die(engine, restarting))
    await engine.store.put(restarting, durable=False, cursor=_cursor(fact), execs=execs, events=told)
    crashpoint("engine.exit.restarting")
    await engine.containers.exited_for_now(ended.id, WaitOutcome(ended.state.exit_code))
    if delay is not None:
        engine.spawn(restarts.restart_later(engine, restarting, delay))
    return True


async def _finish(engine: Engine, ended: Container, fact: Fact | None, *, died: bool) -> None:
    stopped = dataclasses.replace(ended.with_state(phase=Phase.EXITED), network_settings={})
    # A client that has seen the end of a --rm container may want its ports: else nothing need be waited for.
    at_once = _goes(engine, ended) and not ended.network_settings.get("ports")
    if at_once:
        stopped = stopped.with_state(phase=Phase.REMOVING)
    execs, told = _ended_execs(engine, stopped)
    told += engine.networks_happened(ended, "disconnect")
    if not died:
        told.append(_die(engine, stopped))
    if ended.id in engine.stopping:
        told.append(engine.happened(stopped, "stop"))
    await engine.store.put(stopped, durable=False, cursor=_cursor(fact), execs=execs, events=told)
    crashpoint("engine.exit.recorded")
    if at_once:
        await forget(engine, stopped, durable=False)
        return
    await engine.containers.exited(ended.id, WaitOutcome(ended.state.exit_code, ended.state.error))
    await clean_up(engine, stopped)


def _goes(engine: Engine, record: Container) -> bool:
    """Whether the end of its process is the container's."""
    return record.auto_remove and record.id not in engine.kept


async def clean_up(engine: Engine, stopped: Container) -> None:
    """Gives back what a stopped container held, under its token, and removes it when it was run with --rm.

    What does not work now is tried again in the background.
    """
    if not await _clean_up(engine, stopped):
        engine.spawn(clean_up_later(engine, stopped.id))


async def _clean_up(engine: Engine, stopped: Container) -> bool:
    # A start that failed may have left a process.
    if not await release_and_log(engine, stopped, kill=bool(stopped.state.error)):
        return False
    crashpoint("engine.exit.released")
    if _goes(engine, stopped):
        await remove_exited(engine, stopped)
    else:
        await engine.store.put(dataclasses.replace(stopped, cleanup_due=False), durable=False)
    return True


async def clean_up_later(engine: Engine, container_id: str) -> None:
    """Does what `clean_up` could not, unless it was started or removed meanwhile, which does it as well."""
    wait = _FIRST_RETRY
    while True:
        await asyncio.sleep(wait)
        wait = min(2 * wait, _LAST_RETRY)
        async with engine.tokens.hold(container_id, timeout=_TOKEN):
            record = engine.store.get(container_id)
            if record is None or not record.cleanup_due or record.state.phase not in _AT_REST:
                return
            if await _clean_up(engine, record):
                return


def _die(engine: Engine, record: Container) -> Happened:
    duration = restarts.seconds_run(record)
    return engine.happened(
        record, "die", exitCode=str(record.state.exit_code), execDuration=str(int(duration))
    )


def _ended_execs(engine: Engine, record: Container) -> tuple[list[Exec], list[Happened]]:
    """The container's running execs as ended, and the events of that. None outlives the first process: the
    kernel kills the rest of its pid namespace (pid_namespaces(7)).
    """
    ended = [
        dataclasses.replace(run, running=False, exit_code=_KILLED, pid=0)
        for run in engine.store.execs_of(record.id)
        if run.running
    ]
    return ended, [engine.exec_happened(record, run, "exec_die", exitCode=str(_KILLED)) for run in ended]


async def ended_by_reboot(engine: Engine, record: Container) -> None:
    """The host was started anew: what ran is gone, and whether it ended before is in its exit record."""
    code, at = exit_facts(engine, record, _LOST)
    stopped = dataclasses.replace(
        record.with_state(phase=Phase.EXITED, pid=0, exit_code=code, finished_at=at), network_settings={}
    )
    execs, told = _ended_execs(engine, stopped)
    told += [*engine.networks_happened(record, "disconnect"), _die(engine, stopped)]
    await engine.store.put(stopped, durable=False, execs=execs, events=told)
    try:
        await clean_up(engine, stopped)
    except errdefs.BuoyError as error:
        log.warning("container %s: clean-up is put off: %s", record.id, error)

"""Requests whose replies go on: attach, exec start, logs, wait, events.

Each becomes a stream that outlives this process.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import errdefs
from container_log.reader import LogOptions
from container_log.times import nanoseconds
from fastapi import APIRouter, Request, Response

from dockerd_api.engine.containers import Containers
from dockerd_api.engine.events import Events, filters_of
from dockerd_api.engine.model import Container, Phase, WaitOutcome
from dockerd_api.hijack import once, take
from dockerd_api.replies.producers import wait_body
from dockerd_api.streams.reply import Streams, response_head

router = APIRouter()

_RAW = "application/vnd.docker.raw-stream"
_MULTIPLEXED = "application/vnd.docker.multiplexed-stream"
_DEFAULT_DETACH_KEYS = "ctrl-p,ctrl-q"
_KEY = re.compile(r"(?:.|DEL|ctrl-[@a-z\[\\\]^_])\Z", re.DOTALL)
_VERSION = re.compile(rb"/v(\d+)\.(\d+)/")
_NEWEST = (1, 50)
_SECONDS = re.compile(r"(-?\d+)(?:\.(\d{1,9}))?\Z")
_LONGEST_BODY = 1 << 20


@router.post("/containers/{name}/attach")
async def attach(name: str, request: Request) -> Response:
    query = request.query_params
    keys = detach_keys(query.get("detachKeys", ""))
    containers: Containers = request.app.state.containers
    record = containers.resolve(name)
    if record.state.paused:
        raise errdefs.Conflict(f"container {name} is paused, unpause the container before attach")
    if record.state.restarting:
        raise errdefs.Conflict(f"container {name} is restarting, wait until the container is running")
    if record.state.phase is Phase.REMOVING:
        raise errdefs.Conflict(f"container {name} is marked for removal and cannot be attached")
    await request.app.state.events.publish("container", "attach", record.id, _event_attributes(record))
    multiplexed = not record.tty
    streams: Streams = request.app.state.streams
    taken = take(request)
    head = _upgrade_head(request, multiplexed)
    if flag(query, "logs") and not flag(query, "stream"):
        options = LogOptions(
            stdout=flag(query, "stdout"), stderr=flag(query, "stderr"), multiplexed=multiplexed
        )
        streams.begin("logs", taken, _logs_params(record, options, follow=False), head=head)
        return Response()
    fields = {
        "stdin": flag(query, "stdin") and bool(record.config.get("OpenStdin")),
        "stdout": flag(query, "stdout"),
        "stderr": flag(query, "stderr"),
        "logs": flag(query, "logs"),
        "stream": flag(query, "stream"),
        "multiplexed": multiplexed,
        "detach_keys": keys,
        "leading_input": base64.b64encode(taken.leading).decode(),
        "stdin_once": bool(record.config.get("StdinOnce")) and not record.tty,
    }
    params = {"container": record.id, "driver": record.log_driver, "path": record.log_path, "attach": fields}
    streams.begin("attach", taken, params, head=head)
    return Response()


@router.get("/containers/{name}/attach/ws")
async def attach_websocket(name: str, request: Request) -> Response:
    request.app.state.containers.resolve(name)
    raise errdefs.NotImplementedHere(
        "attaching over a WebSocket is not built; use POST /containers/{id}/attach"
    )


@router.post("/exec/{exec_id}/start")
async def exec_start(exec_id: str, request: Request) -> Response:
    options = await _json_object(request)
    execs = request.app.state.execs
    record = execs.resolve(exec_id)
    if options.get("Detach"):
        once(request)
        await execs.start_detached(exec_id)
        return Response(status_code=200)
    await execs.check_start(exec_id)
    config = record.config
    multiplexed = not options.get("Tty")
    taken = take(request)
    fields = {
        "stdin": bool(config.get("AttachStdin")),
        "stdout": bool(config.get("AttachStdout")),
        "stderr": bool(config.get("AttachStderr")),
        "logs": False,
        "stream": True,
        "multiplexed": multiplexed,
        "detach_keys": config.get("DetachKeys") or _DEFAULT_DETACH_KEYS,
        "leading_input": base64.b64encode(taken.leading).decode(),
        "stdin_once": not record.tty,
    }
    streams: Streams = request.app.state.streams
    streams.begin(
        "exec", taken, {"exec": record.id, "attach": fields}, head=_upgrade_head(request, multiplexed)
    )
    return Response()


@router.get("/containers/{name}/logs")
async def logs(name: str, request: Request) -> Response:
    query = request.query_params
    stdout, stderr = flag(query, "stdout"), flag(query, "stderr")
    if not stdout and not stderr:
        raise errdefs.InvalidArgument("Bad parameters: you must choose at least one stream")
    containers: Containers = request.app.state.containers
    record = containers.resolve(name)
    if record.state.phase is Phase.REMOVING:
        raise errdefs.Conflict("can not get logs from container which is dead or marked for removal")
    if not record.log_kept:
        raise errdefs.NotImplementedHere("configured logging driver does not support reading")
    options = LogOptions(
        stdout=stdout,
        stderr=stderr,
        timestamps=flag(query, "timestamps"),
        details=flag(query, "details"),
        multiplexed=not record.tty,
        tail=_tail(query.get("tail", "")),
        since=moment(query.get("since", "")),
        until=moment(query.get("until", "")),
    )
    chunked = request.scope["http_version"] != "1.0"
    content_type = _MULTIPLEXED if not record.tty and api_version(request) >= (1, 42) else _RAW
    streams: Streams = request.app.state.streams
    params = _logs_params(record, options, follow=flag(query, "follow"))
    streams.begin(
        "logs", take(request), params, head=response_head(content_type, chunked=chunked), chunked=chunked
    )
    return Response()


@router.post("/containers/{name}/wait")
async def wait(name: str, request: Request) -> Response:
    version = api_version(request)
    condition = (request.query_params.get("condition") if version >= (1, 30) else "") or "not-running"
    containers: Containers = request.app.state.containers

    async def nobody(outcome: WaitOutcome) -> None:
        """The stream's own waiter takes the place of this one."""

    waiter = containers.add_waiter(name, condition, nobody)
    if isinstance(waiter, WaitOutcome):
        return Response(wait_body(waiter), media_type="application/json")
    containers.remove_waiter(waiter)
    record = containers.resolve(name)
    chunked = request.scope["http_version"] != "1.0"
    streams: Streams = request.app.state.streams
    params = {"container": record.id, "condition": condition, "finished_at": record.state.finished_at}
    streams.begin(
        "wait",
        take(request),
        params,
        head=response_head("application/json", chunked=chunked),
        chunked=chunked,
    )
    return Response()


@router.get("/events")
async def events(request: Request) -> Response:
    query = request.query_params
    filters = filters_of(query.get("filters", ""))
    since, until = moment(query.get("since", "")), moment(query.get("until", ""))
    if until and until < since:
        raise errdefs.InvalidArgument(
            f"`since` time ({query.get('since')}) cannot be after `until` time ({query.get('until')})"
        )
    told: Events = request.app.state.events
    chunked = request.scope["http_version"] != "1.0"
    # `since` includes its own moment, a cursor does not.
    params = {"after": since - 1 if since else told.last, "until": until, "filters": filters}
    streams: Streams = request.app.state.streams
    streams.begin(
        "events",
        take(request),
        params,
        head=response_head("application/json", chunked=chunked),
        chunked=chunked,
    )
    return Response()


def flag(query: Mapping[str, str], name: str) -> bool:
    """Docker's reading of a boolean in a query."""
    return query.get(name, "").strip().lower() not in ("", "0", "no", "false", "none")


def detach_keys(text: str) -> str:
    """The keys that detach, Docker's default when none are given; InvalidArgument for what is no key."""
    if not text:
        return _DEFAULT_DETACH_KEYS
    if not all(_KEY.match(key) for key in text.split(",")):
        raise errdefs.InvalidArgument(f"Invalid detach keys ({text}) provided")
    return text


def moment(text: str) -> int:
    """A `since` or `until` in nanoseconds since 1970, 0 for none.

    It is written as Unix seconds with an optional fraction, or as RFC 3339.
    """
    if not text or text == "0":
        return 0
    seconds = _SECONDS.match(text)
    if seconds:
        return int(seconds[1]) * 1_000_000_000 + int((seconds[2] or "0").ljust(9, "0"))
    try:
        return nanoseconds(text)
    except ValueError:
        pass
    try:
        # A local time without a zone, or a date alone.
        local = datetime.fromisoformat(text)
    except ValueError:
        raise errdefs.InvalidArgument(f'invalid time "{text}"') from None
    return int(local.astimezone(UTC).timestamp() * 1_000_000_000)


def api_version(request: Request) -> tuple[int, int]:
    """The version that the path names, the newest without one."""
    found = _VERSION.match(request.scope.get("raw_path") or request.scope["path"].encode())
    return (int(found[1]), int(found[2])) if found else _NEWEST


def _tail(text: str) -> int | None:
    try:
        count = int(text)
    except ValueError:
        return None  # "all", and whatever else the real engine takes for it
    return count if count >= 0 else None


def _logs_params(record: Container, options: LogOptions, *, follow: bool) -> dict[str, Any]:
    return {
        "container": record.id,
        "driver": record.log_driver,
        "path": record.log_path,
        "follow": follow,
        "options": options.to_json(),
    }


def _event_attributes(record: Container) -> dict[str, str]:
    return {**record.labels, "image": record.image_ref, "name": record.name}


def _upgrade_head(request: Request, multiplexed: bool) -> bytes:
    if "upgrade" not in request.headers:
        return f"HTTP/1.1 200 OK\r\nContent-Type: {_RAW}\r\n\r\n".encode()
    content_type = _MULTIPLEXED if multiplexed and api_version(request) >= (1, 42) else _RAW
    return (
        "HTTP/1.1 101 UPGRADED\r\n"
        f"Content-Type: {content_type}\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
    ).encode()


async def _json_object(request: Request) -> dict[str, Any]:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _LONGEST_BODY:
            raise errdefs.InvalidArgument("the request's body is too long")
    if not body.strip():
        return {}
    try:
        found = json.loads(bytes(body))
    except ValueError as error:
        raise errdefs.InvalidArgument(f"invalid JSON: {error}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise errdefs.InvalidArgument("invalid JSON: got something else than an object")
    return found

"""/containers: what is not a stream. Each handler parses, calls one engine function and shapes the reply."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import errdefs
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from dockerd_api.engine import creation, exporting, filters, processes, removal, renaming, starting, stopping
from dockerd_api.engine.engine import Engine
from dockerd_api.schemas import bodies, containers

router = APIRouter(prefix="/containers")
_NO_CONTENT = 204


def engine_of(request: Request) -> Engine:
    engine: Engine = request.app.state.engine
    return engine


@router.post("/create")
async def create(request: Request) -> Response:
    query = request.query_params
    document = await bodies.json_body(request)
    version = bodies.api_version(request)
    platform = query.get("platform", "") if version >= (1, 41) else ""
    container_id, warnings = await creation.create(
        engine_of(request), query.get("name", ""), platform, document, version
    )
    return JSONResponse({"Id": container_id, "Warnings": warnings}, 201)


@router.get("/json")
async def list_(request: Request) -> Response:
    engine, query = engine_of(request), request.query_params
    limit = bodies.number(query, "limit") or 0
    wanted = filters.Query(filters.parse(query.get("filters", "")), bodies.flag(query, "all"), max(0, limit))
    found = await filters.select(engine.store, wanted, lambda ref: _image_id(engine, ref))
    sizes: list[Any] = [None] * len(found)
    if bodies.flag(query, "size"):
        sizes = await asyncio.gather(*(processes.sizes(engine, record) for record in found))
    now = datetime.now(UTC)
    documents = [
        containers.summary(record, now=now, size=size) for record, size in zip(found, sizes, strict=True)
    ]
    if bodies.api_version(request) >= (1, 48):
        for record, document in zip(found, documents, strict=True):
            document |= containers.image_manifest(record)
    return JSONResponse(documents)


@router.get("/{name}/json")
async def inspect(name: str, request: Request) -> Response:
    engine = engine_of(request)
    record = engine.containers.resolve(name)
    document = containers.inspect(record, engine.folder(record.id), engine.store.execs_of(record.id))
    if bodies.flag(request.query_params, "size"):
        document["SizeRw"], document["SizeRootFs"] = await processes.sizes(engine, record)
    if bodies.api_version(request) >= (1, 48):
        document |= containers.image_manifest(record)
    return JSONResponse(document)


@router.post("/{name}/start")
async def start(name: str, request: Request) -> Response:
    for option in ("checkpoint", "checkpoint-dir"):
        if request.query_params.get(option):
            raise errdefs.NotImplementedHere("checkpoints are not implemented")
    await starting.start(engine_of(request), name)
    return Response(status_code=_NO_CONTENT)


@router.post("/{name}/stop")
async def stop(name: str, request: Request) -> Response:
    query = request.query_params
    timeout = bodies.number(query, "t")
    await stopping.stop(engine_of(request), name, timeout=timeout, signal_name=query.get("signal", ""))
    return Response(status_code=_NO_CONTENT)


@router.post("/{name}/restart")
async def restart(name: str, request: Request) -> Response:
    query = request.query_params
    timeout = bodies.number(query, "t")
    await stopping.restart(engine_of(request), name, timeout=timeout, signal_name=query.get("signal", ""))
    return Response(status_code=_NO_CONTENT)


@router.post("/{name}/kill")
async def kill(name: str, request: Request) -> Response:
    await stopping.kill(engine_of(request), name, request.query_params.get("signal", ""))
    return Response(status_code=_NO_CONTENT)


@router.post("/{name}/pause")
async def pause(name: str, request: Request) -> Response:
    await stopping.pause(engine_of(request), name)
    return Response(status_code=_NO_CONTENT)


@router.post("/{name}/unpause")
async def unpause(name: str, request: Request) -> Response:
    await stopping.unpause(engine_of(request), name)
    return Response(status_code=_NO_CONTENT)


@router.post("/{name}/rename")
async def rename(name: str, request: Request) -> Response:
    await renaming.rename(engine_of(request), name, request.query_params.get("name", ""))
    return Response(status_code=_NO_CONTENT)


@router.post("/{name}/resize")
async def resize(name: str, request: Request) -> Response:
    height, width = bodies.console_size(request.query_params)
    await processes.resize(engine_of(request), name, width, height)
    return Response(status_code=200)


@router.get("/{name}/top")
async def top(name: str, request: Request) -> Response:
    arguments = request.query_params.get("ps_args") or "-ef"
    return JSONResponse(await processes.top(engine_of(request), name, arguments))


@router.get("/{name}/export")
async def export(name: str, request: Request) -> Response:
    pieces = exporting.export(engine_of(request), name)
    first = await anext(pieces)  # what cannot be exported gets a status of its own

    async def stream() -> AsyncIterator[bytes]:
        async with contextlib.aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece

    return StreamingResponse(stream(), media_type="application/octet-stream")


@router.delete("/{name}")
async def remove(name: str, request: Request) -> Response:
    query = request.query_params  # v: there are no anonymous volumes to remove with it
    await removal.remove(
        engine_of(request), name, force=bodies.flag(query, "force"), link=bodies.flag(query, "link")
    )
    return Response(status_code=_NO_CONTENT)


@router.post("/prune")
async def prune(request: Request) -> Response:
    wanted = filters.parse_prune(request.query_params.get("filters", ""))
    deleted, reclaimed = await removal.prune(engine_of(request), wanted)
    return JSONResponse({"ContainersDeleted": deleted or None, "SpaceReclaimed": reclaimed})


async def _image_id(engine: Engine, ref: str) -> str | None:
    try:
        return str((await engine.images.resolve(ref)).id)
    except errdefs.BuoyError:
        return None

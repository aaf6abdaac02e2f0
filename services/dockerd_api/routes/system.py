"""Who the engine is: /_ping, /version, /info; and what it does not have."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import errdefs
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from dockerd_api.engine import processes
from dockerd_api.engine.engine import Engine
from dockerd_api.engine.model import Container
from dockerd_api.routes.images import entry_for
from dockerd_api.schemas import bodies, containers, system

router = APIRouter()

_NO_CACHE = {"Cache-Control": "no-cache, no-store, must-revalidate", "Pragma": "no-cache"}


@router.get("/_ping")
async def ping() -> Response:
    return Response("OK", media_type="text/plain; charset=utf-8", headers=_ping_headers())


@router.head("/_ping")
async def ping_head() -> Response:
    return Response(None, media_type="text/plain; charset=utf-8", headers=_ping_headers())


def _ping_headers() -> dict[str, str]:
    # Builder-Version 1: the docker CLI then builds with the classic builder's endpoint, not with BuildKit's.
    return {**_NO_CACHE, "Builder-Version": "1", "Swarm": "inactive"}


@router.get("/version")
async def version(request: Request) -> Response:
    try:
        containerd = await request.app.state.engine.tasks.version(timeout=1.0)
    except errdefs.BuoyError:
        containerd = None
    return JSONResponse(system.version(containerd))


@router.get("/info")
async def info(request: Request) -> Response:
    return JSONResponse(await system.info(request.app.state))


_KINDS = {"container": "Containers", "image": "Images", "volume": "Volumes", "build-cache": "BuildCache"}


@router.get("/system/df")
async def disk_usage(request: Request) -> Response:
    """What takes the disk, of all kinds or of those that `type` names."""
    version = bodies.api_version(request)
    kinds = request.query_params.getlist("type") if version >= (1, 42) else []
    for kind in kinds:
        if kind not in _KINDS:
            raise errdefs.InvalidArgument(f"unknown object type: {kind}")
    kinds = kinds or list(_KINDS)
    # There are no volumes and no builder yet, so nothing takes disk for them.
    answer: dict[str, Any] = {
        "LayersSize": 0,
        **{name: [] if kind in kinds else None for kind, name in _KINDS.items()},
    }
    if "image" in kinds:
        entries, answer["LayersSize"] = await request.app.state.images.queries.disk_usage()
        answer["Images"] = [entry_for(entry, version) for entry in entries]
    if "container" in kinds:
        answer["Containers"] = await _container_usage(request.app.state.engine)
    if version < (1, 42):
        answer["BuilderSize"] = 0
    return JSONResponse(answer)


async def _container_usage(engine: Engine) -> list[dict[str, Any]]:
    async def size(record: Container) -> tuple[int, int] | None:
        try:
            return await processes.sizes(engine, record)
        except errdefs.NotFound:  # it goes, or is being made
            return None

    found = list(engine.store.all())
    sizes = await asyncio.gather(*(size(record) for record in found))
    now = datetime.now(UTC)
    return [
        containers.summary(record, now=now, size=own)
        for record, own in zip(found, sizes, strict=True)
        if own is not None
    ]


_NOT_BUILT = (
    ("volumes", "volumes are"),
    ("plugins", "plugins are"),
    ("build", "building images is"),
    ("session", "BuildKit sessions are"),
    ("grpc", "BuildKit is"),
    ("swarm", "swarm mode is"),
    ("nodes", "swarm mode is"),
    ("services", "swarm mode is"),
    ("tasks", "swarm mode is"),
    ("secrets", "swarm mode is"),
    ("configs", "swarm mode is"),
)
_NOT_BUILT_OF_CONTAINERS = (
    ("stats", "statistics are"),
    ("update", "updating containers is"),
    ("changes", "listing a container's changes is"),
    ("archive", "copying files is"),
    ("checkpoints", "checkpoints are"),
)
_EVERY = ["GET", "HEAD", "POST", "PUT", "DELETE"]


def _refuse(path: str, what: str) -> None:
    async def refuse() -> Response:
        raise errdefs.NotImplementedHere(f"{what} not implemented")

    router.add_api_route(path, refuse, methods=_EVERY)


for _path, _what in _NOT_BUILT:
    _refuse(f"/{_path}", _what)
    _refuse(f"/{_path}/{{rest:path}}", _what)
for _path, _what in _NOT_BUILT_OF_CONTAINERS:
    _refuse(f"/containers/{{name}}/{_path}", _what)
for _path in ("create", "prune"):
    _refuse(f"/networks/{_path}", "networks of one's own are")
for _path in ("connect", "disconnect"):
    _refuse(f"/networks/{{name}}/{_path}", "connecting networks later is")

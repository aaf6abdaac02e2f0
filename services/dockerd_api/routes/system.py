"""Who the engine is: /_ping, /version, /info; and what it does not have."""

from __future__ import annotations

import errdefs
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from dockerd_api.schemas import system

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


_NOT_BUILT = (
    ("volumes", "volumes are"),
    ("plugins", "plugins are"),
    ("build", "building images is"),
    ("session", "BuildKit sessions are"),
    ("grpc", "BuildKit is"),
    ("commit", "committing containers is"),
    ("swarm", "swarm mode is"),
    ("nodes", "swarm mode is"),
    ("services", "swarm mode is"),
    ("tasks", "swarm mode is"),
    ("secrets", "swarm mode is"),
    ("configs", "swarm mode is"),
    ("system/df", "disk usage is"),
)
_NOT_BUILT_OF_CONTAINERS = (
    ("stats", "statistics are"),
    ("update", "updating containers is"),
    ("export", "exporting containers is"),
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

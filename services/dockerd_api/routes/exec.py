"""/exec: what is not a stream (the start is in routes/streams)."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from dockerd_api.engine.execs import Execs
from dockerd_api.schemas import bodies, containers

router = APIRouter()


def execs_of(request: Request) -> Execs:
    execs: Execs = request.app.state.execs
    return execs


@router.post("/containers/{name}/exec")
async def create(name: str, request: Request) -> Response:
    document = await bodies.json_body(request, optional=True)
    return JSONResponse({"Id": await execs_of(request).create(name, document)}, 201)


@router.get("/exec/{exec_id}/json")
async def inspect(exec_id: str, request: Request) -> Response:
    return JSONResponse(containers.exec_inspect(await execs_of(request).inspect(exec_id)))


@router.post("/exec/{exec_id}/resize")
async def resize(exec_id: str, request: Request) -> Response:
    height, width = bodies.console_size(request.query_params)
    await execs_of(request).resize(exec_id, width, height)
    return Response(status_code=200)

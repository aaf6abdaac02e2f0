"""/commit: an image of a container."""

from __future__ import annotations

import errdefs
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from dockerd_api.engine import committing
from dockerd_api.routes.containers import engine_of
from dockerd_api.schemas import bodies

router = APIRouter()


@router.post("/commit")
async def commit(request: Request) -> Response:
    query = request.query_params
    document = await bodies.json_body(request, optional=True)
    if document is not None and not isinstance(document, dict):
        raise errdefs.InvalidArgument("invalid JSON: the config is no object")
    image_id = await committing.commit(
        engine_of(request),
        query.get("container", ""),
        document,
        repository=query.get("repo", ""),
        tag=query.get("tag", ""),
        comment=query.get("comment", ""),
        author=query.get("author", ""),
        pause="pause" not in query or query["pause"] == "" or bodies.flag(query, "pause"),
        instructions=query.getlist("changes"),
    )
    return JSONResponse({"Id": image_id}, 201)

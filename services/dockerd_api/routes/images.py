"""/images: load, import, list, inspect, history, tag, remove, prune."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import errdefs
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from dockerd_api.images import Images, filters, platforms
from dockerd_api.images.platforms import Platform
from dockerd_api.images.queries import Detail
from dockerd_api.routes import registries
from dockerd_api.schemas.bodies import api_version

router = APIRouter()

_FALSE = ("", "0", "no", "false", "none")


@router.get("/images/json")
async def list_images(request: Request) -> Response:
    """Every image, filtered."""
    query = request.query_params
    version = api_version(request)
    wanted = dict(filters.parse(query.get("filters", "")))
    if version < (1, 41) and query.get("filter"):
        wanted["reference"] = [*wanted.get("reference", ()), query["filter"]]
    detail = Detail(
        shared_size=version >= (1, 42) and _true(request, "shared-size"),
        manifests=version >= (1, 47) and _true(request, "manifests"),
    )
    entries = await _images(request).queries.entries(wanted, all_=_true(request, "all"), detail=detail)
    return JSONResponse([entry_for(entry, version) for entry in entries])


def entry_for(entry: dict[str, Any], version: tuple[int, int]) -> dict[str, Any]:
    """An image of a list as that version of the API has it."""
    if version < (1, 43) and not entry["RepoTags"] and not entry["RepoDigests"]:
        entry |= {"RepoTags": ["<none>:<none>"], "RepoDigests": ["<none>@<none>"]}
    if version < (1, 44):
        entry["VirtualSize"] = entry["Size"]
    if version < (1, 48):
        del entry["Descriptor"]
    return entry


@router.post("/images/load")
async def load(request: Request) -> Response:
    """Load an archive of `docker save`, or an OCI layout."""
    platform = _platform(request) if api_version(request) >= (1, 48) else None
    lines = _images(request).load(request.stream(), platform)
    # Until the first line nothing is sent, so that a bad archive gets a status of its own.
    first = await anext(lines, None)

    async def stream() -> AsyncIterator[bytes]:
        if first is not None:
            yield _line({"stream": first})
            async for line in lines:
                yield _line({"stream": line})

    return StreamingResponse(stream(), media_type="application/json")


@router.get("/images/get")
async def save_several(request: Request) -> Response:
    """An archive of the images that are named."""
    return await _saved(request, request.query_params.getlist("names"))


@router.get("/images/{name:path}/get")
async def save(request: Request, name: str) -> Response:
    """An archive of one image."""
    return await _saved(request, [name])


async def _saved(request: Request, names: Sequence[str]) -> Response:
    platform = _platform(request) if api_version(request) >= (1, 48) else None
    pieces = _images(request).saver.save(names, platform)
    first = await anext(pieces)  # what cannot be saved gets a status of its own

    async def stream() -> AsyncIterator[bytes]:
        async with contextlib.aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece

    return StreamingResponse(stream(), media_type="application/x-tar")


@router.post("/images/create")
async def create(request: Request) -> Response:
    """Pull (`fromImage`), or import the tar of a file tree (`fromSrc`)."""
    query = request.query_params
    if query.get("fromImage"):
        return await registries.pull(request)
    source = query.get("fromSrc", "")
    if source != "-":
        raise errdefs.NotImplementedHere("importing from a URL is not implemented: send the archive itself")
    image_id = await _images(request).import_(
        request.stream(),
        repository=query.get("repo", ""),
        tag=query.get("tag", ""),
        instructions=query.getlist("changes"),
        message=query.get("message") or f"Imported from {source}",
        architecture=_architecture(query.get("platform", "")),
    )
    return Response(_line({"status": image_id}), media_type="application/json")


@router.get("/images/{name:path}/json")
async def inspect(request: Request, name: str) -> Response:
    """One image."""
    version = api_version(request)
    manifests = version >= (1, 48) and _true(request, "manifests")
    platform = _platform(request) if version >= (1, 49) else None
    if manifests and platform is not None:
        raise errdefs.InvalidArgument(
            "conflicting options: manifests and platform options cannot both be set"
        )
    queries = _images(request).queries
    return JSONResponse(await queries.inspect(name, version, platform=platform, manifests=manifests))


@router.get("/images/{name:path}/history")
async def history(request: Request, name: str) -> Response:
    """The steps that made an image."""
    platform = _platform(request) if api_version(request) >= (1, 48) else None
    return JSONResponse(await _images(request).queries.history(name, platform))


@router.post("/images/prune")
async def prune(request: Request) -> Response:
    """Remove images that nobody uses."""
    wanted = filters.parse(request.query_params.get("filters", ""), filters.PRUNE)
    deleted, freed = await _images(request).prune(wanted)
    return JSONResponse({"ImagesDeleted": deleted or None, "SpaceReclaimed": freed})


@router.post("/images/{name:path}/tag")
async def tag(request: Request, name: str) -> Response:
    """Give an image a further name."""
    query = request.query_params
    await _images(request).tag(name, query.get("repo", ""), query.get("tag", ""))
    return Response(status_code=201)


@router.delete("/images/{name:path}")
async def remove(request: Request, name: str) -> Response:
    """Remove a name, or an image."""
    if not name.strip():
        raise errdefs.InvalidArgument("image name cannot be blank")
    wanted = request.query_params.getlist("platforms") if api_version(request) >= (1, 50) else ()
    records = await _images(request).remove(
        name,
        force=_true(request, "force"),
        prune=not _true(request, "noprune"),
        platforms=[platforms.decode(text) for text in wanted],
    )
    return JSONResponse(records)


def _images(request: Request) -> Images:
    return cast(Images, request.app.state.images)


def _platform(request: Request) -> Platform | None:
    text = request.query_params.get("platform", "")
    return platforms.decode(text) if text else None


def _true(request: Request, key: str) -> bool:
    """Docker's reading of a boolean parameter: anything but a few words is true."""
    return request.query_params.get(key, "").strip().lower() not in _FALSE


def _architecture(platform: str) -> str:
    """The architecture of `os/arch[/variant]`, or of `arch`; empty for the host's. Raises InvalidArgument."""
    if not platform:
        return ""
    parts = platform.split("/")
    if not all(re.fullmatch(r"[A-Za-z0-9_.-]+", part) for part in parts) or len(parts) > 3:
        raise errdefs.InvalidArgument(f'"{platform}" is an invalid component of a platform')
    if len(parts) == 1:
        return "" if parts[0] == "linux" else parts[0]
    if parts[0] != "linux":
        raise errdefs.InvalidArgument(f"operating system {parts[0]} is not supported")
    return parts[1]


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\r\n"

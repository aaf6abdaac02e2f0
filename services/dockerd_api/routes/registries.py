"""Registries: pull, push, login, what a registry has, search."""

from __future__ import annotations

import re
from typing import cast

import errdefs
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from dockerd_api.engine.events import filters_of
from dockerd_api.images import platforms, reference
from dockerd_api.images.platforms import Platform
from dockerd_api.images.pulling import Puller
from dockerd_api.images.pushing import Pusher
from dockerd_api.registries import Asking, Credentials, credentials
from dockerd_api.registries.user_agent import user_agent
from dockerd_api.routes.progress import begun
from dockerd_api.schemas.bodies import api_version, parse_json

router = APIRouter()

_RESERVED = "scratch"
_LARGEST_BODY = 64 * 1024  # bytes


async def pull(request: Request) -> Response:
    """POST /images/create with `fromImage`."""
    query = request.query_params
    version = api_version(request)
    platform = _platform(query.get("platform", "")) if version >= (1, 32) else None
    name = reference.parse(query["fromImage"].removesuffix(":"))
    if tag := query.get("tag", ""):
        name = reference.with_tag_or_digest(name, tag)
    if name.familiar_name == _RESERVED:
        raise errdefs.PermissionDenied(f"'{_RESERVED}' is a reserved name")
    puller: Puller = request.app.state.puller
    return await begun(request, puller.pull(name, platform, _who(request), _agent(request)))


@router.post("/images/{name:path}/push")
async def push(request: Request, name: str) -> Response:
    """Push a tag, or without one all of a repository."""
    query = request.query_params
    if tag := query.get("tag", ""):
        named = reference.parse_repository(name, tag)
        assert named is not None
    else:
        named = reference.parse(name)
    platform = None
    if api_version(request) >= (1, 46) and query.get("platform"):
        platform = platforms.decode(query["platform"])
    pusher: Pusher = request.app.state.pusher
    return await begun(request, pusher.push(named, platform, _who(request), _agent(request)))


@router.post("/auth")
async def login(request: Request) -> Response:
    """Whether a registry takes a user's name and password."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _LARGEST_BODY:
            raise errdefs.InvalidArgument("invalid JSON: the request's body is too large")
    who = credentials.of_document(parse_json(bytes(body)))
    token = await _asks(request).login(who, _agent(request))
    return JSONResponse({"Status": "Login Succeeded", "IdentityToken": token})


@router.get("/distribution/{name:path}/json")
async def inspect(request: Request, name: str) -> Response:
    """The descriptor and the platforms of an image, as its registry has it."""
    if reference.identifier(name):
        raise errdefs.Internal("no manifest found for full image ID")
    named = reference.parse(name)
    if named.familiar_name == _RESERVED:
        raise errdefs.InvalidArgument(f"'{_RESERVED}' is a reserved name")
    wanted = named.digest or named.tag or "latest"
    repository = _asks(request).repository(named.domain, named.path, _who(request), _agent(request))
    return JSONResponse(await repository.inspect(wanted, str(named.tagged())))


@router.get("/images/search")
async def search(request: Request) -> Response:
    """Search a registry."""
    query = request.query_params
    text = query.get("limit", "")
    if not re.fullmatch(r"[0-9]{0,9}", text):
        raise errdefs.InvalidArgument(
            f'invalid limit specified: strconv.Atoi: parsing "{text}": invalid syntax'
        )
    filters = filters_of(query.get("filters", ""))
    found = await _asks(request).search(
        query.get("term", ""), int(text or 0), filters, _who(request), _agent(request)
    )
    return JSONResponse(found)


def _asks(request: Request) -> Asking:
    return cast(Asking, request.app.state.asking)


def _platform(text: str) -> Platform | None:
    return platforms.parse(text) if text else None


def _who(request: Request) -> Credentials:
    return credentials.of_header(request.headers.get("x-registry-auth", ""))


def _agent(request: Request) -> str:
    return user_agent(request.headers.get("user-agent", ""))

"""The ASGI application: versions in the path, the routes, and how an error is shown."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import errdefs
import errdefs.http
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from dockerd_api.config import API_VERSION, LEAST_API_VERSION, VERSION
from dockerd_api.routes import commits, containers, exec, images, networks, registries, streams, system
from dockerd_api.schemas.system import api_text

log = logging.getLogger(__name__)

_VERSION = re.compile(r"/v(([0-9]+)(?:\.([0-9]+))?)(?=/|\Z)")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


def build() -> FastAPI:
    """The routes. What they work with is put into `state` by the caller."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    for module in (streams, containers, commits, exec, registries, images, networks, system):
        app.include_router(module.router)
    app.add_exception_handler(errdefs.BuoyError, _buoy_error)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _fault)
    return app


class Versions:
    """Takes the version out of the path, refuses one out of range, and adds the headers that every reply has.

    `raw_path` keeps the version for the routes that act differently for older clients.
    """

    def __init__(self, app: Application) -> None:
        self._app = app
        self._headers = [
            (b"api-version", api_text(API_VERSION).encode()),
            (b"docker-experimental", b"false"),
            (b"ostype", b"linux"),
            (b"server", f"Docker/{VERSION} (linux)".encode()),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        found = _VERSION.match(scope["path"])
        if found:
            version = int(found[2]), int(found[3] or 0)
            problem = _out_of_range(found[1], version)
            if problem:
                await JSONResponse({"message": problem}, 400)(scope, receive, send_with_headers)
                return
            scope["path"] = scope["path"][found.end() :] or "/"
        await self._app(scope, receive, send_with_headers)


def _out_of_range(text: str, version: tuple[int, int]) -> str:
    if version > API_VERSION:
        return f"client version {text} is too new. Maximum supported API version is {api_text(API_VERSION)}"
    if version < LEAST_API_VERSION:
        return (
            f"client version {text} is too old. Minimum supported API version is "
            f"{api_text(LEAST_API_VERSION)}, please upgrade your client to a newer version"
        )
    return ""


def _message(text: str, status: int) -> Response:
    return JSONResponse({"message": text}, status)


async def _buoy_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, errdefs.BuoyError)
    status = errdefs.http.status_of(error)
    if status == 304:
        return Response(status_code=304)
    if status >= 500 and status != 501:
        log.error("%s %s: %s", request.method, request.url.path, error.message)
    return _message(error.message, status)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code in (404, 405):
        return _message("page not found", 404)
    return _message(str(error.detail), error.status_code)


async def _fault(request: Request, error: Exception) -> Response:
    """A fault of ours; the server logs it with its trace."""
    return _message(f"internal error: {type(error).__name__}: {error}", 500)

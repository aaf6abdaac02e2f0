"""Replies that say how far a work is, line by line, as long as the client listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any

import errdefs
from fastapi import Request
from starlette.responses import Response

from dockerd_api.images.progress import failure

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


async def begun(request: Request, lines: AsyncGenerator[bytes]) -> ProgressResponse:
    """The reply, once there is a first line: an error until then gets a status of its own.

    Raises what the work raises, and Canceled when the client leaves first; the work has ended then.
    """
    first = asyncio.ensure_future(anext(lines, b""))
    leaving = asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait({first, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not first.done():
            raise errdefs.Canceled("the client has gone")
        return ProgressResponse(first.result(), lines)
    except BaseException:
        await _ended(first)
        await lines.aclose()
        raise
    finally:
        await _ended(leaving)


class ProgressResponse(Response):
    """Lines as they come, an error among them. The work ends when the client leaves."""

    def __init__(self, first: bytes, lines: AsyncGenerator[bytes]) -> None:
        self.status_code = 200
        self.background = None
        self._first = first
        self._lines = lines
        self.init_headers({"content-type": "application/json"})

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            await _ended(leaving)
            await _ended(sending)
            await self._lines.aclose()

    async def _send(self, send: Send) -> None:
        headers = [(name, value) for name, value in self.raw_headers if name != b"content-length"]
        await send({"type": "http.response.start", "status": self.status_code, "headers": headers})
        try:
            await _piece(send, self._first)
            async for line in self._lines:
                await _piece(send, line)
        except errdefs.BuoyError as error:
            await _piece(send, failure(error.message))
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _piece(send: Send, line: bytes) -> None:
    if line:
        await send({"type": "http.response.body", "body": line, "more_body": True})


async def _left(receive: Receive) -> None:
    """Until the client has gone; what it still sends is of no use."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()

"""Streams of messages that a client opens by one call and names in another (containerd's Streaming service).

Bytes on a stream go in `Data` messages; who receives says by `WindowUpdate` how many more it takes, so that
neither side has to keep more than a window (containerd's core/transfer/streaming).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

import betterproto2
import errdefs
from pb.containerd.types.transfer import Data, WindowUpdate
from pb.google.protobuf import Any as AnyMessage

from containerd_svc.events import packed_any, unpacked

T = TypeVar("T")

_PIECE = 32 * 1024  # bytes of one Data message
_WINDOW = 2 * _PIECE  # bytes that a sender is allowed each time
_WAITING = 16  # messages that wait to be sent


class Stream:
    """One open stream, for one user."""

    def __init__(self, messages: AsyncIterator[AnyMessage]) -> None:
        self._messages = messages
        self._sending: asyncio.Queue[AnyMessage] = asyncio.Queue(_WAITING)
        self._closed = asyncio.Event()

    async def send(self, message: betterproto2.Message) -> None:
        """Send a message. Raises Unavailable when the stream is closed."""
        await self._unless_closed(self._sending.put(packed_any(message)))

    async def receive(self) -> betterproto2.Message | None:
        """The client's next message; None at the end of what it sends.

        Raises Unavailable when the client has gone, InvalidArgument for a message of an unknown type.
        """
        found = await self._unless_closed(_next(self._messages))
        if found is None:
            return None
        message = unpacked(found.type_url, found.value)
        if message is None:
            raise errdefs.InvalidArgument(f"message of type {found.type_url!r} on a stream: invalid argument")
        return message

    def close(self) -> None:
        """End the stream; what was sent still goes out."""
        self._closed.set()

    async def outgoing(self) -> AsyncIterator[AnyMessage]:
        """What is to be sent, until the stream is closed."""
        with contextlib.suppress(errdefs.Unavailable):
            while True:
                yield await self._unless_closed(self._sending.get())
        while not self._sending.empty():
            yield self._sending.get_nowait()

    async def _unless_closed(self, work: Coroutine[Any, Any, T]) -> T:
        doing = asyncio.ensure_future(work)
        closing = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait((doing, closing), return_when=asyncio.FIRST_COMPLETED)
            if not doing.done():
                raise errdefs.Unavailable("the stream is closed: unavailable")
            return doing.result()
        finally:
            closing.cancel()
            doing.cancel()


class Streams:
    """The open streams of all namespaces."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, str], Stream] = {}

    @contextlib.contextmanager
    def registered(self, namespace: str, name: str, messages: AsyncIterator[AnyMessage]) -> Iterator[Stream]:
        """A stream that others can get by its name during the block, and that is closed after it.

        Raises AlreadyExists, and InvalidArgument for no name.
        """
        if not name:
            raise errdefs.InvalidArgument("a stream's id must not be empty: invalid argument")
        place = (namespace, name)
        if place in self._open:
            raise errdefs.AlreadyExists(f'stream "{name}": already exists')
        stream = self._open[place] = Stream(messages)
        try:
            yield stream
        finally:
            stream.close()
            del self._open[place]

    def get(self, namespace: str, name: str) -> Stream:
        """Raises NotFound."""
        stream = self._open.get((namespace, name))
        if stream is None:
            raise errdefs.NotFound(f'stream "{name}": not found')
        return stream


async def received(stream: Stream) -> AsyncIterator[bytes]:
    """The bytes that the client sends, to their end. Raises InvalidArgument for anything else, or for more
    than was allowed."""
    window = 0
    while True:
        if window < _WINDOW:
            await stream.send(WindowUpdate(update=_WINDOW))
            window += _WINDOW
        message = await stream.receive()
        if message is None:
            return
        if not isinstance(message, Data):
            raise errdefs.InvalidArgument(f"{type(message).__name__} on a stream of bytes: invalid argument")
        window -= len(message.data)
        if window < 0:
            raise errdefs.InvalidArgument("more bytes than the window allows: invalid argument")
        yield message.data


class Sender:
    """Sends bytes as the client allows it."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._window = 0

    async def write(self, data: bytes) -> None:
        """Send all of it. Raises Unavailable when the client takes no more."""
        view = memoryview(data)
        while view:
            while self._window <= 0:
                message = await self._stream.receive()
                if message is None:
                    raise errdefs.Unavailable("the client takes no more bytes: unavailable")
                if isinstance(message, WindowUpdate):
                    self._window += max(message.update, 0)
            piece = view[: min(self._window, _PIECE)]
            await self._stream.send(Data(data=bytes(piece)))
            self._window -= len(piece)
            view = view[len(piece) :]


async def _next(messages: AsyncIterator[AnyMessage]) -> AnyMessage | None:
    return await anext(messages, None)

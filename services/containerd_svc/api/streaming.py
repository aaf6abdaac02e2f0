"""containerd.services.streaming.v1.Streaming."""

from __future__ import annotations

from collections.abc import AsyncIterator

import errdefs
from pb.containerd.services.streaming import v1 as pb
from pb.google.protobuf import Any as AnyMessage
from pb.google.protobuf import Empty

from containerd_svc.api.call import namespace
from containerd_svc.events import packed_any, unpacked
from containerd_svc.transfer import Streams


class StreamingService(pb.StreamingBase):
    """The streams on the wire."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def stream(self, messages: AsyncIterator[AnyMessage]) -> AsyncIterator[AnyMessage]:
        """One stream, from its first message, which names it, until the user of it or the client ends it."""
        first = await anext(messages, None)
        init = unpacked(first.type_url, first.value) if first is not None else None
        if not isinstance(init, pb.StreamInit):
            raise errdefs.InvalidArgument("a stream must begin with a StreamInit: invalid argument")
        with self._streams.registered(namespace(), init.id, messages) as stream:
            yield packed_any(Empty())
            async for message in stream.outgoing():
                yield message

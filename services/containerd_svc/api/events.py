"""containerd.services.events.v1.Events."""

from __future__ import annotations

from collections.abc import AsyncIterator

from pb.containerd.services.events import v1 as pb
from pb.containerd.types import Envelope
from pb.google.protobuf import Any as AnyMessage
from pb.google.protobuf import Empty
from rpc.grpc import current_call

from containerd_svc.api.call import namespace
from containerd_svc.events import Events, cursor_of
from containerd_svc.forwarded import Forwarded

_AFTER = "buoy-events-after"
_RESUMED = "buoy-events-resumed"


class EventsService(pb.EventsBase):
    """The exchange on the wire."""

    def __init__(self, events: Events, forwarded: Forwarded) -> None:
        self._events = events
        self._forwarded = forwarded

    async def publish(self, message: pb.PublishRequest) -> Empty:
        await self._forwarded.publish(namespace(), message.topic, message.event or AnyMessage())
        return Empty()

    async def forward(self, message: pb.ForwardRequest) -> Empty:
        await self._forwarded.forward(message.envelope)
        return Empty()

    async def subscribe(self, message: pb.SubscribeRequest) -> AsyncIterator[Envelope]:
        call = current_call()
        after = call.metadata.get(_AFTER)
        cursor = cursor_of(after) if isinstance(after, str) else None
        subscription = await self._events.subscribe(message.filters, cursor)
        # At once: the client may then act and be sure to see what comes of it.
        await call.send_initial_metadata({_RESUMED: "1"} if subscription.resumed else {})
        async for event in subscription.follow():
            yield Envelope(
                timestamp=event.moment,
                namespace=event.namespace,
                topic=event.topic,
                event=AnyMessage(type_url=event.type_url, value=event.value),
            )

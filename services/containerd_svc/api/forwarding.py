"""containerd.services.events.ttrpc.v1.Events, which shims call."""

from __future__ import annotations

from pb.containerd.services.events.ttrpc import v1 as pb
from pb.google.protobuf import Empty

from containerd_svc.forwarded import Forwarded


class ForwardingService(pb.EventsBase):
    """What shims tell, on the wire."""

    def __init__(self, forwarded: Forwarded) -> None:
        self._forwarded = forwarded

    async def forward(self, message: pb.ForwardRequest) -> Empty:
        await self._forwarded.forward(message.envelope)
        return Empty()

"""`containerd-svc publish`: the program that a shim is told of by -publish-binary, which takes one event to
the daemon (containerd's docs/runtime-v2.md, Events).
"""

from __future__ import annotations

import asyncio

import errdefs
from pb.containerd.services.events.v1 import EventsStub, PublishRequest
from pb.google.protobuf import Any as AnyMessage
from rpc.grpc import Channel

_ANSWER = 5.0  # seconds


def publish(address: str, namespace: str, topic: str, payload: bytes) -> None:
    """Publish `payload`, an event as a serialised Any, through the daemon at `address`.

    Raises InvalidArgument without a topic or for another payload, and what the daemon raises.
    """
    if not topic:
        raise errdefs.InvalidArgument("topic required to publish event")
    try:
        event = AnyMessage.parse(payload)
    except Exception as error:  # the parser's failures have no common class
        raise errdefs.InvalidArgument(f"the event is no Any: {error}") from error
    asyncio.run(_publish(address, namespace, PublishRequest(topic=topic, event=event)))


async def _publish(address: str, namespace: str, request: PublishRequest) -> None:
    channel = Channel(address, namespace=namespace, timeout=_ANSWER)
    try:
        await EventsStub(channel).publish(request)
    finally:
        channel.close()

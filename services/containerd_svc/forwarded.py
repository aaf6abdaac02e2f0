"""Events that processes outside tell of: clients, and shims that others wrote, which tell of their tasks so.

Those of such a shim's task change what is known of it, in the transaction that publishes them.
"""

from __future__ import annotations

import errdefs
from pb.containerd.types import Envelope
from pb.google.protobuf import Any as AnyMessage

from containerd_svc import identifiers
from containerd_svc.events import Events, unpacked
from containerd_svc.supervisor import Supervisor


class Forwarded:
    """Takes them in."""

    def __init__(self, events: Events, supervisor: Supervisor) -> None:
        self._events = events
        self._supervisor = supervisor

    async def publish(self, namespace: str, topic: str, event: AnyMessage) -> None:
        """Publish an event, once. Raises InvalidArgument for a bad namespace or topic."""
        identifiers.validate(namespace, "event envelope has invalid namespace")
        identifiers.validate_topic(topic)
        message = unpacked(event.type_url, event.value)
        container_id = getattr(message, "container_id", "")
        task = self._supervisor.tasks.get((namespace, container_id))
        if message is not None and self._supervisor.was_told(namespace, message):
            return
        if message is None or task is None or not task.record.shim:
            await self._events.publish(namespace, topic, event)
        else:
            await self._supervisor.tell(task, topic, event)

    async def forward(self, envelope: Envelope | None) -> None:
        """Publish what an envelope holds. Raises InvalidArgument."""
        if envelope is None:
            raise errdefs.InvalidArgument("envelope is missing: invalid argument")
        if envelope.timestamp is None:
            raise errdefs.InvalidArgument("timestamp must be set on forwarded event: invalid argument")
        await self.publish(envelope.namespace, envelope.topic, envelope.event or AnyMessage())

"""Events to a real containerd, which wants to be told (containerd.services.events.ttrpc.v1.Events/Forward).

Only a shim that such a containerd started does this. Events queue while it is away and are sent again until
it has taken them, in order.
"""

from __future__ import annotations

import asyncio
import logging

import errdefs
from pb.containerd.services.events.ttrpc.v1 import ForwardRequest
from pb.containerd.types import Envelope
from pb.google.protobuf import Empty
from rpc import ttrpc

from shim_svc.facts import Facts

log = logging.getLogger(__name__)

_SERVICE = "containerd.services.events.ttrpc.v1.Events"
_RETRY_FIRST = 0.1  # seconds, doubled up to
_RETRY_MOST = 5.0


async def publish(facts: Facts, *, address: str, namespace: str) -> None:
    """Forward every fact to the ttrpc socket at `address`, until cancelled."""
    done, delay = 0, _RETRY_FIRST
    client: ttrpc.Client | None = None
    try:
        while True:
            for fact in await facts.wait_after(done):
                envelope = Envelope(
                    timestamp=fact.timestamp, namespace=namespace, topic=fact.topic, event=fact.event
                )
                while fact.seq > done:
                    try:
                        if client is None or client.closed:
                            client = await ttrpc.Client.connect(address)
                        await client.call(_SERVICE, "Forward", ForwardRequest(envelope=envelope), Empty)
                    except errdefs.BuoyError as error:
                        log.debug("event %s: %s", fact.topic, error.message)
                        await asyncio.sleep(delay)
                        delay = min(delay * 2, _RETRY_MOST)
                    else:
                        done, delay = fact.seq, _RETRY_FIRST
                        facts.forget(done)
    finally:
        if client is not None:
            await client.close()

"""grpc.health.v1.Health: gRPC's health checking protocol."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection

import errdefs
from pb.grpc.health.v1 import (
    HealthBase,
    HealthCheckRequest,
    HealthCheckResponse,
    HealthCheckResponseServingStatus,
)


class HealthService(HealthBase):
    """Serving, for the whole server (an empty name) and each service by its full name."""

    def __init__(self, services: Collection[str]) -> None:
        self._services = frozenset(services)

    async def check(self, message: HealthCheckRequest) -> HealthCheckResponse:
        if message.service and message.service not in self._services:
            raise errdefs.NotFound("unknown service")
        return HealthCheckResponse(status=HealthCheckResponseServingStatus.SERVING)

    async def watch(self, message: HealthCheckRequest) -> AsyncIterator[HealthCheckResponse]:
        known = not message.service or message.service in self._services
        status = HealthCheckResponseServingStatus
        yield HealthCheckResponse(status=status.SERVING if known else status.SERVICE_UNKNOWN)
        # A status that changes would end this process first: the connection then tells.
        await asyncio.Event().wait()

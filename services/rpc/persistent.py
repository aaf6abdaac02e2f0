"""Calls that outlive their server: what was under way when it died is asked of the next one.

The caller says by the choice of stub that its calls may be repeated: the server may have done the work of the
first and lost only the answer.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from betterproto2.grpclib import ServiceStub

from rpc.grpc import ConnectionLost

log = logging.getLogger(__name__)

_WITHIN = 15.0  # seconds after the first loss: a restart, also on a busy host
_FIRST, _MOST = 0.02, 0.5  # seconds between tries, doubling: where nobody holds the socket, it is refused


class PersistentStub(ServiceStub):
    """Put before a generated stub: its unary calls are repeated until they are answered.

    ConnectionLost when there is no answer within 15 s of the first loss. A call's own timeout counts for each
    try.
    """

    async def _unary_unary(self, route: str, request: Any, response_type: Any, **options: Any) -> Any:
        loop = asyncio.get_running_loop()
        wait, until = _FIRST, float("inf")
        while True:
            try:
                return await super()._unary_unary(route, request, response_type, **options)
            except ConnectionLost as error:
                now = loop.time()
                until = min(until, now + _WITHIN)
                if now + wait > until:
                    raise
                log.debug("%s is asked again: %s", route, error)
            await asyncio.sleep(wait)
            wait = min(2 * wait, _MOST)

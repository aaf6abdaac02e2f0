"""Leases in containerd: what one piece of work makes or reads stays until it is done."""

from __future__ import annotations

import contextlib
import datetime
import secrets
from collections.abc import AsyncIterator, Iterable

import errdefs
from pb.containerd.services.leases import v1 as pb
from rpc.grpc import Channel

PREFIX = "dockerd-"
_HOURS = 24
_COLLECT_TIMEOUT = 60.0  # seconds for a removal that frees blobs and snapshots


class Leases:
    """The lease service, as far as images need it."""

    def __init__(self, channel: Channel) -> None:
        self._leases = pb.LeasesStub(channel)

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[str]:
        """A lease for one piece of work; on an error what it alone held is collected."""
        lease = f"{PREFIX}{secrets.token_hex(12)}"
        expires = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=_HOURS)
        labels = {"containerd.io/gc.expire": expires.isoformat(timespec="seconds").replace("+00:00", "Z")}
        await self._leases.create(pb.CreateRequest(id=lease, labels=labels))
        try:
            yield lease
        except BaseException:
            with contextlib.suppress(errdefs.BuoyError):  # the first error is the one to tell
                await self._give_back(lease, collect=True)
            raise
        await self._give_back(lease, collect=False)

    async def hold_blobs(self, lease: str, digests: Iterable[str]) -> None:
        """Keep blobs that are there for as long as the lease is."""
        for digest in digests:
            await self._leases.add_resource(
                pb.AddResourceRequest(id=lease, resource=pb.Resource(id=digest, type="content"))
            )

    async def give_back_all(self) -> None:
        """End the leases of a process that died, and collect what they held."""
        answer = await self._leases.list(pb.ListRequest())
        for lease in answer.leases:
            if lease.id.startswith(PREFIX):
                await self._give_back(lease.id, collect=True)

    async def _give_back(self, lease: str, *, collect: bool) -> None:
        with contextlib.suppress(errdefs.NotFound):
            await self._leases.delete(pb.DeleteRequest(id=lease, sync=collect), timeout=_COLLECT_TIMEOUT)

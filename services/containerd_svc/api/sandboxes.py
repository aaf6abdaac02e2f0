"""containerd.services.sandbox.v1.Store."""

from __future__ import annotations

import errdefs
from pb.containerd.services.sandbox import v1 as pb
from pb.containerd.types import Sandbox

from containerd_svc.api.call import namespace
from containerd_svc.sandboxes import Sandboxes


class SandboxStoreService(pb.StoreBase):
    """The sandboxes on the wire."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    async def create(self, message: pb.StoreCreateRequest) -> pb.StoreCreateResponse:
        made = await self._sandboxes.create(namespace(), _given(message.sandbox))
        return pb.StoreCreateResponse(sandbox=made)

    async def update(self, message: pb.StoreUpdateRequest) -> pb.StoreUpdateResponse:
        made = await self._sandboxes.update(namespace(), _given(message.sandbox), message.fields)
        return pb.StoreUpdateResponse(sandbox=made)

    async def delete(self, message: pb.StoreDeleteRequest) -> pb.StoreDeleteResponse:
        await self._sandboxes.delete(namespace(), message.sandbox_id)
        return pb.StoreDeleteResponse()

    async def list(self, message: pb.StoreListRequest) -> pb.StoreListResponse:
        return pb.StoreListResponse(list=await self._sandboxes.list(namespace(), message.filters))

    async def get(self, message: pb.StoreGetRequest) -> pb.StoreGetResponse:
        return pb.StoreGetResponse(sandbox=await self._sandboxes.get(namespace(), message.sandbox_id))


def _given(sandbox: Sandbox | None) -> Sandbox:
    if sandbox is None:
        raise errdefs.InvalidArgument("sandbox is missing: invalid argument")
    return sandbox

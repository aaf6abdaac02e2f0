"""containerd.services.leases.v1.Leases."""

from __future__ import annotations

import errdefs
from pb.containerd.services.leases import v1 as pb
from pb.google.protobuf import Empty

from containerd_svc import labels, leases
from containerd_svc.api.call import namespace
from containerd_svc.gc import Collector


class LeasesService(pb.LeasesBase):
    """The store on the wire. Delete with `sync` answers after the collector has run."""

    def __init__(self, store: leases.Leases, collector: Collector) -> None:
        self._store = store
        self._collector = collector

    async def create(self, message: pb.CreateRequest) -> pb.CreateResponse:
        lease = await self._store.create(namespace(), message.id, message.labels)
        return pb.CreateResponse(lease=_encode(lease))

    async def delete(self, message: pb.DeleteRequest) -> Empty:
        await self._store.delete(namespace(), message.id)
        if message.sync:
            await self._collector.collect(namespace())
        return Empty()

    async def list(self, message: pb.ListRequest) -> pb.ListResponse:
        found = await self._store.list(namespace(), message.filters)
        return pb.ListResponse(leases=[_encode(lease) for lease in found])

    async def add_resource(self, message: pb.AddResourceRequest) -> Empty:
        resource = _resource(message.resource)
        await self._store.add_resource(namespace(), message.id, resource.type, resource.id)
        return Empty()

    async def delete_resource(self, message: pb.DeleteResourceRequest) -> Empty:
        resource = _resource(message.resource)
        await self._store.delete_resource(namespace(), message.id, resource.type, resource.id)
        return Empty()

    async def list_resources(self, message: pb.ListResourcesRequest) -> pb.ListResourcesResponse:
        held = await self._store.resources(namespace(), message.id)
        return pb.ListResourcesResponse(resources=[pb.Resource(id=name, type=kind) for kind, name in held])


def _resource(resource: pb.Resource | None) -> pb.Resource:
    if resource is None:
        raise errdefs.InvalidArgument("resource is missing: invalid argument")
    return resource


def _encode(lease: leases.Lease) -> pb.Lease:
    return pb.Lease(id=lease.id, created_at=labels.moment(lease.created_at), labels=lease.labels)

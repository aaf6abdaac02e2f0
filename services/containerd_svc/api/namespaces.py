"""containerd.services.namespaces.v1.Namespaces."""

from __future__ import annotations

import errdefs
from pb.containerd.services.namespaces import v1 as pb
from pb.google.protobuf import Empty

from containerd_svc.namespaces import Namespaces


class NamespacesService(pb.NamespacesBase):
    """The namespaces on the wire."""

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces

    async def get(self, message: pb.GetNamespaceRequest) -> pb.GetNamespaceResponse:
        labels = await self._namespaces.get(message.name)
        return pb.GetNamespaceResponse(namespace=pb.Namespace(name=message.name, labels=labels))

    async def list(self, message: pb.ListNamespacesRequest) -> pb.ListNamespacesResponse:
        found = await self._namespaces.list()
        return pb.ListNamespacesResponse(
            namespaces=[pb.Namespace(name=name, labels=labels) for name, labels in found]
        )

    async def create(self, message: pb.CreateNamespaceRequest) -> pb.CreateNamespaceResponse:
        wanted = _given(message.namespace)
        await self._namespaces.create(wanted.name, wanted.labels)
        return pb.CreateNamespaceResponse(namespace=wanted)

    async def update(self, message: pb.UpdateNamespaceRequest) -> pb.UpdateNamespaceResponse:
        wanted = _given(message.namespace)
        paths = message.update_mask.paths if message.update_mask else []
        labels = await self._namespaces.update(wanted.name, wanted.labels, paths)
        return pb.UpdateNamespaceResponse(namespace=pb.Namespace(name=wanted.name, labels=labels))

    async def delete(self, message: pb.DeleteNamespaceRequest) -> Empty:
        await self._namespaces.delete(message.name)
        return Empty()


def _given(namespace: pb.Namespace | None) -> pb.Namespace:
    if namespace is None:
        raise errdefs.InvalidArgument("namespace is missing: invalid argument")
    return namespace

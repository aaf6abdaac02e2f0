"""containerd.services.containers.v1.Containers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import errdefs
from pb.containerd.services.containers import v1 as pb
from pb.google.protobuf import Empty

from containerd_svc import labels
from containerd_svc.api.call import namespace
from containerd_svc.containers import Container, Containers
from containerd_svc.content import ContentStore
from containerd_svc.image_labels import without_control_labels
from containerd_svc.images import ImageStore


class ContainersService(pb.ContainersBase):
    """The containers on the wire."""

    def __init__(self, containers: Containers, images: ImageStore, content: ContentStore) -> None:
        self._containers = containers
        self._images = images
        self._content = content

    async def get(self, message: pb.GetContainerRequest) -> pb.GetContainerResponse:
        found = await self._containers.get(namespace(), message.id)
        return pb.GetContainerResponse(container=_message(found))

    async def list(self, message: pb.ListContainersRequest) -> pb.ListContainersResponse:
        found = await self._containers.list(namespace(), message.filters)
        return pb.ListContainersResponse(containers=[_message(container) for container in found])

    async def list_stream(self, message: pb.ListContainersRequest) -> AsyncIterator[pb.ListContainerMessage]:
        for container in await self._containers.list(namespace(), message.filters):
            yield pb.ListContainerMessage(container=_message(container))

    async def create(self, message: pb.CreateContainerRequest) -> pb.CreateContainerResponse:
        wanted = await without_control_labels(
            self._images, self._content, namespace(), _container(message.container)
        )
        made = await self._containers.create(namespace(), wanted)
        return pb.CreateContainerResponse(container=_message(made))

    async def update(self, message: pb.UpdateContainerRequest) -> pb.UpdateContainerResponse:
        paths = message.update_mask.paths if message.update_mask else []
        made = await self._containers.update(namespace(), _container(message.container), paths)
        return pb.UpdateContainerResponse(container=_message(made))

    async def delete(self, message: pb.DeleteContainerRequest) -> Empty:
        await self._containers.delete(namespace(), message.id)
        return Empty()


def _container(message: pb.Container | None) -> Container:
    if message is None:
        raise errdefs.InvalidArgument("container is missing: invalid argument")
    runtime = message.runtime or pb.ContainerRuntime()
    return Container(
        id=message.id,
        labels=message.labels,
        image=message.image,
        runtime=runtime.name,
        runtime_options=runtime.options,
        spec=message.spec,
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        extensions=message.extensions,
        sandbox=message.sandbox,
    )


def _message(container: Container) -> pb.Container:
    return pb.Container(
        id=container.id,
        labels=dict(container.labels),
        image=container.image,
        runtime=pb.ContainerRuntime(name=container.runtime, options=container.runtime_options),
        spec=container.spec,
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        created_at=labels.moment(container.created_at),
        updated_at=labels.moment(container.updated_at),
        extensions=dict(container.extensions),
        sandbox=container.sandbox,
    )

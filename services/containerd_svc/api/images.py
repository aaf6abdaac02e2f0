"""containerd.services.images.v1.Images."""

from __future__ import annotations

import datetime

import errdefs
from pb.containerd.services.images import v1 as pb
from pb.containerd.types import Descriptor
from pb.google.protobuf import Empty

from containerd_svc import images, labels
from containerd_svc.api.call import lease, namespace
from containerd_svc.gc import Collector


class ImagesService(pb.ImagesBase):
    """The store on the wire. Delete with `sync` answers after the collector has run."""

    def __init__(self, store: images.ImageStore, collector: Collector) -> None:
        self._store = store
        self._collector = collector

    async def get(self, message: pb.GetImageRequest) -> pb.GetImageResponse:
        return pb.GetImageResponse(image=_encode(await self._store.get(namespace(), message.name)))

    async def list(self, message: pb.ListImagesRequest) -> pb.ListImagesResponse:
        found = await self._store.list(namespace(), message.filters)
        return pb.ListImagesResponse(images=[_encode(image) for image in found])

    async def create(self, message: pb.CreateImageRequest) -> pb.CreateImageResponse:
        image = await self._store.create(
            namespace(), _decode(message.image), at=_nanoseconds(message.source_date_epoch), lease=lease()
        )
        return pb.CreateImageResponse(image=_encode(image))

    async def update(self, message: pb.UpdateImageRequest) -> pb.UpdateImageResponse:
        paths = message.update_mask.paths if message.update_mask else []
        image = await self._store.update(
            namespace(), _decode(message.image), paths, at=_nanoseconds(message.source_date_epoch)
        )
        return pb.UpdateImageResponse(image=_encode(image))

    async def delete(self, message: pb.DeleteImageRequest) -> Empty:
        target = message.target.digest if message.target else ""
        await self._store.delete(namespace(), message.name, target=target)
        if message.sync:
            await self._collector.collect(namespace())
        return Empty()


def _decode(image: pb.Image | None) -> images.Image:
    if image is None:
        raise errdefs.InvalidArgument("image name must not be empty: invalid argument")
    target = image.target or Descriptor()
    return images.Image(
        image.name,
        images.Target(target.media_type, target.digest, target.size, dict(target.annotations)),
        dict(image.labels),
    )


def _encode(image: images.Image) -> pb.Image:
    return pb.Image(
        name=image.name,
        labels=image.labels,
        target=Descriptor(
            media_type=image.target.media_type,
            digest=image.target.digest,
            size=image.target.size,
            annotations=image.target.annotations,
        ),
        created_at=labels.moment(image.created_at),
        updated_at=labels.moment(image.updated_at),
    )


def _nanoseconds(moment: datetime.datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp() * 10**6) * 1000

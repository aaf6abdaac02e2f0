"""Docker's view of containerd's image records: one image for each config, with all names that lead to it.

A record's manifest and config are read once and kept, since a digest's content never changes; the records
themselves are asked for each time, since anybody may change them.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import errdefs
from pb.containerd.services.images import v1 as pb
from pb.containerd.types import Descriptor
from pb.google.protobuf import FieldMask
from rpc.grpc import Channel

from dockerd_api.images import reference
from dockerd_api.images.archive import diff_ids_of, parse_config
from dockerd_api.images.blobs import Blobs
from dockerd_api.images.model import DANGLING, LAYER_SIZES, Image, Layer, chain_ids

_KEPT = 256  # images whose documents are kept in memory
_COLLECT_TIMEOUT = 60.0  # seconds for a removal that frees blobs and snapshots


@dataclass(frozen=True)
class Documents:
    """What an image's manifest and config say."""

    id: str
    config: Mapping[str, Any]
    layers: tuple[Layer, ...]
    chain_id: str


class Catalog:
    """The image service of one containerd namespace."""

    def __init__(self, channel: Channel, blobs: Blobs) -> None:
        self._images = pb.ImagesStub(channel)
        self._blobs = blobs
        self._documents: OrderedDict[str, Documents] = OrderedDict()

    async def by_name(self, name: str) -> Image:
        """The image behind one record, with this name only in `names`. Raises NotFound."""
        answer = await self._images.get(pb.GetImageRequest(name=name))
        if answer.image is None:
            raise errdefs.NotFound(f'image "{name}": not found')
        return _image(await self._read(_target(answer.image)), [answer.image])

    async def all(self) -> dict[str, Image]:
        """Every image by id. Records that are no images of this machine's kind are left out."""
        answer = await self._images.list(pb.ListImagesRequest())
        records: dict[str, list[pb.Image]] = {}
        documents: dict[str, Documents] = {}
        for record in answer.images:
            try:
                found = await self._read(_target(record))
            except (errdefs.NotFound, errdefs.InvalidArgument, errdefs.ResourceExhausted):
                continue  # a foreign client's record, whose blobs are not here or no image
            documents[found.id] = found
            records.setdefault(found.id, []).append(record)
        return {image_id: _image(documents[image_id], group) for image_id, group in records.items()}

    async def record(self, name: str) -> pb.Image | None:
        """The record as containerd has it, or None."""
        try:
            answer = await self._images.get(pb.GetImageRequest(name=name))
        except errdefs.NotFound:
            return None
        return answer.image

    async def records_of(self, image: Image) -> list[pb.Image]:
        """The records behind an image, which `names` names."""
        found = [await self.record(name) for name in image.names]
        return [record for record in found if record is not None]

    async def put(self, name: str, target: Descriptor, labels: Mapping[str, str]) -> None:
        """Make the name point at the manifest, whether it exists or not."""
        image = pb.Image(name=name, target=target, labels=dict(labels))
        try:
            await self._images.create(pb.CreateImageRequest(image=image))
        except errdefs.AlreadyExists:
            await self._images.update(
                pb.UpdateImageRequest(image=image, update_mask=FieldMask(paths=["target", "labels"]))
            )

    async def remove(self, name: str, *, collect: bool = False) -> None:
        """Remove a name; with `collect` also what nothing holds any more. Fine when it is gone."""
        try:
            await self._images.delete(
                pb.DeleteImageRequest(name=name, sync=collect), timeout=_COLLECT_TIMEOUT
            )
        except errdefs.NotFound:
            return

    async def _read(self, target: Descriptor) -> Documents:
        known = self._documents.get(target.digest)
        if known is not None:
            self._documents.move_to_end(target.digest)
            return known
        manifest = _parsed(await self._blobs.read_document(target.digest), target.digest)
        config_digest = (manifest.get("config") or {}).get("digest")
        if not isinstance(config_digest, str):
            raise errdefs.InvalidArgument(f"{target.digest} is no image manifest")
        config = parse_config(await self._blobs.read_document(config_digest))
        documents = Documents(
            config_digest,
            config,
            tuple(_layers(manifest.get("layers") or [], diff_ids_of(config))),
            (chain_ids(diff_ids_of(config)) or [""])[-1],
        )
        self._documents[target.digest] = documents
        if len(self._documents) > _KEPT:
            self._documents.popitem(last=False)
        return documents


def _target(record: pb.Image) -> Descriptor:
    return record.target or Descriptor()


def _parsed(data: bytes, digest: str) -> Mapping[str, Any]:
    try:
        document = json.loads(data)
    except ValueError as error:
        raise errdefs.InvalidArgument(f"{digest} is no image manifest: {error}") from error
    if not isinstance(document, dict):
        raise errdefs.InvalidArgument(f"{digest} is no image manifest")
    return document


def _layers(descriptors: Sequence[Any], diff_ids: Sequence[str]) -> Iterable[Layer]:
    if len(descriptors) != len(diff_ids):
        raise errdefs.InvalidArgument("manifest and config have different numbers of layers")
    for descriptor, diff_id in zip(descriptors, diff_ids, strict=True):
        try:
            yield Layer(
                str(descriptor["mediaType"]), str(descriptor["digest"]), int(descriptor["size"]), diff_id
            )
        except (KeyError, TypeError, ValueError) as error:
            raise errdefs.InvalidArgument(f"a layer's descriptor is damaged: {error}") from error


def _image(documents: Documents, records: Sequence[pb.Image]) -> Image:
    tags: list[str] = []
    digests: list[str] = []
    sizes, tagged_at = "", 0.0
    for record in sorted(records, key=lambda record: record.name):
        sizes = sizes or record.labels.get(LAYER_SIZES, "")
        if record.name.startswith(DANGLING):
            continue
        try:
            name = reference.parse(record.name)
        except errdefs.InvalidArgument:
            continue  # containerd allows any name
        (digests if name.digest else tags).append(name.familiar)
        if not name.digest and record.updated_at is not None:
            tagged_at = max(tagged_at, record.updated_at.timestamp())
    if sizes:
        layer_sizes = tuple(int(size) for size in sizes.split(",") if size.isdigit())
    else:
        layer_sizes = tuple(layer.size for layer in documents.layers)
    return Image(
        id=documents.id,
        manifest_digest=_target(records[0]).digest,
        repo_tags=tuple(tags),
        repo_digests=tuple(digests),
        config=documents.config,
        chain_id=documents.chain_id,
        size=sum(layer_sizes),
        created=str(documents.config.get("created") or ""),
        architecture=str(documents.config.get("architecture") or ""),
        os=str(documents.config.get("os") or "linux"),
        layers=documents.layers,
        layer_sizes=layer_sizes,
        names=tuple(record.name for record in records),
        tagged_at=tagged_at,
    )

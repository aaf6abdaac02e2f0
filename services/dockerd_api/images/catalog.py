"""Docker's view of containerd's image records: one image for each target, with all names that lead to it.

A document's content never changes, so what was read once is kept; the records are asked for each time, since
anybody may change them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import errdefs
from pb.containerd.services.images import v1 as pb
from pb.google.protobuf import FieldMask
from rpc.grpc import Channel

from dockerd_api.images import documents, platforms, reference
from dockerd_api.images.blobs import Blobs
from dockerd_api.images.documents import Descriptor
from dockerd_api.images.model import DANGLING, Image, Layer, Manifest
from dockerd_api.images.platforms import Choice, Platform

_KEPT = 512  # documents that are kept in memory
_COLLECT_TIMEOUT = 60.0  # seconds for a removal that frees blobs and snapshots
# What a document that cannot be used raises: it is not here, or is none.
UNREADABLE = (errdefs.NotFound, errdefs.InvalidArgument, errdefs.ResourceExhausted)


class Catalog:
    """The image service of one containerd namespace, and the documents behind its records."""

    def __init__(self, channel: Channel, blobs: Blobs) -> None:
        self._images = pb.ImagesStub(channel)
        self._blobs = blobs
        self._documents: OrderedDict[str, Any] = OrderedDict()

    # -- records

    async def record(self, name: str) -> pb.Image | None:
        """The record as containerd has it, or None."""
        try:
            answer = await self._images.get(pb.GetImageRequest(name=name))
        except errdefs.NotFound:
            return None
        return answer.image

    async def records(self, *filters: str) -> list[pb.Image]:
        """The records that one of containerd's filters wants, by name; without any, all."""
        answer = await self._images.list(pb.ListImagesRequest(filters=list(filters)))
        return sorted(answer.images, key=lambda record: record.name)

    async def of_target(self, digest: str) -> list[pb.Image]:
        """The records with this target."""
        return await self.records(f"target.digest=={digest}")

    async def put(self, name: str, target: Descriptor, labels: Mapping[str, str]) -> str:
        """Let the name point at the target, whether it exists or not; the digest that it pointed at before,
        or empty.

        An image that loses its last name so stays, dangling; one that was dangling is so no more.
        """
        record = pb.Image(name=name, target=target.message(), labels=dict(labels))
        before = ""
        try:
            await self._images.create(pb.CreateImageRequest(image=record))
        except errdefs.AlreadyExists:
            old = await self.record(name)
            before = old.target.digest if old and old.target else ""
            if old is not None and before != target.digest:
                await self.keep(old)
            await self._images.update(
                pb.UpdateImageRequest(image=record, update_mask=FieldMask(paths=["target", "labels"]))
            )
        if name != dangling(target.digest):
            await self.remove(dangling(target.digest))
        return before

    async def keep(self, record: pb.Image) -> None:
        """Before the record goes away: let its image stay as a dangling one when it is the last name."""
        digest = documents.of_message(record.target).digest
        if [other for other in await self.of_target(digest) if other.name != record.name]:
            return
        kept = pb.Image(name=dangling(digest), target=record.target, labels=_unnamed(record.labels))
        try:
            await self._images.create(pb.CreateImageRequest(image=kept))
        except errdefs.AlreadyExists:
            return

    async def put_dangling(self, target: Descriptor, labels: Mapping[str, str]) -> None:
        """Have a record for an image that has no name, unless one leads to it already."""
        if not await self.of_target(target.digest):
            await self.put(dangling(target.digest), target, labels)

    async def remove(self, name: str, *, target: str = "", collect: bool = False) -> bool:
        """Remove a name; with `target` only while it points there; with `collect` return once what nothing
        holds any more is gone too. Answers whether there was such a record.
        """
        if target:
            record = await self.record(name)
            if record is None or documents.of_message(record.target).digest != target:
                return False
        request = pb.DeleteImageRequest(name=name, sync=collect)
        if target and record is not None:
            # A containerd that knows this field also catches a name that moves at this moment.
            request.target = record.target
        try:
            await self._images.delete(request, timeout=_COLLECT_TIMEOUT)
        except errdefs.NotFound:
            return False
        return True

    # -- images

    async def image(self, records: Sequence[pb.Image], platform: Platform | None = None) -> Image:
        """The image of records with one target, with the manifest for the platform, or for this machine, if
        it is here.
        """
        target = documents.of_message(records[0].target)
        return named(target, records, await self.choose(target, platform))

    async def groups(self, keep: Callable[[pb.Image], bool] = lambda record: True) -> list[list[pb.Image]]:
        """All records that `keep` keeps, those with one target together."""
        found: dict[str, list[pb.Image]] = {}
        for record in await self.records():
            if keep(record):
                found.setdefault(documents.of_message(record.target).digest, []).append(record)
        return list(found.values())

    async def choose(self, target: Descriptor, platform: Platform | None = None) -> Manifest | None:
        """The manifest below a target that suits the platform, or this machine best, among those whose
        documents are here; None for none. What is no image (attestations) is never chosen.
        """
        choice = Choice(platform)
        best: tuple[int, Manifest] | None = None
        for descriptor in await self.manifests(target):
            rank = choice.rank(descriptor.platform) if descriptor.platform else 0
            if descriptor.is_pseudo or rank is None or (best is not None and best[0] <= rank):
                continue
            try:
                manifest = await self.manifest(descriptor)
            except UNREADABLE:
                continue
            rank = choice.rank(manifest.platform)
            if rank is not None and (best is None or rank < best[0]):
                best = (rank, manifest)
            if rank is not None and choice.is_best(rank):
                break
        return best[1] if best else None

    async def manifests(self, target: Descriptor) -> list[Descriptor]:
        """The descriptors of all manifests that can be reached from a target, here or not, in the order of
        its indexes.
        """
        if target.is_manifest:
            return [target]
        if not target.is_index:
            return []
        found: dict[str, Descriptor] = {}
        queue, seen = [target], {target.digest}
        while queue:
            try:
                below = await self.index(queue.pop(0))
            except UNREADABLE:
                continue
            for descriptor in below:
                if descriptor.is_manifest:
                    found.setdefault(descriptor.digest, descriptor)
                elif descriptor.is_index and descriptor.digest not in seen:
                    seen.add(descriptor.digest)
                    queue.append(descriptor)
        return list(found.values())

    # -- documents

    async def index(self, descriptor: Descriptor) -> list[Descriptor]:
        """What an index leads to. Raises NotFound when it is not here, InvalidArgument."""
        below: list[Descriptor] = await self._document(descriptor, documents.index)
        return below

    async def manifest_parts(self, descriptor: Descriptor) -> tuple[Descriptor, list[Descriptor]]:
        """The config and the layers of a manifest. Raises NotFound when it is not here, InvalidArgument."""
        parts: tuple[Descriptor, list[Descriptor]] = await self._document(descriptor, documents.manifest)
        return parts

    async def manifest(self, descriptor: Descriptor) -> Manifest:
        """The image of one platform. Raises NotFound when manifest or config are not here, InvalidArgument
        when it is no image.
        """
        config_descriptor, layers = await self.manifest_parts(descriptor)
        if layers and not any(layer.is_layer for layer in layers):
            raise errdefs.InvalidArgument(f"{descriptor.digest} is no image: none of its layers is one")
        config = await self._document(
            config_descriptor, lambda data, described: documents.config(data, described.digest)
        )
        diff_ids = documents.diff_ids(config)
        if len(layers) != len(diff_ids):
            raise errdefs.InvalidArgument("manifest and config have different numbers of layers")
        return Manifest(
            descriptor=descriptor,
            config_descriptor=config_descriptor,
            config=config,
            layers=tuple(
                Layer(layer.media_type, layer.digest, layer.size, diff_id)
                for layer, diff_id in zip(layers, diff_ids, strict=True)
            ),
            platform=descriptor.platform or platforms.from_document(config),
        )

    def forget(self, digests: Iterable[str]) -> None:
        """These documents are not here any more."""
        gone = set(digests)
        for key in [key for key in self._documents if key.partition(" ")[0] in gone]:
            del self._documents[key]

    async def _document(self, descriptor: Descriptor, parse: Callable[[bytes, Descriptor], Any]) -> Any:
        # A document may be described in two ways, and only one of them be right.
        key = f"{descriptor.digest} {descriptor.media_type}"
        if key in self._documents:
            self._documents.move_to_end(key)
            return self._documents[key]
        found = parse(await self._blobs.read_document(descriptor.digest), descriptor)
        self._documents[key] = found
        if len(self._documents) > _KEPT:
            self._documents.popitem(last=False)
        return found


def dangling(digest: str) -> str:
    """The name of the record of an image that has no name."""
    return f"{DANGLING}{digest}"


def is_dangling(record: pb.Image) -> bool:
    """Whether the record is that of an image without a name."""
    return record.name == dangling(documents.of_message(record.target).digest)


def familiar(record: pb.Image) -> str:
    """A record's name as Docker shows it: of one without a name the digest."""
    if is_dangling(record):
        return documents.of_message(record.target).digest
    try:
        return reference.parse(record.name).familiar
    except errdefs.InvalidArgument:
        return record.name  # containerd allows any name


def named(target: Descriptor, records: Sequence[pb.Image], manifest: Manifest | None) -> Image:
    """The image of records that have the target."""
    tags: dict[str, None] = {}
    digests: dict[str, None] = {}
    for record in records:
        if is_dangling(record):
            continue
        tags[familiar(record)] = None
        try:
            name = reference.parse(record.name)
        except errdefs.InvalidArgument:
            continue
        digests[name.with_digest(name.digest or target.digest).familiar] = None
    moments = [record.created_at.timestamp() for record in records if record.created_at is not None]
    changes = [record.updated_at.timestamp() for record in records if record.updated_at is not None]
    labels: dict[str, str] = {}
    for record in records:
        labels |= record.labels
    return Image(
        target=target,
        names=tuple(record.name for record in records),
        repo_tags=tuple(tags),
        repo_digests=tuple(digests),
        labels=labels,
        manifest=manifest,
        created_at=min(moments, default=0.0),
        tagged_at=max(changes, default=0.0),
    )


def _unnamed(labels: Mapping[str, str]) -> dict[str, str]:
    names = ("io.containerd.image.name", "org.opencontainers.image.ref.name")
    return {key: value for key, value in labels.items() if key not in names}

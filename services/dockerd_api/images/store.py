"""The images of the engine: the one object that routes and the engine speak to."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import errdefs
from pb.containerd.types import Mount
from rpc.grpc import Channel

from dockerd_api.images import archive, changes, legacy, listing, reference, removal
from dockerd_api.images.blobs import Blobs
from dockerd_api.images.catalog import Catalog
from dockerd_api.images.loading import Loader, Publish, host_architecture
from dockerd_api.images.model import Image
from dockerd_api.images.reference import Reference
from dockerd_api.images.spool import Spool, receive
from dockerd_api.images.unpack import Trees

# The containers that use an image: (container id, whether it runs).
InUse = Callable[[str], Sequence[tuple[str, bool]]]


class Images:
    """Images over a containerd. `events` publishes (type, action, id, attributes).

    `in_use` is to be set once the containers are known, and `settled`, which waits until those that were
    removed stand on no image any more. `spool` is the folder for uploads; without it, the
    system's temporary folder. Call `recover` once at start, before any other.
    """

    def __init__(self, channel: Channel, events: Publish, *, spool: Path | None = None) -> None:
        self._publish = events
        self._spool = spool
        self._blobs = Blobs(channel)
        self._trees = Trees(channel)
        self._catalog = Catalog(channel, self._blobs)
        self._loader = Loader(channel, self._blobs, self._trees, self._catalog, events)
        self.in_use: InUse = lambda image_id: ()
        self.settled: Callable[[], Awaitable[None]] = _at_once

    async def recover(self) -> None:
        """Throw away what an earlier process was loading when it died."""
        await self._loader.recover()

    async def resolve(self, ref: str) -> Image:
        """The image that a user means by a name, a name with digest, an id, or the beginning of an id.

        Its `names` and tags are those of the record that was found by name. Raises InvalidArgument for what
        can be none, NotFound for what is not here.
        """
        return (await self._resolve(ref))[0]

    async def prepare_snapshot(self, container_id: str, image: Image) -> None:
        """A writable snapshot named `container_id` on the image. Unpacks the image again when its snapshots
        are gone.
        """
        try:
            await self._trees.prepare(container_id, image.chain_id)
        except errdefs.NotFound:
            await self._loader.unpack_again(image)
            await self._trees.prepare(container_id, image.chain_id)

    async def snapshot_mounts(self, container_id: str) -> list[Mount]:
        """The mounts that show the container's tree. Raises NotFound."""
        return await self._trees.mounts(container_id)

    async def remove_snapshot(self, container_id: str) -> None:
        """Remove the container's tree; fine when it is gone."""
        await self._trees.remove(container_id)

    async def snapshot_usage(self, container_id: str) -> int:
        """Bytes on disk of what the container changed. Raises NotFound."""
        return await self._trees.usage(container_id)

    async def load(self, data: AsyncIterator[bytes]) -> AsyncIterator[str]:
        """Load the images of an archive; yields Docker's lines, the first only when the whole archive was
        checked.

        Raises InvalidArgument for a damaged or hostile archive; images that were loaded before it was noticed
        stay.
        """
        folder = self._spool or Path(tempfile.gettempdir())
        async with receive(data, folder) as spool:
            found = await asyncio.to_thread(_read, spool)
            lines: list[str] = []
            for image in found:
                lines += await self._loader.load(spool, image)
            if not any(image.tags for image in found):
                lines = [f"Loaded image ID: {image.id}\n" for image in found]
            for line in lines:
                yield line

    async def import_(
        self,
        data: AsyncIterator[bytes],
        *,
        repository: str = "",
        tag: str = "",
        instructions: Sequence[str] = (),
        message: str = "",
        architecture: str = "",
    ) -> str:
        """Make an image of the tar of a file tree; its id. Raises InvalidArgument."""
        name = reference.parse_repository(repository, tag)
        config = changes.apply(instructions)
        return await self._loader.import_tree(
            data, name, config=config, message=message, architecture=architecture
        )

    async def list(
        self, filters: listing.Filters, *, all_: bool = False, shared_size: bool = False
    ) -> Sequence[dict[str, Any]]:
        """The entries of `GET /images/json`. Every image is shown: we make no intermediate ones, so that
        `all_` adds none.
        """
        images = list((await self._catalog.all()).values())
        by_ref = {
            name: await self.resolve(name) for key in ("before", "since") for name in filters.get(key, ())
        }
        shared = listing.shared_sizes(images) if shared_size else {}
        entries = []
        for image in listing.choose(images, filters, by_ref.__getitem__):
            names = listing.shown_names(image, filters)
            if names is not None:
                entries.append(
                    listing.summary(image, *names, containers=-1, shared_size=shared.get(image.id, -1))
                )
        return entries

    async def inspect(self, ref: str, version: tuple[int, int]) -> dict[str, Any]:
        """The answer of `GET /images/{name}/json` for an API version. Raises NotFound."""
        return listing.details(await self._whole(ref), version)

    async def history(self, ref: str) -> Sequence[dict[str, Any]]:
        """The answer of `GET /images/{name}/history`. Raises NotFound."""
        return listing.history(await self._whole(ref))

    async def tag(self, ref: str, repository: str, tag: str) -> None:
        """Let a further name point at an image. Raises InvalidArgument, NotFound."""
        name = reference.parse_repository(repository, tag)
        if name is None:
            raise errdefs.InvalidArgument("invalid reference format")
        if name.familiar_name == "sha256":
            raise errdefs.InvalidArgument(
                "refusing to create an ambiguous tag using digest algorithm as name"
            )
        image = await self.resolve(ref)
        for record in await self._catalog.records_of(image):
            if record.target is not None:
                await self._loader.point(name, image.id, record.target, record.labels)
                break
        await self._publish("image", "tag", image.id, {"name": name.familiar})

    async def remove(self, ref: str, *, force: bool = False, prune: bool = True) -> Sequence[dict[str, str]]:
        """Remove a name, or an image with all its names; the entries of the answer. `prune` is about parents,
        which our images have none of. Raises NotFound, Conflict.
        """
        image = await self._whole(ref)
        await self.settled()
        remover = removal.Remover(self._catalog, self._trees, self._publish, self.in_use)
        return await remover.remove(image, ref, force=force)

    async def count(self) -> int:
        """How many images there are."""
        return len(await self._catalog.all())

    async def _whole(self, ref: str) -> Image:
        """Like resolve, with all names of the image."""
        image, full = await self._resolve(ref)
        return image if full else (await self._catalog.all()).get(image.id, image)

    async def _resolve(self, ref: str) -> tuple[Image, bool]:
        """The image, and whether it has all its names."""
        image_id = reference.identifier(ref)
        if image_id:
            found = (await self._catalog.all()).get(image_id)
            if found is None:
                raise errdefs.NotFound(f"No such image: {image_id}")
            return found, True
        name = reference.parse(ref).tagged()
        with contextlib.suppress(errdefs.NotFound):
            return await self._catalog.by_name(str(name)), False
        images = await self._catalog.all()
        if name.digest:
            found = _by_digest(images.values(), name)
            if found is not None:
                return found, True
        beginning = ref.removeprefix("sha256:")
        matching = [image for key, image in images.items() if key.startswith(f"sha256:{beginning}")]
        if len(matching) != 1 or not beginning:  # none, or ambiguous, which Docker does not tell apart
            raise errdefs.NotFound(f"No such image: {name.familiar}")
        return matching[0], True


async def _at_once() -> None:
    return


def _read(spool: Spool) -> list[archive.ArchivedImage]:
    """The images of an archive, whichever format it has; blocks."""
    repositories = archive.read_document(spool, "repositories")
    if repositories is not None and spool.piece("manifest.json") is None:
        return legacy.read(spool, repositories)
    return archive.read(spool, host_architecture())


def _by_digest(images: Iterable[Image], name: Reference) -> Image | None:
    """The image of the repository whose manifest has the digest."""
    for image in images:
        repositories = {reference.parse(known).name for known in (*image.repo_tags, *image.repo_digests)}
        if image.manifest_digest == name.digest and name.name in repositories:
            return image
    return None

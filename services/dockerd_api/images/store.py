"""The images of the engine: the one object that routes and the engine speak to."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import errdefs
from pb.containerd.types import Mount
from rpc.grpc import Channel

from dockerd_api.images import archive, changes, documents, layouts, legacy, platforms, reference, resolution
from dockerd_api.images.blobs import Blobs
from dockerd_api.images.catalog import Catalog, familiar
from dockerd_api.images.committing import Commit, Committer
from dockerd_api.images.filters import Filters
from dockerd_api.images.leases import Leases
from dockerd_api.images.loading import Loader
from dockerd_api.images.model import Image, Publish
from dockerd_api.images.platforms import Platform
from dockerd_api.images.pruning import Pruner
from dockerd_api.images.queries import Queries
from dockerd_api.images.removal import Remover, User, Users
from dockerd_api.images.saving import Saver
from dockerd_api.images.spool import Spool, receive
from dockerd_api.images.unpack import Trees
from dockerd_api.images.walking import Walker


class Images:
    """Images over a containerd. `events` publishes (type, action, id, attributes).

    `containers` is to be set once the containers are known, and `settled`, which waits until those that were
    removed stand on no image any more. `spool` is the folder for uploads; without it, the
    system's temporary folder. Call `recover` once at start, before any other.
    """

    def __init__(self, channel: Channel, events: Publish, *, spool: Path | None = None) -> None:
        self._publish = events
        self._spool = spool
        self._blobs = Blobs(channel)
        self._trees = Trees(channel)
        self._catalog = Catalog(channel, self._blobs)
        self._walker = Walker(self._catalog, self._blobs)
        self.catalog, self.walker = self._catalog, self._walker
        leases = Leases(channel)
        self._loader = Loader(leases, self._blobs, self._trees, self._catalog, events)
        self._committer = Committer(leases, self._blobs, self._trees, self._catalog)
        self.saver = Saver(leases, self._blobs, self._catalog, self._walker, events)
        self._remover = Remover(self._catalog, self._walker, self._blobs, events, self._users)
        self._pruner = Pruner(self._catalog, self._walker, self._blobs, self._trees, events, self._users)
        self._reserved: Counter[str] = Counter()
        self.queries = Queries(self._catalog, self._walker, self._trees, self._users)
        self.containers: Users = lambda: ()
        self.settled: Callable[[], Awaitable[None]] = _at_once

    async def recover(self) -> None:
        """Throw away what an earlier process was loading when it died."""
        await self._loader.recover()

    async def resolve(self, ref: str, platform: Platform | None = None) -> Image:
        """The image that a user means by a name, a name with digest, an id, or the beginning of an id, for
        the platform, or for this machine.

        Its names are that of the record that was found. Raises InvalidArgument for what can be none, NotFound
        for what is not here, or not for the platform.
        """
        record = await resolution.find(self._catalog, ref)
        image = await self._catalog.image([record], platform)
        if image.manifest is None:
            what = f"the specified platform ({platform})" if platform else "any platform"
            raise errdefs.NotFound(
                f"image with reference {familiar(record)} was found but does not provide {what}"
            )
        return image

    @contextlib.contextmanager
    def reserve(self, image: Image) -> Iterator[None]:
        """Keep an image from being pruned while a container is made from it."""
        self._reserved[image.id] += 1
        try:
            yield
        finally:
            self._reserved[image.id] -= 1
            self._reserved += Counter()  # drops those that are at 0

    async def successors(self, image_ids: Sequence[str]) -> dict[str, Image]:
        """Images whose ids were the digests of their configs, as Buoy had them before, by that id. What is an
        id today is left out, and what is not here.
        """
        groups = await self._catalog.groups()
        targets = {documents.of_message(group[0].target).digest for group in groups}
        wanted = {image_id for image_id in image_ids if image_id not in targets}
        found: dict[str, Image] = {}
        for group in groups if wanted else ():
            image = await self._catalog.image(group)
            if image.manifest is not None and image.manifest.config_descriptor.digest in wanted:
                found[image.manifest.config_descriptor.digest] = image
        return found

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

    async def snapshot_sizes(self, container_id: str) -> tuple[int, int]:
        """Bytes on disk of what the container changed, and of its whole tree. Raises NotFound."""
        return await self._trees.whole_usage(container_id)

    async def load(self, data: AsyncIterator[bytes], platform: Platform | None = None) -> AsyncIterator[str]:
        """Load the images of an archive, with `platform` only what is for it; yields Docker's lines, the
        first only when the whole archive was checked.

        Raises InvalidArgument for a damaged or hostile archive; images that were loaded before it was noticed
        stay. NotFound when one is not there for the platform.
        """
        folder = self._spool or Path(tempfile.gettempdir())
        async with receive(data, folder) as spool:
            found = await asyncio.to_thread(_read, spool, platform)
            lines: list[str] = []
            for image in found:
                if isinstance(image, layouts.Layout):
                    lines.append(await self._loader.load_layout(spool, image))
                else:
                    lines += await self._loader.load(spool, image)
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

    async def commit(self, wanted: Commit) -> str:
        """Make an image of a container; its id. Raises NotFound."""
        image_id = await self._committer.commit(wanted)
        if wanted.name is not None:
            labels = wanted.config.get("Labels") or {}
            await self._publish("image", "tag", image_id, {**labels, "name": wanted.name.familiar})
        return image_id

    async def tag(self, ref: str, repository: str, tag: str) -> None:
        """Let a further name point at an image. Raises InvalidArgument, NotFound."""
        name = reference.parse_repository(repository, tag)
        if name is None:
            raise errdefs.InvalidArgument("invalid reference format")
        if name.familiar_name == "sha256":
            raise errdefs.InvalidArgument(
                "refusing to create an ambiguous tag using digest algorithm as name"
            )
        record = await resolution.find(self._catalog, ref)
        image = await self._catalog.image([record])
        await self._catalog.put(str(name), image.target, record.labels)
        labels = (image.config.get("config") or {}).get("Labels") or {}
        await self._publish("image", "tag", image.id, {**labels, "name": name.familiar})

    async def remove(
        self, ref: str, *, force: bool = False, prune: bool = True, platforms: Sequence[Platform] = ()
    ) -> Sequence[dict[str, str]]:
        """Remove a name, or an image with all its names, and with `prune` its unnamed parents; with
        `platforms` only what belongs to those. The entries of the answer. Raises NotFound, Conflict,
        InvalidArgument.
        """
        await self.settled()
        return await self._remover.remove(ref, force=force, prune=prune, platforms=platforms)

    async def prune(self, filters: Filters) -> tuple[Sequence[dict[str, str]], int]:
        """Remove what no container uses; the entries of the answer, and the bytes that are free now. Raises
        Conflict, InvalidArgument.
        """
        await self.settled()
        deleted, freed = await self._pruner.prune(filters)
        await self._publish("image", "prune", "", {"reclaimed": str(freed)})
        return deleted, freed

    async def count(self) -> int:
        """How many images there are."""
        return len(await self._catalog.groups())

    def _users(self) -> Sequence[User]:
        return [*self.containers(), *(User("", False, digest) for digest in self._reserved)]


async def _at_once() -> None:
    return


def _read(spool: Spool, platform: Platform | None) -> list[archive.ArchivedImage] | list[layouts.Layout]:
    """The images of an archive, whichever format it has; blocks."""
    index = spool.piece("index.json")
    if index is not None and spool.piece("oci-layout") is not None:
        return layouts.read(spool, index, platform)
    repositories = archive.read_document(spool, "repositories")
    if repositories is not None and spool.piece("manifest.json") is None:
        found = legacy.read(spool, repositories)
    else:
        found = archive.read(spool)
    choice = platforms.Choice(platform)
    for image in found if platform is not None else ():
        if choice.rank(platforms.from_document(image.document)) is None:
            what = image.tags[0].familiar if image.tags else "without a name"
            raise errdefs.NotFound(f"image {what} doesn't provide the requested platform ({platform})")
    return found

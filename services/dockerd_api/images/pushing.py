"""Push images: a tag, or all tags of a repository (moby daemon/containerd/image_push.go).

An image of several platforms is pushed whole where all of it is here. Where only a part is, the manifest of
one platform is pushed in its place, and the client is told so.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator

import errdefs
from pb.containerd.services.images import v1 as pb
from pb.containerd.types.transfer import ImageStore

from dockerd_api.images import documents, platforms, reference, registry_errors
from dockerd_api.images.catalog import Catalog, dangling
from dockerd_api.images.documents import Descriptor
from dockerd_api.images.model import Publish
from dockerd_api.images.platforms import Platform
from dockerd_api.images.progress import PushProgress, auxiliary, status
from dockerd_api.images.reference import Reference
from dockerd_api.images.transfers import Transfers, watched
from dockerd_api.images.walking import Walker
from dockerd_api.registries import Credentials


class Pusher:
    """Pushes images of one containerd namespace. What is said comes line by line."""

    def __init__(self, transfers: Transfers, catalog: Catalog, walker: Walker, publish: Publish) -> None:
        self._transfers = transfers
        self._catalog = catalog
        self._walker = walker
        self._publish = publish

    async def push(
        self, name: Reference, platform: Platform | None, credentials: Credentials, user_agent: str
    ) -> AsyncGenerator[bytes]:
        """A name without tag and digest means all tags that are here. `platform` alone is pushed where given.

        Raises NotFound for what is not here, and what the registry says.
        """
        yield status(f"The push refers to repository [{name.name}]")
        names = [name] if name.tag or name.digest else await self._tagged(name)
        if not names:
            raise errdefs.Internal(
                f"An image does not exist locally with the tag: {name.familiar_name}"
            )  # a fault of ours in Docker's eyes
        for one in names:
            async for line in self._push(one, platform, credentials, user_agent):
                yield line

    async def _tagged(self, repository: Reference) -> list[Reference]:
        found = []
        for record in await self._catalog.records():
            with contextlib.suppress(errdefs.InvalidArgument):  # containerd allows any name
                name = reference.parse(record.name)
                if name.name == repository.name and name.tag and not name.digest:
                    found.append(name)
        return sorted(found, key=str)

    async def _push(
        self, name: Reference, platform: Platform | None, credentials: Credentials, user_agent: str
    ) -> AsyncGenerator[bytes]:
        record = await self._catalog.record(str(name))
        if record is None:
            raise errdefs.NotFound(f"tag does not exist: {name.familiar}")
        whole = target = documents.of_message(record.target)
        if platform is not None:
            target = await self._chosen(name, whole, platform)
        progress = PushProgress()
        try:
            async for line in self._sent(name, record, target, credentials, user_agent, progress):
                yield line
        except errdefs.NotFound as error:
            if platform is not None or not whole.is_index:
                yield auxiliary({"contentMissing": True, "desc": target.document()})
                raise
            target = await self._chosen(name, whole, None)
            if target.digest == whole.digest:
                yield auxiliary({"contentMissing": True, "desc": whole.document()})
                raise error
            async for line in self._sent(name, record, target, credentials, user_agent, progress):
                yield line
            yield auxiliary(
                {
                    "manifestPushedInsteadOfIndex": True,
                    "originalIndex": whole.document(),
                    "selectedManifest": target.document(),
                }
            )
        await self._publish("image", "push", name.familiar, {"name": name.familiar_name})
        for line in progress.messages():
            yield line
        if name.tag:
            yield status(f"{name.tag}: digest: {target.digest} size: {target.size}")
            yield auxiliary({"Tag": name.tag, "Digest": target.digest, "Size": target.size})

    async def _sent(
        self,
        name: Reference,
        record: pb.Image,
        target: Descriptor,
        credentials: Credentials,
        user_agent: str,
        progress: PushProgress,
    ) -> AsyncGenerator[bytes]:
        async with self._named(record, target) as source:
            store = ImageStore(name=source)
            work = self._transfers.push(name, store, credentials, user_agent, progress.take_in)
            try:
                async for line in watched(work, progress.messages):
                    yield line
            except errdefs.BuoyError as error:
                raise registry_errors.of_registry(error) from error

    @contextlib.asynccontextmanager
    async def _named(self, record: pb.Image, target: Descriptor) -> AsyncIterator[str]:
        """A record that leads to what is pushed: containerd pushes whole records only."""
        if record.target is not None and target.digest == record.target.digest:
            yield record.name
            return
        name = dangling(target.digest)
        if await self._catalog.record(name) is not None:
            yield name
            return
        await self._catalog.put(name, target, {})
        try:
            yield name
        finally:
            await self._catalog.remove(name)

    async def _chosen(self, name: Reference, whole: Descriptor, platform: Platform | None) -> Descriptor:
        """What is pushed of an image of which one platform was asked for, or not all is here."""
        choice = platforms.Choice(platform)
        parts = (await self._walker.walk(whole)).parts
        missing = any(not part.available for part in parts)
        ranked = [
            (rank, part.descriptor)
            for part in parts
            if part.available and part.kind == "image"
            for rank in [choice.rank(part.platform)]
            if rank is not None
        ]
        if not ranked:
            what = f"the specified platform ({platform})" if platform is not None else "any platform"
            raise errdefs.NotFound(
                f"image with reference {name.familiar} was found but does not provide {what}"
            )
        if platform is not None:
            if len(ranked) > 1:
                raise errdefs.Conflict(f"multiple manifests found for platform {platform}")
            return ranked[0][1]
        if not missing:
            return whole
        if len(ranked) == 1:
            return ranked[0][1]
        rank, best = min(ranked, key=lambda pair: pair[0])
        if not choice.is_best(rank):
            raise errdefs.Conflict("multiple matching manifests found but no specific platform requested")
        return best

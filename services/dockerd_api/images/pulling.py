"""Pull images: by tag, by digest, or all tags of a repository (moby daemon/containerd/image_pull.go)."""

from __future__ import annotations

import contextlib
import datetime
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

import errdefs
from linux.crashpoints import crashpoint
from pb.containerd.services.images import v1 as pb
from pb.containerd.services.leases import v1 as leases
from pb.containerd.types import Platform as PlatformMessage
from pb.containerd.types.transfer import ImageStore, UnpackConfiguration
from rpc.grpc import Channel

from dockerd_api.images import platforms, reference, registry_errors
from dockerd_api.images.catalog import Catalog, dangling
from dockerd_api.images.model import Publish
from dockerd_api.images.platforms import Platform
from dockerd_api.images.progress import PullProgress
from dockerd_api.images.reference import Reference
from dockerd_api.images.transfers import Transfers, watched
from dockerd_api.images.unpack import SNAPSHOTTER
from dockerd_api.registries import Credentials

_LEASE_HOURS = 24
# The tags that a registry has of a repository, for somebody.
ListTags = Callable[[Reference, Credentials, str], Awaitable[list[str]]]


class Puller:
    """Pulls images into one containerd namespace. What is said comes line by line; an error before the first
    line can be answered with a status of its own.
    """

    def __init__(
        self, channel: Channel, transfers: Transfers, catalog: Catalog, publish: Publish, tags: ListTags
    ) -> None:
        self._leases = leases.LeasesStub(channel)
        self._transfers = transfers
        self._catalog = catalog
        self._publish = publish
        self._tags = tags

    async def pull(
        self, name: Reference, platform: Platform | None, credentials: Credentials, user_agent: str
    ) -> AsyncGenerator[bytes]:
        """A name without tag and digest means all tags. Without a platform this machine's is pulled.

        Raises NotFound for what the registry does not have, Internal for one that is away, InvalidArgument,
        PermissionDenied and Unauthenticated as the registry says.
        """
        if name.tag or name.digest:
            async for line in self._pull(name, platform, credentials, user_agent):
                yield line
            return
        for tag in await self._tags(name, credentials, user_agent):
            one = reference.with_tag(name, tag)
            try:
                async for line in self._pull(one, platform, credentials, user_agent):
                    yield line
            except errdefs.BuoyError as error:
                raise type(error)(f"error pulling {one}: {error.message}", detail=error.detail) from error

    async def _pull(
        self, name: Reference, platform: Platform | None, credentials: Credentials, user_agent: str
    ) -> AsyncGenerator[bytes]:
        wanted = platform or platforms.host()
        store = ImageStore(
            name=str(name),
            platforms=[_message(each) for each in platforms.runnable(wanted)],
            manifest_limit=1,
            # What does not run here is unpacked when a container wants it nevertheless.
            unpacks=[UnpackConfiguration(platform=_message(wanted), snapshotter=SNAPSHOTTER)]
            if platforms.runs_here(wanted)
            else [],
        )
        progress = PullProgress(name)
        replaced = await self._catalog.record(str(name))
        old = replaced.target.digest if replaced is not None and replaced.target is not None else ""
        async with self._held(old):
            try:
                work = self._transfers.pull(name, store, credentials, user_agent, progress.take_in)
                async for line in watched(work, progress.messages):
                    yield line
            except errdefs.BuoyError as error:
                raise registry_errors.of_pull(error, name, wanted) from error
            crashpoint("images.pulled")
            record = await self._catalog.record(str(name))
            if record is None or record.target is None:
                raise errdefs.NotFound(f"{name.familiar} was removed while it was pulled")
            new = record.target.digest
            if replaced is not None and old != new:
                await self._catalog.keep(replaced)
            await self._catalog.remove(dangling(new))
        await self._publish("image", "pull", name.familiar, await self._attributes(name, record))
        for line in progress.end(new, newer=old != new):
            yield line

    async def _attributes(self, name: Reference, record: pb.Image) -> dict[str, str]:
        """The image's labels and its repository, for an event."""
        image = await self._catalog.image([record])
        labels = (image.config.get("config") or {}).get("Labels") or {}
        return {**labels, "name": name.familiar_name}

    @contextlib.asynccontextmanager
    async def _held(self, digest: str) -> AsyncIterator[None]:
        """Keeps the image that a name leads to, so that it is still there to be without one."""
        if not digest:
            yield
            return
        lease = f"dockerd-pull-{secrets.token_hex(8)}"
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=_LEASE_HOURS)
        expires = ends.strftime("%Y-%m-%dT%H:%M:%SZ")
        await self._leases.create(leases.CreateRequest(id=lease, labels={"containerd.io/gc.expire": expires}))
        try:
            held = leases.Resource(id=digest, type="content")
            await self._leases.add_resource(leases.AddResourceRequest(id=lease, resource=held))
            yield
        finally:
            with contextlib.suppress(errdefs.BuoyError):  # `recover` deletes what stays
                await self._leases.delete(leases.DeleteRequest(id=lease))


def _message(platform: Platform) -> PlatformMessage:
    return PlatformMessage(
        os=platform.os,
        architecture=platform.architecture,
        variant=platform.variant,
        os_version=platform.os_version,
    )

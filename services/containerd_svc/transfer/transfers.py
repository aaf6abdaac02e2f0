"""Transfers: from a registry or an archive into the store and out of it, from one name to another."""

from __future__ import annotations

import contextlib
import datetime
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import errdefs
from http_client.proxies import Proxies
from linux.crashpoints import crashpoint
from pb.containerd.types.transfer import (
    ImageExportStream,
    ImageImportStream,
    ImageStore,
    OciRegistry,
    Progress,
    RegistryResolver,
    UnpackConfiguration,
)

from containerd_svc import leases
from containerd_svc.content import ContentStore
from containerd_svc.diff import Differ
from containerd_svc.images import Image, Target
from containerd_svc.images import ImageStore as Images
from containerd_svc.registry import Registry, Resolver
from containerd_svc.registry.credentials import Ask, ask_nobody
from containerd_svc.snapshots import Snapshots
from containerd_svc.transfer import asking, naming
from containerd_svc.transfer.archive import Exporter, Importer
from containerd_svc.transfer.descriptors import (
    MANIFESTS,
    Children,
    Descriptor,
    children,
)
from containerd_svc.transfer.platforms import matches, this_host
from containerd_svc.transfer.pulling import DOWNLOADS, Puller, described, names_of
from containerd_svc.transfer.pushing import UPLOADS, Pusher
from containerd_svc.transfer.streams import Sender, Stream, Streams, received
from containerd_svc.transfer.telling import Tell
from containerd_svc.transfer.unpacking import SNAPSHOTTER, Unpacker

_LASTS = datetime.timedelta(hours=24)  # as containerd's own leases of a transfer
_OWN_LEASE = "dev.buoy.transfer"


class Transfers:
    """What is transferred is held by the caller's lease, or by one of the transfer's own until its end."""

    def __init__(
        self,
        *,
        streams: Streams,
        content: ContentStore,
        images: Images,
        snapshots: Snapshots,
        held: leases.Leases,
        differ: Differ,
        place: Path,
        proxies: Proxies | None = None,
    ) -> None:
        self._proxies = proxies or Proxies()
        self._streams = streams
        self._content = content
        self._images = images
        self._leases = held
        self._unpacker = Unpacker(content, snapshots, held, differ)
        self._puller = Puller(content, held, self._unpacker)
        self._importer = Importer(content, place)
        self._exporter = Exporter(content)
        self._pusher = Pusher(content)

    async def start(self) -> None:
        """End the leases of transfers that died with the process before."""
        await self._leases.end_labelled(_OWN_LEASE)

    async def load(
        self, namespace: str, source: ImageImportStream, store: ImageStore, tell: Tell, lease: str
    ) -> None:
        """Import an archive: blobs, unpacked layers, then the names that `store` wants."""
        if source.force_compress:
            raise errdefs.NotImplementedHere("compressing blobs on import is not supported: not implemented")
        with self._using(namespace, source.stream) as stream:
            async with self._held(namespace, lease) as holder:
                await tell(Progress(event="Importing"))
                index = await self._importer.read(namespace, received(stream), holder)
                crashpoint("transfer.blobs-stored")
                manifests = await self._walk(namespace, index, store)
                for wanted in store.unpacks:
                    await self._unpack(namespace, manifests, wanted, holder)
                crashpoint("transfer.unpacked")
                named = [(index, naming.names_of_whole(store))]
                for manifest in manifests:
                    annotations = manifest.get("annotations") or {}
                    names = naming.names_in_index(store, manifest["digest"], annotations)
                    named.append((manifest, names))
                for descriptor, names in named:
                    for name in names:
                        await self._store(namespace, name, descriptor, store, holder)
                        await tell(Progress(event="saved", name=name, desc=described(descriptor)))
                await tell(Progress(event="Completed import"))

    async def pull(
        self,
        namespace: str,
        source: OciRegistry,
        store: ImageStore,
        tell: Tell,
        lease: str,
        *,
        downloads: int = DOWNLOADS,
    ) -> None:
        """Pull an image of a registry: blobs, unpacked layers, then the names that `store` wants."""
        with self._registry(namespace, source) as registry:
            async with registry, self._held(namespace, lease) as holder:
                target = await self._puller.pull(
                    namespace, registry, source.reference, store, tell, holder, downloads=downloads
                )
                names = list(names_of(store, target["digest"]))
                if not names:
                    raise errdefs.NotFound("no image name found: not found")
                for name in names:
                    await self._store(namespace, name, target, store, holder)
                    await tell(Progress(event="saved", name=name, desc=described(target)))
                await tell(Progress(event=f"Completed pull from OCI Registry ({source.reference})"))

    async def push(
        self,
        namespace: str,
        store: ImageStore,
        target: OciRegistry,
        tell: Tell,
        lease: str,
        *,
        uploads: int = UPLOADS,
    ) -> None:
        """Push the image that `store` names, for its platforms, to a registry."""
        with self._registry(namespace, target) as registry:
            async with registry, self._held(namespace, lease):
                image = await self._images.get(namespace, store.name)
                await self._pusher.push(
                    namespace,
                    registry,
                    image.name,
                    {
                        "mediaType": image.target.media_type,
                        "digest": image.target.digest,
                        "size": image.target.size,
                    },
                    store.platforms,
                    tell,
                    uploads=uploads,
                )

    async def save(
        self, namespace: str, store: ImageStore, target: ImageExportStream, tell: Tell, lease: str
    ) -> None:
        """Export the images that `store` names."""
        if any(each.is_prefix for each in store.extra_references):
            raise errdefs.NotImplementedHere("prefix lookup on export not implemented: not implemented")
        with self._using(namespace, target.stream) as stream:
            async with self._held(namespace, lease):
                await tell(Progress(event="Exporting"))
                names = naming.names_of_whole(store)
                images = [await self._images.get(namespace, name) for name in names]
                sender = Sender(stream)
                async for data in self._exporter.write(namespace, images, target):
                    await sender.write(data)
                await tell(Progress(event="Completed export"))

    async def tag(self, namespace: str, source: ImageStore, target: ImageStore, lease: str) -> None:
        """Give an image other names."""
        image = await self._images.get(namespace, source.name)
        descriptor = {
            "mediaType": image.target.media_type,
            "digest": image.target.digest,
            "size": image.target.size,
            "annotations": image.target.annotations,
        }
        names = naming.names_of_whole(target)
        if not names:
            raise errdefs.NotFound("no image name found: not found")
        async with self._held(namespace, lease) as holder:
            for name in names:
                await self._store(namespace, name, descriptor, target, holder)

    async def echo(self, namespace: str, source: ImageImportStream, target: ImageExportStream) -> None:
        """Send an archive back as it comes: for those who test streams."""
        with (
            self._using(namespace, source.stream) as incoming,
            self._using(namespace, target.stream) as outgoing,
        ):
            sender = Sender(outgoing)
            async for data in received(incoming):
                await sender.write(data)

    # Parts.

    @contextlib.contextmanager
    def _registry(self, namespace: str, place: OciRegistry) -> Iterator[Registry]:
        """The registry of a transfer, whose questions go to the client's stream."""
        resolver = place.resolver or RegistryResolver()
        with contextlib.ExitStack() as stack:
            ask: Ask = ask_nobody
            if resolver.auth_stream:
                ask = asking.over(stack.enter_context(self._using(namespace, resolver.auth_stream)))
            yield Registry(
                place.reference,
                Resolver(
                    host_dir=resolver.host_dir,
                    default_scheme=resolver.default_scheme,
                    headers=dict(resolver.headers),
                    credentials=ask,
                    proxies=self._proxies,
                    trace=resolver.http_debug or resolver.http_trace,
                ),
            )

    @contextlib.contextmanager
    def _using(self, namespace: str, name: str) -> Iterator[Stream]:
        stream = self._streams.get(namespace, name)
        try:
            yield stream
        finally:
            stream.close()

    @contextlib.asynccontextmanager
    async def _held(self, namespace: str, lease: str) -> AsyncIterator[str]:
        if lease:
            yield lease
            return
        own = f"transfer-{secrets.token_hex(8)}"
        ends = datetime.datetime.now(datetime.UTC) + _LASTS
        marked = {leases.EXPIRES: ends.strftime("%Y-%m-%dT%H:%M:%SZ"), _OWN_LEASE: "true"}
        await self._leases.create(namespace, own, marked)
        try:
            yield own
        finally:
            with contextlib.suppress(errdefs.NotFound):
                await self._leases.delete(namespace, own)

    async def _walk(self, namespace: str, index: Descriptor, store: ImageStore) -> list[Descriptor]:
        """Label all that is reachable, so that the collector keeps it; the manifests that `store` takes.

        Raises NotFound for content that the archive lacks.
        """
        listed = [
            each
            for label, each in await children(self._content, namespace, index)
            if matches(store.platforms, each.get("platform"))
        ]
        numbered = [(f"containerd.io/gc.ref.content.m.{place}", each) for place, each in enumerate(listed)]
        await self._label(namespace, index, numbered)
        found, seen = list(listed), set()
        waiting = list(listed)
        while waiting:
            descriptor = waiting.pop()
            if descriptor["digest"] in seen:
                continue
            seen.add(descriptor["digest"])
            below = await children(self._content, namespace, descriptor)
            for _, each in below:
                await self._content.info(namespace, str(each.get("digest")))
            await self._label(namespace, descriptor, below)
            waiting += [each for _, each in below]
        return found

    async def _label(self, namespace: str, descriptor: Descriptor, below: Children) -> None:
        if below:
            wanted = {label: str(each["digest"]) for label, each in below}
            paths = [f"labels.{label}" for label in wanted]
            await self._content.update(namespace, descriptor["digest"], wanted, paths)

    async def _unpack(
        self, namespace: str, manifests: list[Descriptor], wanted: UnpackConfiguration, lease: str
    ) -> None:
        """Make snapshots of the layers of the manifests that are for a platform of this host."""
        platform = wanted.platform or this_host()
        for manifest in manifests:
            if manifest["mediaType"] not in MANIFESTS or not matches([platform], manifest.get("platform")):
                continue
            (_, config), *layers = await children(self._content, namespace, manifest)
            blobs = [blob for _, blob in layers]
            await self._unpacker.unpack(namespace, wanted.snapshotter or SNAPSHOTTER, config, blobs, lease)

    async def _store(
        self, namespace: str, name: str, descriptor: Descriptor, store: ImageStore, lease: str
    ) -> None:
        """Make or move a name."""
        target = Target(
            descriptor["mediaType"],
            descriptor["digest"],
            int(descriptor["size"]),
            dict(descriptor.get("annotations") or {}),
        )
        image = Image(name, target, dict(store.labels))
        try:
            await self._images.create(namespace, image, lease=lease)
        except errdefs.AlreadyExists:
            await self._images.update(namespace, image, [])

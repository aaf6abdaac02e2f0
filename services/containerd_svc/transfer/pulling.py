"""Images from a registry into the store: documents, blobs, snapshots, and last the names."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import errdefs
from linux.crashpoints import crashpoint
from pb.containerd.types import Descriptor as DescriptorMessage
from pb.containerd.types.transfer import ImageStore, Progress, UnpackConfiguration

from containerd_svc.content import ContentStore
from containerd_svc.ingest import check_digest
from containerd_svc.leases import Leases
from containerd_svc.transfer.descriptors import (
    CONFIGS,
    INDEXES,
    MANIFESTS,
    Descriptor,
    children_of,
    document,
    parsed,
    ref_key,
)
from containerd_svc.transfer.fetching import Fetcher, Source
from containerd_svc.transfer.platforms import chosen, matches, this_host
from containerd_svc.transfer.telling import Tell
from containerd_svc.transfer.unpacking import SNAPSHOTTER, Unpacker

_DEEPEST = 4  # indexes in indexes
_BETWEEN = 0.1  # seconds between two tellings of how far a blob is
DOWNLOADS = 3  # at a time, as Docker's max-concurrent-downloads


@dataclass
class _Pull:
    """One pull under way."""

    namespace: str
    source: Source
    host: str
    repository: str
    lease: str
    tell: Tell
    places: asyncio.Semaphore
    seen: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    manifests: list[Descriptor] = field(default_factory=list)


class Puller:
    """Pulls images. Pulls at the same time share what they have in common."""

    def __init__(self, content: ContentStore, held: Leases, unpacker: Unpacker) -> None:
        self._content = content
        self._leases = held
        self._unpacker = unpacker
        self._fetcher = Fetcher(content)

    async def pull(
        self,
        namespace: str,
        source: Source,
        reference: str,
        store: ImageStore,
        tell: Tell,
        lease: str,
        *,
        downloads: int = DOWNLOADS,
    ) -> Descriptor:
        """Bring what `store` wants of the image `reference` (host/repository:tag) into the store, held by the
        lease; its descriptor.

        Raises NotFound when nothing is for the platforms, InvalidArgument for an ambiguous document, and what
        the source, the fetcher and the unpacker raise.
        """
        shown = f"OCI Registry ({reference})"
        await tell(Progress(event=f"Resolving from {shown}"))
        target = await source.resolve()
        host, _, rest = reference.partition("/")
        repository = rest.partition("@")[0].partition(":")[0]
        await tell(Progress(event=f"Pulling from {shown}"))
        await tell(Progress(event="fetching image content", name=reference, desc=described(target)))
        pull = _Pull(namespace, source, host, repository, lease, tell, asyncio.Semaphore(downloads))
        works: list[asyncio.Task[None]] = []
        try:
            await self._walk(pull, target, reference, store, works, 0)
            if not pull.manifests:
                raise errdefs.NotFound(f"no match for platform in manifest {target['digest']}: not found")
            for wanted in store.unpacks:
                works.append(asyncio.create_task(self._unpack(pull, wanted)))
            await asyncio.gather(*works)
        finally:
            for work in works:
                if not work.cancelling():  # again would cut off the writing of what has come
                    work.cancel()
            await asyncio.gather(*works, return_exceptions=True)
        crashpoint("pulling.stored")
        return target

    async def _walk(
        self,
        pull: _Pull,
        descriptor: Descriptor,
        parent: str,
        store: ImageStore,
        works: list[asyncio.Task[None]],
        depth: int,
        *,
        whole: bool = True,
    ) -> None:
        """Fetch a document and those below it; begin to fetch the blobs, unless `whole` is false: then of a
        manifest its config alone."""
        if descriptor["digest"] in pull.seen:
            return
        if depth > _DEEPEST:
            raise errdefs.InvalidArgument(f"indexes nested more than {_DEEPEST} times: invalid argument")
        data = await self._document(pull, descriptor, parent)
        pull.seen[descriptor["digest"]] = asyncio.create_task(_nothing())
        below = [each for _, each in children_of(descriptor, parsed(data, descriptor))]
        ref = ref_key(descriptor)
        if descriptor.get("mediaType") in INDEXES:
            wanted = chosen(store.platforms, below)
            others = [each for each in below if each not in wanted] if store.all_metadata else []
            for each in (wanted + others)[: store.manifest_limit or None]:
                if each.get("mediaType") in (*INDEXES, *MANIFESTS):
                    of_all = whole and each in wanted
                    await self._walk(pull, each, ref, store, works, depth + 1, whole=of_all)
                else:
                    works.append(self._begin(pull, each, ref))
            return
        if whole:
            pull.manifests.append(descriptor)
        else:
            below = [each for each in below if each.get("mediaType") in CONFIGS]
        works += [self._begin(pull, each, ref) for each in below]

    def _begin(self, pull: _Pull, blob: Descriptor, parent: str) -> asyncio.Task[None]:
        digest = str(blob.get("digest"))
        task = pull.seen.get(digest)
        if task is None:
            task = pull.seen[digest] = asyncio.create_task(self._blob(pull, blob, parent))
        return task

    async def _document(self, pull: _Pull, descriptor: Descriptor, parent: str) -> bytes:
        """An index or a manifest, in the store with labels that keep what it names."""
        digest = descriptor["digest"]
        told = _telling(descriptor, parent)
        await pull.tell(told("waiting", 0))
        await self._leases.add_resources(pull.namespace, pull.lease, [("content", digest)])
        try:
            await self._content.info(pull.namespace, digest)
            data = b"".join([piece async for _, piece in self._content.read(pull.namespace, digest)])
            event = "already exists"
        except errdefs.NotFound:
            data = await pull.source.manifest(descriptor)
            event = "complete"
        below = children_of(descriptor, parsed(data, descriptor))
        for _, each in below:
            _check(each)
        labels = {label: each["digest"] for label, each in below}
        await self._leases.add_resources(
            pull.namespace, pull.lease, [("content", each) for each in labels.values()]
        )
        if event == "complete":
            await self._store(pull, descriptor, data, labels)
        await self._label(pull, digest, labels)
        await pull.tell(told(event, descriptor["size"]))
        return data

    async def _store(
        self, pull: _Pull, descriptor: Descriptor, data: bytes, labels: Mapping[str, str]
    ) -> None:
        digest, size = descriptor["digest"], descriptor["size"]
        with contextlib.suppress(errdefs.AlreadyExists):
            ref = f"{ref_key(descriptor)}-{id(pull):x}"  # small: not worth waiting for somebody else
            async with self._content.writer(
                pull.namespace, ref, total=size, expected=digest, lease=pull.lease
            ) as ingest:
                if ingest.offset != size:
                    await ingest.restart()
                    await ingest.write(data)
                wanted = {**labels, **self._source_label(pull, {})}
                await self._content.commit(
                    pull.namespace, ingest, size=size, expected=digest, wanted=wanted, lease=pull.lease
                )

    async def _blob(self, pull: _Pull, blob: Descriptor, parent: str) -> None:
        """A config or a layer."""
        told = _telling(blob, parent)
        await pull.tell(told("waiting", 0))
        async with pull.places:
            following = asyncio.create_task(self._follow(pull, blob, told))
            try:
                fetched = await self._fetcher.fetch(
                    pull.namespace, pull.source, blob, pull.lease, self._source_label(pull, {})
                )
            finally:
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await following
        await self._label(pull, str(blob["digest"]), {})
        await pull.tell(told("complete" if fetched else "already exists", blob["size"]))

    async def _follow(self, pull: _Pull, blob: Descriptor, told: Callable[[str, int], Progress]) -> None:
        last = -1
        while True:
            offset = self._fetcher.offset(pull.namespace, str(blob.get("digest")))
            if offset is not None and offset != last:
                last = offset
                await pull.tell(told("downloading", offset))
            await asyncio.sleep(_BETWEEN)

    async def _label(self, pull: _Pull, digest: str, labels: Mapping[str, str]) -> None:
        """Add labels, and where the blob was seen, unless it has them."""
        have = (await self._content.info(pull.namespace, digest)).labels
        wanted = {**labels, **self._source_label(pull, have)}
        missing = {key: value for key, value in wanted.items() if have.get(key) != value}
        if missing:
            paths = [f"labels.{key}" for key in missing]
            await self._content.update(pull.namespace, digest, missing, paths)

    @staticmethod
    def _source_label(pull: _Pull, have: Mapping[str, str]) -> dict[str, str]:
        """The repositories of a host that have the blob: a push may take it from there."""
        key = f"containerd.io/distribution.source.{pull.host}"
        known = {each for each in have.get(key, "").split(",") if each}
        value = ",".join(sorted(known | {pull.repository}))
        # A label holds 4096 bytes with its key.
        return {key: value} if len(key) + len(value) <= 4096 else {}

    async def _unpack(self, pull: _Pull, wanted: UnpackConfiguration) -> None:
        """Make the snapshots of the manifests for a platform, each layer as soon as it is there."""
        platform = wanted.platform or this_host()
        for manifest in pull.manifests:
            data = await document(self._content, pull.namespace, manifest)
            config, *layers = [each for _, each in children_of(manifest, data)]
            if config.get("mediaType") not in CONFIGS or not matches([platform], manifest.get("platform")):
                continue
            await asyncio.shield(pull.seen[config["digest"]])
            found = await document(self._content, pull.namespace, config)
            if found.get("architecture") and not matches([platform], found):
                continue
            ref = ref_key(manifest)

            async def tell(event: str, layer: Descriptor, parent: str = ref) -> None:
                await pull.tell(_telling(layer, parent)(event, layer["size"]))

            async def arrival(place: int, blobs: Sequence[Descriptor] = layers) -> None:
                await asyncio.shield(pull.seen[blobs[place]["digest"]])

            await self._unpacker.unpack(
                pull.namespace,
                wanted.snapshotter or SNAPSHOTTER,
                config,
                layers,
                pull.lease,
                arrival=arrival,
                tell=tell,
            )


def described(descriptor: Descriptor) -> DescriptorMessage:
    """A descriptor as a message."""
    return DescriptorMessage(
        media_type=descriptor["mediaType"],
        digest=descriptor["digest"],
        size=int(descriptor["size"]),
        annotations=dict(descriptor.get("annotations") or {}),
    )


def names_of(store: ImageStore, digest: str) -> Iterable[str]:
    """The names that `store` wants for a pulled image."""
    if store.name:
        yield store.name
    for reference in store.extra_references:
        if reference.add_digest:
            yield f"{reference.name}@{digest}"
        elif not reference.is_prefix:
            yield reference.name


def _telling(descriptor: Descriptor, parent: str) -> Callable[[str, int], Progress]:
    name, desc = ref_key(descriptor), described(descriptor)

    def told(event: str, progress: int) -> Progress:
        return Progress(
            event=event, name=name, parents=[parent], progress=progress, total=desc.size, desc=desc
        )

    return told


def _check(descriptor: Descriptor) -> None:
    """Raises InvalidArgument for what does not say what it is."""
    check_digest(str(descriptor.get("digest")))
    if not isinstance(descriptor.get("mediaType"), str) or type(descriptor.get("size")) is not int:
        raise errdefs.InvalidArgument(
            f"{descriptor['digest']} has no media type or no size: invalid argument"
        )


async def _nothing() -> None:
    pass

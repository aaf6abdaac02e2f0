"""Images from the store to a registry: blobs side by side, then manifests, what names others last.

A blob that the repository has is not sent; one that another repository of that registry has, as the labels of
pulls and pushes say, is mounted from there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import errdefs
from pb.containerd.types import Platform
from pb.containerd.types.transfer import Progress

from containerd_svc.content import ContentStore
from containerd_svc.registry import Registry
from containerd_svc.transfer.descriptors import (
    INDEXES,
    LARGEST_DOCUMENT,
    MANIFESTS,
    Descriptor,
    children,
    ref_key,
)
from containerd_svc.transfer.platforms import matches
from containerd_svc.transfer.pulling import described
from containerd_svc.transfer.telling import Tell

UPLOADS = 5  # at a time, as Docker's max-concurrent-uploads
_SOURCE = "containerd.io/distribution.source."
_MOST_MOUNTS = 3  # repositories that a blob is tried to be mounted from
_LONGEST_LABEL = 4096  # bytes of a label with its key
_BETWEEN = 0.1  # seconds between two messages of one upload


@dataclass(frozen=True)
class _Push:
    """One push; `turn` bounds what goes on at a time."""

    namespace: str
    registry: Registry
    tell: Tell
    turn: asyncio.Semaphore


class Pusher:
    """Sends images of a content store."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content

    async def push(
        self,
        namespace: str,
        registry: Registry,
        name: str,
        target: Descriptor,
        platforms: Sequence[Platform],
        tell: Tell,
        *,
        uploads: int = UPLOADS,
    ) -> None:
        """Send the image `target` under the registry's reference.

        Of an index only what is for `platforms` is sent (all, for none), and the one manifest instead of the
        index when there is one. Raises NotFound for content that is missing, and the registry's errors.
        """
        reference = registry.reference
        target = await self._chosen(namespace, target, platforms)
        if reference.digest and reference.digest != target["digest"]:
            raise errdefs.InvalidArgument(
                f"{target['digest']} cannot be pushed as {reference}: invalid argument"
            )
        shown = f"OCI Registry ({reference})"
        await tell(Progress(event=f"Pushing to {shown}"))
        await tell(Progress(event="pushing content", name=name, desc=described(target)))
        push = _Push(namespace, registry, tell, asyncio.Semaphore(uploads))
        manifests: dict[str, Descriptor] = {}
        blobs: dict[str, tuple[Descriptor, Descriptor]] = {}
        await self._collect(namespace, target, platforms, manifests, blobs)
        try:
            async with asyncio.TaskGroup() as group:
                for blob, parent in blobs.values():
                    group.create_task(self._blob(push, blob, parent))
        except BaseExceptionGroup as errors:
            raise _first(errors) from None
        for manifest in manifests.values():
            await self._manifest(push, manifest, is_target=manifest is target)
        await tell(Progress(event="pushed content", name=name, desc=described(target)))
        await tell(Progress(event=f"Completed push to {shown}", desc=described(target)))

    async def _chosen(self, namespace: str, target: Descriptor, platforms: Sequence[Platform]) -> Descriptor:
        if not platforms or target["mediaType"] not in INDEXES:
            return target
        listed = [
            each
            for _, each in await children(self._content, namespace, target)
            if matches(platforms, each.get("platform"))
        ]
        if not listed:
            raise errdefs.NotFound("no manifest of the image is for the platform: not found")
        return listed[0] if len(listed) == 1 else target

    async def _collect(
        self,
        namespace: str,
        descriptor: Descriptor,
        platforms: Sequence[Platform],
        manifests: dict[str, Descriptor],
        blobs: dict[str, tuple[Descriptor, Descriptor]],
    ) -> None:
        """Add all that a manifest or an index needs, and then itself."""
        digest, kind = str(descriptor.get("digest")), descriptor.get("mediaType")
        if kind not in (*INDEXES, *MANIFESTS):
            raise errdefs.InvalidArgument(f"{digest} of type {kind} is no manifest: invalid argument")
        if digest in manifests:
            return
        await self._content.info(namespace, digest)
        for _, below in await children(self._content, namespace, descriptor):
            if kind in INDEXES:
                if matches(platforms, below.get("platform")):
                    await self._collect(namespace, below, platforms, manifests, blobs)
            elif not below.get("urls"):  # a registry does not keep what is fetched from elsewhere
                await self._content.info(namespace, str(below.get("digest")))
                blobs.setdefault(str(below["digest"]), (below, descriptor))
        manifests[digest] = descriptor

    async def _blob(self, push: _Push, blob: Descriptor, parent: Descriptor) -> None:
        async with push.turn:
            await push.tell(_told("waiting", blob, 0, parent))
            if await push.registry.has(blob):
                await self._label(push, blob)
                await push.tell(_told("already exists", blob, int(blob["size"]), parent))
                return
            if source := await self._mounted(push, blob):
                await self._label(push, blob)
                # Who is told finds the repository where containerd's descriptors have it, too.
                key = f"{_SOURCE}{push.registry.reference.host}"
                annotations = {**(blob.get("annotations") or {}), key: source}
                from_there = {**blob, "annotations": annotations}
                await push.tell(_told("mounted", from_there, int(blob["size"]), parent))
                return
            last = 0.0

            async def sent(position: int) -> None:
                nonlocal last
                now = time.monotonic()
                if now - last >= _BETWEEN:
                    last = now
                    await push.tell(_told("uploading", blob, position, parent))

            def open_at(offset: int) -> AsyncGenerator[bytes, None]:
                return self._read(push.namespace, str(blob["digest"]), offset)

            await push.registry.upload(blob, open_at, sent)
            await self._label(push, blob)
            await push.tell(_told("complete", blob, int(blob["size"]), parent))

    async def _mounted(self, push: _Push, blob: Descriptor) -> str:
        """The other repository from which the registry took the blob; "" for none."""
        reference = push.registry.reference
        labels = (await self._content.info(push.namespace, str(blob["digest"]))).labels
        known = [each for each in labels.get(f"{_SOURCE}{reference.host}", "").split(",") if each]
        others = [each for each in known if each != reference.repository]
        for repository in others[:_MOST_MOUNTS]:
            if await push.registry.mount(blob, repository):
                return repository
        return ""

    async def _manifest(self, push: _Push, manifest: Descriptor, *, is_target: bool) -> None:
        reference = push.registry.reference
        if int(manifest["size"]) > LARGEST_DOCUMENT:
            raise errdefs.InvalidArgument(
                f"{manifest['digest']} is too large for a manifest: invalid argument"
            )
        pieces = self._read(push.namespace, str(manifest["digest"]), 0)
        data = b"".join([piece async for piece in pieces])
        by = reference.tag if is_target and reference.tag else str(manifest["digest"])
        await push.registry.put_manifest(by, str(manifest["mediaType"]), data)
        await self._label(push, manifest)
        await push.tell(_told("complete", manifest, len(data), None))

    async def _read(self, namespace: str, digest: str, offset: int) -> AsyncGenerator[bytes, None]:
        async for _, data in self._content.read(namespace, digest, offset):
            yield data

    async def _label(self, push: _Push, blob: Descriptor) -> None:
        """Note that the repository has the blob, for later pushes."""
        reference, digest = push.registry.reference, str(blob["digest"])
        key = f"{_SOURCE}{reference.host}"
        have = (await self._content.info(push.namespace, digest)).labels.get(key, "")
        known = {each for each in have.split(",") if each}
        value = ",".join(sorted(known | {reference.repository}))
        if value != have and len(key) + len(value) <= _LONGEST_LABEL:
            await self._content.update(push.namespace, digest, {key: value}, [f"labels.{key}"])


def _told(event: str, descriptor: Descriptor, progress: int, parent: Descriptor | None) -> Progress:
    return Progress(
        event=event,
        name=ref_key(descriptor),
        parents=[ref_key(parent)] if parent is not None else [],
        progress=progress,
        total=int(descriptor["size"]),
        desc=described(descriptor),
    )


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the others."""
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found

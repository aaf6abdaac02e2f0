"""Remove images: which names go, when the image itself goes, what forbids it (Docker's rules and words)."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import errdefs
from linux.crashpoints import crashpoint
from pb.containerd.services.images import v1 as pb

from dockerd_api.images import documents, reference, resolution
from dockerd_api.images.blobs import Blobs
from dockerd_api.images.catalog import Catalog, familiar, is_dangling
from dockerd_api.images.documents import Descriptor
from dockerd_api.images.model import DANGLING, PARENT, Publish
from dockerd_api.images.platforms import Platform
from dockerd_api.images.reference import Reference
from dockerd_api.images.resolution import repository
from dockerd_api.images.walking import Walker

_SHORT = 12  # hexadecimal digits of an id in a message

Record = dict[str, str]


@dataclass(frozen=True)
class User:
    """A container, as far as it holds an image. `reference` is what its creator wrote; `manifest` the digest
    of the one platform's image, empty where it is not known.
    """

    id: str
    running: bool
    image: str
    reference: str = ""
    manifest: str = ""


Users = Callable[[], Sequence[User]]


class Against(enum.Flag):
    """What is looked at before an image is removed."""

    RUNNING = enum.auto()
    STOPPED = enum.auto()
    NAMES = enum.auto()


_HARD = Against.RUNNING
_SOFT = Against.STOPPED | Against.NAMES


class Remover:
    """Removes names and images from the catalog."""

    def __init__(
        self, catalog: Catalog, walker: Walker, blobs: Blobs, publish: Publish, users: Users
    ) -> None:
        self._catalog = catalog
        self._walker = walker
        self._blobs = blobs
        self._publish = publish
        self._users = users

    async def remove(
        self, ref: str, *, force: bool, prune: bool, platforms: Sequence[Platform] = ()
    ) -> list[Record]:
        """Remove a name, or an image with all its names, and with `prune` its parents that have none. With
        `platforms` only those go, from every image that has them. What was done, in order.

        Raises NotFound, InvalidArgument, and Conflict when a container, or a further name, forbids it.
        """
        if platforms and not force:
            raise errdefs.InvalidArgument(
                "Content will be removed from all images referencing this variant. "
                "Use —-force to force delete."
            )
        record, records = await resolution.find_all(self._catalog, ref)
        target = documents.of_message(records[0].target)
        by_id = _is_beginning(target.digest, ref) or (
            record is not None and ref.startswith(DANGLING) and is_dangling(record)
        )
        against = _HARD if force else _HARD | _SOFT
        name = None if by_id else reference.parse(record.name if record is not None else ref)
        same = _same(name, records)
        if name is not None and not same:
            raise errdefs.NotFound(f"No such image: {name.tagged().familiar}")
        if platforms:
            return await self._remove_platforms(target, platforms)
        if name is not None and len(same) != len(records):
            return await self._untag(same)
        if len(same) == len(records) and (name is not None or record is None):
            # They are one name, with and without the digest: it does not stand in its own way.
            against &= ~Against.NAMES
        if record is not None and name is not None:
            users = [user for user in self._users() if user.image == target.digest]
            if users and not force:
                raise errdefs.Conflict(
                    f"conflict: unable to delete {name.familiar} (must be forced) - container "
                    f"{users[0].id[:_SHORT]} is using its referenced image {_short(target.digest)}"
                )
            if users:
                # The name goes, the image stays without one.
                await self._catalog.keep(record)
                return await self._untag([record])
        return await self._remove_all(target, records, against, prune=prune)

    async def _untag(self, records: Sequence[pb.Image]) -> list[Record]:
        done: list[Record] = []
        for record in records:
            await self._catalog.remove(record.name, target=documents.of_message(record.target).digest)
            await self._told_untagged(record, done)
        return done

    async def _told_untagged(self, record: pb.Image, done: list[Record]) -> None:
        shown = familiar(record)
        digest = documents.of_message(record.target).digest
        await self._publish("image", "untag", digest, {"name": shown})
        done.append({"Untagged": shown})

    async def _remove_all(
        self, target: Descriptor, records: Sequence[pb.Image], against: Against, *, prune: bool
    ) -> list[Record]:
        """Remove every name; with the last one go the blobs and snapshots that nothing else holds."""
        parents = await self._parents(records) if prune else []
        self._check(target, against, len(records))
        done: list[Record] = []
        for number, record in enumerate(records):
            last = number == len(records) - 1
            if last and not is_dangling(record) and Against.NAMES in against:
                await self._keep_parent(target, record)
            await self._catalog.remove(record.name, target=target.digest, collect=last)
            crashpoint("images.untagged")
            if not is_dangling(record):
                await self._told_untagged(record, done)
        await self._told_deleted(target.digest, done)
        for parent in parents:
            digest = documents.of_message(parent.target).digest
            if not is_dangling(parent) or any(user.image == digest for user in self._users()):
                break
            await self._catalog.remove(parent.name, target=digest, collect=True)
            await self._told_deleted(digest, done)
        return done

    async def _told_deleted(self, digest: str, done: list[Record]) -> None:
        await self._publish("image", "delete", digest, {"name": digest})
        done.append({"Deleted": digest})

    def _check(self, target: Descriptor, against: Against, names: int) -> None:
        users = [user for user in self._users() if user.image == target.digest]
        for user in users:
            if user.running and Against.RUNNING in against:
                raise _conflict(
                    target,
                    "cannot be forced",
                    f"image is being used by running container {user.id[:_SHORT]}",
                )
        for user in users:
            if Against.STOPPED in against:
                raise _conflict(
                    target, "must be forced", f"image is being used by stopped container {user.id[:_SHORT]}"
                )
        if Against.NAMES in against and names > 1:
            raise _conflict(target, "must be forced", "image is referenced in multiple repositories")

    async def _parents(self, records: Sequence[pb.Image]) -> list[pb.Image]:
        """The images that the classic builder made this one from, the nearest first."""
        found: list[pb.Image] = []
        record = records[0]
        while len(found) < documents.MOST_LAYERS:
            parent = record.labels.get(PARENT, "")
            named = await self._catalog.of_target(parent) if documents.is_digest(parent) else []
            if not named:
                break
            record = named[0]
            found.append(record)
        return found

    async def _keep_parent(self, target: Descriptor, record: pb.Image) -> None:
        """An image that others were made from stays, dangling, when its last name goes."""
        if await self._catalog.records(f"labels.{PARENT}=={target.digest}"):
            await self._catalog.keep(record)

    async def _remove_platforms(self, target: Descriptor, platforms: Sequence[Platform]) -> list[Record]:
        """Remove single manifests, from all images that have them, and the blobs that no other needs."""
        manifests = []
        for platform in platforms:
            manifest = await self._catalog.choose(target, platform)
            if manifest is None:
                raise errdefs.NotFound(
                    f"failed to delete platform {platform} for image {target.digest}: image with reference "
                    f"{target.digest} was found but does not provide the specified platform ({platform})"
                )
            manifests.append(manifest.descriptor.digest)
        wanted: dict[str, Descriptor] = {}
        needed: set[str] = set()
        for group in await self._catalog.groups():
            walk = await self._walker.walk(documents.of_message(group[0].target))
            needed |= {index.digest for index in walk.indexes}
            for part in walk.parts:
                if part.descriptor.digest in manifests:
                    wanted |= {blob.digest: blob for blob in part.blobs}
                elif part.available:
                    needed |= {blob.digest for blob in part.blobs}
        done = []
        for blob in wanted.values():
            if blob.digest in needed:
                continue
            self._catalog.forget([blob.digest])
            if await self._blobs.remove(blob.digest) and blob.is_manifest:
                done.append({"Deleted": blob.digest})
        return done


def _same(name: Reference | None, records: Sequence[pb.Image]) -> list[pb.Image]:
    """Those of one image's records that are the name: with its tag, with its digest, or dangling. Without a
    name, the first one's.

    A repository's digests belong to a tag when it has no other.
    """
    found: list[pb.Image] = []
    digests: list[pb.Image] | None = []
    tag = name.tag if name else ""
    every_tag = bool(name and name.digest and not name.tag)
    for record in records:
        if not is_dangling(record) and repository(record):
            own = reference.parse(record.name)
            if name is None:
                name, tag = own, own.tag
            elif own.name != name.name:
                continue
            elif not every_tag and own.tag:
                if tag and own.tag != tag:
                    digests = None
                    continue
                tag = own.tag
            elif not every_tag:
                if digests is not None:
                    digests.append(record)
                continue
        found.append(record)
    return found + (digests or [])


def _is_beginning(image_id: str, text: str) -> bool:
    return image_id.startswith(text) or image_id.partition(":")[2].startswith(text)


def _short(image_id: str) -> str:
    return image_id.partition(":")[2][:_SHORT]


def _conflict(target: Descriptor, force: str, reason: str) -> errdefs.Conflict:
    return errdefs.Conflict(f"conflict: unable to delete {_short(target.digest)} ({force}) - {reason}")

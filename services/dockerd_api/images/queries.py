"""What can be asked about images: list, inspect, history, and the disk that they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import errdefs
from pb.containerd.services.images import v1 as pb

from dockerd_api.images import documents, filters, listing, resolution
from dockerd_api.images.catalog import Catalog, is_dangling, named
from dockerd_api.images.filters import Filters
from dockerd_api.images.listing import Version
from dockerd_api.images.model import PARENT, Image, Manifest
from dockerd_api.images.platforms import Choice, Platform
from dockerd_api.images.removal import Users
from dockerd_api.images.unpack import Trees
from dockerd_api.images.walking import Walk, Walker


@dataclass(frozen=True)
class Detail:
    """What a list is to count beyond what costs little."""

    shared_size: bool = False
    containers: bool = False
    manifests: bool = False


class Queries:
    """Answers for the API; changes nothing."""

    def __init__(self, catalog: Catalog, walker: Walker, trees: Trees, users: Users) -> None:
        self._catalog = catalog
        self._walker = walker
        self._trees = trees
        self._users = users

    async def entries(
        self, wanted: Filters, *, all_: bool = False, detail: Detail | None = None
    ) -> list[dict[str, Any]]:
        """The entries of `GET /images/json`, the newest first. Without `all_`, dangling images that others
        were made from are left out. Raises InvalidArgument, NotFound for a filter's image.
        """
        detail = detail or Detail()
        suits = filters.of_records(wanted)
        before = [await self._created(ref) for ref in wanted.get("before", ())]
        since = [await self._created(ref) for ref in wanted.get("since", ())]
        hidden = set() if all_ else await self._parents()
        groups = await self._catalog.groups(
            lambda record: suits(record) and not (is_dangling(record) and _digest(record) in hidden)
        )
        present = await self._walker.everything()
        found: list[tuple[Image, Walk]] = []
        for group in groups:
            walk = await self._walker.walk(documents.of_message(group[0].target), present)
            image = named(walk.target, group, best(walk))
            made = listing.created_at(image.config)
            if not (
                all(made and made < limit for limit in before)
                and all(made > limit for limit in since)
                and _has_labels(walk, wanted)
            ):
                continue
            found.append((image, walk))
        found.sort(key=lambda pair: listing.created_at(pair[0].config), reverse=True)
        chains = [listing.chains(walk) for _, walk in found]
        sizes = await self._trees.sizes(set().union(*chains))
        return [
            self._entry(image, walk, sizes, detail, _shared(own, chains, sizes))
            for (image, walk), own in zip(found, chains, strict=True)
        ]

    def _entry(
        self, image: Image, walk: Walk, sizes: Mapping[str, int], detail: Detail, shared: int
    ) -> dict[str, Any]:
        def unpacked(chain: str) -> int:
            return sizes.get(chain, 0)

        containers = sum(user.image == image.id and user.id != "" for user in self._users())
        entry = listing.summary(
            image,
            walk,
            unpacked,
            containers=containers if detail.containers else -1,
            shared_size=shared if detail.shared_size else -1,
        )
        if detail.manifests:
            entry["Manifests"] = listing.manifests(walk, unpacked, self._made_from)
        return entry

    async def inspect(
        self, ref: str, version: Version, *, platform: Platform | None = None, manifests: bool = False
    ) -> dict[str, Any]:
        """The answer of `GET /images/{name}/json` for an API version. Raises NotFound, InvalidArgument."""
        record = await resolution.find(self._catalog, ref)
        target = documents.of_message(record.target)
        walk = await self._walker.walk(target)
        image = named(target, await self._catalog.of_target(target.digest), best(walk, platform))
        if platform is not None:
            if image.manifest is None:
                raise _not_for(ref, platform)
            # Of one platform that was asked for, Docker shows the manifest as the image.
            size = await self._size(target, platform)
            answer = listing.details(
                replace(image, target=image.manifest.descriptor),
                size,
                version,
            )
        else:
            answer = listing.details(image, await self._size(target, None), version)
        if manifests:
            sizes = await self._trees.sizes(listing.chains(walk))
            answer["Manifests"] = listing.manifests(walk, lambda chain: sizes.get(chain, 0), self._made_from)
        return answer

    async def history(self, ref: str, platform: Platform | None = None) -> list[dict[str, Any]]:
        """The answer of `GET /images/{name}/history`. Raises NotFound, InvalidArgument."""
        record = await resolution.find(self._catalog, ref)
        target = documents.of_message(record.target)
        manifest = await self._catalog.choose(target, platform)
        if manifest is None:
            raise _not_for(ref, platform)
        image = named(target, await self._catalog.of_target(target.digest), manifest)
        sizes = await self._trees.sizes(manifest.chains)
        return listing.history(image, manifest, lambda chain: sizes.get(chain, 0))

    async def disk_usage(self) -> tuple[list[dict[str, Any]], int]:
        """The entries of `GET /system/df`, and the bytes that all snapshots and the images' blobs take."""
        entries = await self.entries({}, detail=Detail(shared_size=True, containers=True))
        present = await self._walker.everything()
        blobs: dict[str, int] = {}
        for group in await self._catalog.groups():
            walk = await self._walker.walk(documents.of_message(group[0].target), present)
            blobs |= {blob.digest: blob.size for blob in walk.present()}
        return entries, sum(blobs.values()) + await self._trees.total_usage()

    async def _size(self, target: documents.Descriptor, platform: Platform | None) -> int:
        """Bytes of the target and of the one manifest below it that suits, whether they are here or not."""
        choice = Choice(platform)
        ranked = [
            (rank, number, descriptor)
            for number, descriptor in enumerate(await self._catalog.manifests(target))
            if (rank := choice.rank(descriptor.platform) if descriptor.platform else 0) is not None
        ]
        size = target.size if target.is_index else 0
        if not ranked:
            return size
        chosen = min(ranked)[2]
        size += chosen.size
        try:
            config, layers = await self._catalog.manifest_parts(chosen)
        except errdefs.BuoyError:
            return size
        return size + config.size + sum(layer.size for layer in layers)

    async def _created(self, ref: str) -> float:
        record = await resolution.find(self._catalog, ref)
        manifest = await self._catalog.choose(documents.of_message(record.target))
        return listing.created_at(manifest.config) if manifest else 0.0

    async def _parents(self) -> set[str]:
        """The digests of the images that others were made from."""
        return {
            parent for record in await self._catalog.records() if (parent := record.labels.get(PARENT, ""))
        }

    def _made_from(self, manifest: str) -> Sequence[str]:
        return [user.id for user in self._users() if user.manifest == manifest]


def best(walk: Walk, platform: Platform | None = None) -> Manifest | None:
    """The manifest that suits the platform, or this machine best, of those that are wholly here."""
    choice = Choice(platform)
    ranked = [
        (rank, number, part.manifest)
        for number, part in enumerate(walk.parts)
        if part.manifest is not None and part.available and (rank := choice.rank(part.platform)) is not None
    ]
    return min(ranked, key=lambda entry: entry[:2])[2] if ranked else None


def _digest(record: pb.Image) -> str:
    return documents.of_message(record.target).digest


def _has_labels(walk: Walk, wanted: Filters) -> bool:
    if not wanted.get("label") and not wanted.get("label!"):
        return True
    configs = [part.manifest.config for part in walk.parts if part.manifest is not None]
    return any(filters.has_labels(config, wanted) for config in configs)


def _shared(own: set[str], every: Sequence[set[str]], sizes: Mapping[str, int]) -> int:
    """Bytes of the snapshots that further images have too."""
    return sum(sizes.get(chain, 0) for chain in own if sum(chain in other for other in every) > 1)


def _not_for(ref: str, platform: Platform | None) -> errdefs.NotFound:
    what = f"the specified platform ({platform})" if platform else "any platform"
    return errdefs.NotFound(f"image with reference {ref} was found but does not provide {what}")

"""`POST /images/prune`: remove what no container uses (Docker's rules), and tell the bytes that it freed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import errdefs
from linux.crashpoints import crashpoint
from pb.containerd.services.images import v1 as pb

from dockerd_api.images import documents, filters, reference
from dockerd_api.images.blobs import Blobs
from dockerd_api.images.catalog import Catalog, dangling, familiar, is_dangling
from dockerd_api.images.documents import Descriptor
from dockerd_api.images.filters import Filters
from dockerd_api.images.model import Publish
from dockerd_api.images.removal import User, Users
from dockerd_api.images.unpack import Trees
from dockerd_api.images.walking import Walker


@dataclass
class _Held:
    """What images that are to go have on disk: the blobs, and the snapshots with their bytes."""

    blobs: dict[str, Descriptor] = field(default_factory=dict)
    snapshots: dict[str, int] = field(default_factory=dict)


class Pruner:
    """Prunes, one call at a time."""

    def __init__(
        self, catalog: Catalog, walker: Walker, blobs: Blobs, trees: Trees, publish: Publish, users: Users
    ) -> None:
        self._catalog = catalog
        self._walker = walker
        self._blobs = blobs
        self._trees = trees
        self._publish = publish
        self._users = users
        self._running = False

    async def prune(self, wanted: Filters) -> tuple[list[dict[str, str]], int]:
        """Remove the dangling images that no container uses, or with `dangling=false` all such; what was
        done, and bytes that are free now. Raises InvalidArgument, and Conflict while another prune runs.
        """
        if self._running:
            raise errdefs.Conflict("a prune operation is already running")
        self._running = True
        try:
            chosen = await self._choose(wanted)
            return await self.remove(chosen)
        finally:
            self._running = False

    async def remove(self, records: Sequence[pb.Image]) -> tuple[list[dict[str, str]], int]:
        """Remove records that no container uses; what was done, and bytes that are free now."""
        held = await self._held(records)
        gone: list[pb.Image] = []
        done: list[dict[str, str]] = []
        for number, record in enumerate(records):
            digest = documents.of_message(record.target).digest
            if await self._is_used(record):  # asked again: a container may have come meanwhile
                continue
            last = number == len(records) - 1
            if await self._catalog.remove(record.name, target=digest, collect=last):
                crashpoint("images.pruned")
                gone.append(record)
                await self._publish("image", "untag", digest, {"name": familiar(record)})
                done.append({"Untagged": familiar(record)})
        if not gone:
            return [], 0
        present = await self._blobs.all()
        missing = {digest: blob for digest, blob in held.blobs.items() if digest not in present}
        for digest, blob in missing.items():
            if blob.is_manifest or blob.is_index:
                done.append({"Deleted": digest})
        for record in gone:
            digest = documents.of_message(record.target).digest
            if digest in missing:
                await self._publish("image", "delete", digest, {"name": familiar(record)})
        left = await self._trees.sizes(held.snapshots)
        freed = sum(blob.size for blob in missing.values())
        freed += sum(size for chain, size in held.snapshots.items() if chain not in left)
        self._catalog.forget(missing)
        return done, freed

    async def _choose(self, wanted: Filters) -> list[pb.Image]:
        dangling_only = filters.boolean(wanted, "dangling") is not False
        rest = {key: values for key, values in wanted.items() if key != "dangling"}
        suits = filters.of_records(rest)
        records = await self._catalog.records()
        considered = [
            record
            for record in records
            if (not dangling_only or is_dangling(record))
            and suits(record)
            and await self._has_labels(record, rest)
        ]
        left: dict[str, int] = {}
        for record in records:
            digest = documents.of_message(record.target).digest
            left[digest] = left.get(digest, 0) + 1
        users = self._users()
        used = {user.image for user in users}
        chosen = []
        unused = _unused(considered, users)
        for record in considered:
            digest = documents.of_message(record.target).digest
            if record.name not in unused:
                continue
            if left[digest] == 1 and digest in used:
                continue  # a container's image keeps its last name
            left[digest] -= 1
            chosen.append(record)
        return chosen

    async def _is_used(self, record: pb.Image) -> bool:
        users = self._users()
        if record.name not in _unused([record], users):
            return True
        digest = documents.of_message(record.target).digest
        if not any(user.image == digest for user in users):
            return False
        return len(await self._catalog.of_target(digest)) == 1

    async def _has_labels(self, record: pb.Image, wanted: Filters) -> bool:
        if not wanted.get("label") and not wanted.get("label!"):
            return True
        walk = await self._walker.walk(documents.of_message(record.target))
        return any(
            filters.has_labels(part.manifest.config, wanted)
            for part in walk.parts
            if part.manifest is not None
        )

    async def _held(self, records: Sequence[pb.Image]) -> _Held:
        held = _Held()
        chains: set[str] = set()
        for record in records:
            walk = await self._walker.walk(documents.of_message(record.target))
            held.blobs |= {blob.digest: blob for blob in walk.present()}
            chains |= {chain for part in walk.parts if part.manifest for chain in part.manifest.chains}
        held.snapshots = await self._trees.sizes(chains)
        return held


def _unused(records: Sequence[pb.Image], users: Sequence[User]) -> Mapping[str, pb.Image]:
    """The records, by name, that no container was made from by that name, and that keep no container's
    image alive without one.
    """
    found = {record.name: record for record in records}
    for user in users:
        found.pop(dangling(user.image), None)
        try:
            name = reference.parse(user.reference).tagged()
        except errdefs.InvalidArgument:
            continue
        found.pop(str(name), None)
        if name.tag and name.digest:
            found.pop(str(name.without_digest()), None)
    return found

"""Remove images: which names go, when the image itself goes, what forbids it (Docker's rules and words)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import errdefs
from linux.crashpoints import crashpoint

from dockerd_api.images import reference
from dockerd_api.images.catalog import Catalog
from dockerd_api.images.loading import Publish
from dockerd_api.images.model import DANGLING, Image, chain_ids
from dockerd_api.images.unpack import Trees

_SHORT = 12  # hexadecimal digits of an id in a message


class Remover:
    """Removes names and images from the catalog."""

    def __init__(
        self,
        catalog: Catalog,
        trees: Trees,
        publish: Publish,
        in_use: Callable[[str], Sequence[tuple[str, bool]]],
    ) -> None:
        self._catalog = catalog
        self._trees = trees
        self._publish = publish
        self._in_use = in_use

    async def remove(self, image: Image, ref: str, *, force: bool) -> list[dict[str, str]]:
        """`image` has all its names; `ref` is what the user wrote. The records of what was done, in order.

        Raises Conflict when a container, or a further name, forbids it.
        """
        by_id = image.id.startswith(ref) or image.id.removeprefix("sha256:").startswith(ref)
        if by_id:
            self._check(image, force=force, named_once=_is_single(image))
            return await self._remove_all(image)
        name = reference.parse(ref).tagged()
        users = self._in_use(image.id)
        if not force and users and _is_single(image):
            raise errdefs.Conflict(
                f'conflict: unable to remove repository reference "{ref}" (must force) - container '
                f"{users[0][0][:_SHORT]} is using its referenced image {_short(image.id)}"
            )
        left = [tag for tag in image.repo_tags if tag != name.familiar]
        same_repository = [tag for tag in left if reference.parse(tag).name == name.name]
        gone = [name.familiar]
        if not name.digest and not same_repository:
            # The digests of a repository go with its last tag.
            gone += [digest for digest in image.repo_digests if reference.parse(digest).name == name.name]
        remaining = [known for known in (*image.repo_tags, *image.repo_digests) if known not in gone]
        if not remaining and any(running for _, running in users):
            # Forced, but it runs: the name goes, the image stays without one.
            return await self._untag_only(image, gone)
        if not remaining:
            return await self._remove_all(image)
        records = []
        for known in gone:
            await self._catalog.remove(str(reference.parse(known)))
            await self._publish("image", "untag", image.id, {"name": image.id})
            records.append({"Untagged": known})
        return records

    async def _untag_only(self, image: Image, gone: Sequence[str]) -> list[dict[str, str]]:
        for record in await self._catalog.records_of(image):
            if record.target is not None:
                await self._catalog.put(f"{DANGLING}{image.id}", record.target, record.labels)
                break
        records = []
        for known in gone:
            await self._catalog.remove(str(reference.parse(known)))
            await self._publish("image", "untag", image.id, {"name": image.id})
            records.append({"Untagged": known})
        return records

    def _check(self, image: Image, *, force: bool, named_once: bool) -> None:
        users = self._in_use(image.id)
        for container, running in users:
            if running:
                raise _conflict(
                    image,
                    "cannot be forced",
                    f"image is being used by running container {container[:_SHORT]}",
                )
        if force:
            return
        if (image.repo_tags or image.repo_digests) and not named_once:
            raise _conflict(image, "must be forced", "image is referenced in multiple repositories")
        for container, _ in users:
            raise _conflict(
                image, "must be forced", f"image is being used by stopped container {container[:_SHORT]}"
            )

    async def _remove_all(self, image: Image) -> list[dict[str, str]]:
        """Remove every name; with the last one go the blobs and snapshots that nothing else holds."""
        records = []
        names = list(image.names)
        for name in names[:-1]:
            await self._catalog.remove(name)
            crashpoint("images.untagged")
        if names:
            await self._catalog.remove(names[-1], collect=True)
        for known in (*image.repo_tags, *image.repo_digests):
            await self._publish("image", "untag", image.id, {"name": image.id})
            records.append({"Untagged": known})
        await self._publish("image", "delete", image.id, {"name": image.id})
        records.append({"Deleted": image.id})
        for chain in reversed(chain_ids([layer.diff_id for layer in image.layers])):
            if not await self._trees.exists(chain):
                records.append({"Deleted": chain})
        return records


def _is_single(image: Image) -> bool:
    """Whether all names are of one repository, with at most one tag among them."""
    names = [reference.parse(name) for name in (*image.repo_tags, *image.repo_digests)]
    tags = [name for name in names if not name.digest]
    return bool(names) and len(tags) <= 1 and len({name.name for name in names}) == 1


def _short(image_id: str) -> str:
    return image_id.removeprefix("sha256:")[:_SHORT]


def _conflict(image: Image, force: str, reason: str) -> errdefs.Conflict:
    return errdefs.Conflict(f"conflict: unable to delete {_short(image.id)} ({force}) - {reason}")

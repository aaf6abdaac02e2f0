"""Run as a process by test_crashes: everything that is done with an image in its life, in a folder."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from dockerd_api.images import Image, Images, reference
from dockerd_api.images.committing import Commit
from pb.containerd.types import Mount

from tests.support.archives import chunks, saved_image, tar
from tests.support.stores import Stores, serve_stores

_, ARCHIVE = saved_image(["a:1", "b:2"], [{"one": b"1"}, {"two": b"2"}])


async def nothing(*_: object) -> None:
    """Events are of no interest here."""


async def commit(images: Images, image: Image, mounts: Sequence[Mount]) -> None:
    """Make an image of a container that has a file of its own, and remove it."""
    (upper,) = [option for option in mounts[0].options if option.startswith("upperdir=")]
    Path(upper.removeprefix("upperdir="), "own").write_bytes(b"4")
    assert image.manifest is not None
    made = await images.commit(
        Commit(
            snapshot="container",
            parent=image.manifest.descriptor,
            parent_id=image.id,
            config={},
            created_by="",
            comment="",
            author="",
            name=reference.parse("made:1"),
        )
    )
    assert len((await images.resolve("made:1")).layers) == 3
    assert (await images.remove("made:1"))[-1]["Deleted"] == made


async def life(stores: Stores) -> None:
    """Load, use, make a layer of, commit, name, remove, prune."""
    channel = stores.channel()
    images = Images(channel, nothing, spool=stores.root)
    await images.recover()
    lines = [line async for line in images.load(chunks(ARCHIVE))]
    assert lines == ["Loaded image: a:1\n", "Loaded image: b:2\n"]
    image = await images.resolve("a:1")
    await images.prepare_snapshot("container", image)
    mounts = await images.snapshot_mounts("container")
    made = await stores.differ.make("moby", [], mounts, ref="layer")
    await stores.content.delete("moby", made.digest)
    await commit(images, image, mounts)
    await images.remove_snapshot("container")
    await images.tag("a:1", "c", "3")
    assert (await images.remove(image.id[7:19], force=True))[-1]["Deleted"] == image.id
    await images.import_(chunks(tar({"three": b"3"})))
    assert len((await images.prune({}))[0]) == 2
    await stores.snapshots.cleanup("overlayfs")
    channel.close()


async def main() -> None:
    async with serve_stores(Path(sys.argv[1])) as stores:
        await life(stores)


if __name__ == "__main__":
    asyncio.run(main())

"""Run as a process by test_crashes: everything that is done with an image in its life, in a folder."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from dockerd_api.images import Images

from tests.support.archives import chunks, saved_image, tar
from tests.support.stores import Stores, serve_stores

_, ARCHIVE = saved_image(["a:1", "b:2"], [{"one": b"1"}, {"two": b"2"}])


async def nothing(*_: object) -> None:
    """Events are of no interest here."""


async def life(stores: Stores) -> None:
    """Load, use, make a layer of, name, remove, prune."""
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

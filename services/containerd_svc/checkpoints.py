"""Checkpoints of tasks as blobs: the folder of CRIU's images as a tar, and the container's spec beside it."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from pathlib import Path

import errdefs
from pb.containerd.runc.v1 import CheckpointOptions, Options
from pb.containerd.types import Descriptor, Mount
from pb.google.protobuf import Any as AnyMessage

from containerd_svc.content import ContentStore
from containerd_svc.diff import CHECKPOINT, Differ

SPEC = "application/vnd.containerd.container.checkpoint.config.v1+proto"


class Checkpoints:
    """Stores and fetches them. `place` is a folder for images on their way, which is emptied."""

    def __init__(self, content: ContentStore, differ: Differ, place: Path) -> None:
        self._content = content
        self._differ = differ
        self._place = place
        shutil.rmtree(place, ignore_errors=True)  # of a process that was killed
        place.mkdir(mode=0o700)

    def folder(self) -> Path:
        """A new empty folder for images; `drop` removes it."""
        path = self._place / secrets.token_hex(8)
        path.mkdir(mode=0o700)
        return path

    async def drop(self, folder: Path) -> None:
        """Remove a folder of images, if it is there."""
        await asyncio.get_running_loop().run_in_executor(
            None, lambda: shutil.rmtree(folder, ignore_errors=True)
        )

    async def store(
        self, namespace: str, folder: Path, spec: AnyMessage | None, lease: str
    ) -> list[Descriptor]:
        """Make blobs of images and of the spec of their container; their descriptors."""
        mounts = [Mount(type="bind", source=str(folder), options=["ro"])]
        made = await self._differ.make(namespace, [], mounts, media_type=CHECKPOINT, lease=lease)
        data = bytes(spec or AnyMessage())
        ref = f"checkpoint-{secrets.token_hex(8)}"
        async with self._content.writer(namespace, ref, lease=lease) as ingest:
            await ingest.write(data)
            try:
                digest = await self._content.commit(namespace, ingest, wanted={}, lease=lease)
            except errdefs.AlreadyExists:
                digest = ingest.digest
        return [
            Descriptor(media_type=made.media_type, digest=made.digest, size=made.size),
            Descriptor(media_type=SPEC, digest=digest, size=len(data)),
        ]

    async def check(self, namespace: str, wanted: Descriptor) -> None:
        """InvalidArgument for what is no checkpoint, NotFound for a blob that is not there."""
        if wanted.media_type != CHECKPOINT:
            raise errdefs.InvalidArgument(f'unsupported checkpoint type "{wanted.media_type}"')
        await self._content.info(namespace, wanted.digest)

    async def fetch(self, namespace: str, wanted: Descriptor, folder: Path) -> None:
        """Unpack images into a new folder; InvalidArgument for a damaged or hostile archive."""
        folder.mkdir(mode=0o700)
        mounts = [Mount(type="bind", source=str(folder), options=["rw"])]
        await self._differ.apply(namespace, wanted.media_type, wanted.digest, mounts)


def image_path(options: AnyMessage | None) -> str:
    """Where the caller of a Checkpoint wants the images; empty: as blobs. InvalidArgument for options of
    another kind.
    """
    if options is None or not options.value:
        return ""
    if _kind(options) != "containerd.runc.v1.CheckpointOptions":
        raise errdefs.InvalidArgument("invalid task checkpoint option: invalid argument")
    return CheckpointOptions.parse(options.value).image_path


def restore_path(options: AnyMessage | None) -> str:
    """Where the caller of a Create has images; empty when there are none."""
    if options is None or not options.value or _kind(options) != "containerd.runc.v1.Options":
        return ""
    return Options.parse(options.value).criu_image_path


def _kind(options: AnyMessage) -> str:
    return options.type_url.rpartition("/")[2]

"""Turn layers into trees: unpack a layer's blob onto a snapshot's mounts."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import errdefs
from linux.crashpoints import crashpoint
from pb.containerd.types import Mount

from containerd_svc.content import ContentStore

_LAYER_TYPES = frozenset(
    f"application/vnd.{kind}"
    for kind in (
        "oci.image.layer.v1.tar",
        "oci.image.layer.v1.tar+gzip",
        "oci.image.layer.v1.tar+zstd",
        "oci.image.layer.nondistributable.v1.tar",
        "oci.image.layer.nondistributable.v1.tar+gzip",
        "oci.image.layer.nondistributable.v1.tar+zstd",
        "docker.image.rootfs.diff.tar",
        "docker.image.rootfs.diff.tar.gzip",
        "docker.image.rootfs.diff.tar.zstd",
        "docker.image.rootfs.foreign.diff.tar",
        "docker.image.rootfs.foreign.diff.tar.gzip",
    )
)
_TOGETHER = 2  # layers that are unpacked at a time


@dataclass(frozen=True)
class Applied:
    """What was unpacked: digest and bytes of the uncompressed tar, and bytes of the regular files in it."""

    digest: str
    size: int
    unpacked: int


@dataclass(frozen=True)
class _Target:
    """Where files go: a folder, those of the layers below it (nearest first), and whether deletions are
    overlayfs's.
    """

    folder: str
    lower: tuple[str, ...]
    overlay: bool


class Differ:
    """Unpacks in processes of their own; see apply_worker."""

    def __init__(self, content: ContentStore) -> None:
        self._content = content
        self._places = asyncio.Semaphore(_TOGETHER)

    async def apply(
        self, namespace: str, media_type: str, digest: str, mounts: Sequence[Mount], *, sync: bool = False
    ) -> Applied:
        """Unpack the layer `digest` (plain, gzip or zstd) onto an active snapshot's mounts, without mounting
        them.

        Raises InvalidArgument for a damaged or hostile archive and for mounts that cannot be written,
        NotImplementedHere for another media type, NotFound for the blob, ResourceExhausted for a full disk.
        What was unpacked before an error stays in the snapshot, which the caller removes.
        """
        if media_type not in _LAYER_TYPES:
            raise errdefs.NotImplementedHere(f"unsupported diff media type: {media_type}: not implemented")
        target = _target(mounts)
        await self._content.info(namespace, digest)
        request = {
            "blob": os.fspath(self._content.path(digest)),
            "target": target.folder,
            "lower": target.lower,
            "overlay": target.overlay,
            "sync": sync,
        }
        async with self._places:
            answer = await _work(request)
        crashpoint("diff.applied")
        match answer.get("error"):
            case None:
                return Applied(answer["digest"], answer["size"], answer["unpacked"])
            case "archive":
                raise errdefs.InvalidArgument(f"failed to extract layer {digest}: {answer['message']}")
            case "disk":
                raise errdefs.ResourceExhausted(f"failed to extract layer {digest}: {answer['message']}")
        raise errdefs.Internal(f"failed to extract layer {digest}: {answer['message']}")


def _target(mounts: Sequence[Mount]) -> _Target:
    """Files go straight into the writable folder: a fresh snapshot has no mount that could notice."""
    if len(mounts) == 1 and mounts[0].type == "bind" and "ro" not in mounts[0].options:
        return _Target(mounts[0].source, (), overlay=False)
    if len(mounts) == 1 and mounts[0].type == "overlay":
        options = dict(option.partition("=")[::2] for option in mounts[0].options)
        if options.get("upperdir"):
            lower = tuple(path for path in options.get("lowerdir", "").split(":") if path)
            return _Target(options["upperdir"], lower, overlay=True)
    raise errdefs.InvalidArgument(
        "a layer can be unpacked on the mounts of an active snapshot only: invalid argument"
    )


async def _work(request: dict[str, Any]) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-m",
        "containerd_svc.apply_worker",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await process.communicate(json.dumps(request).encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        return {"error": "failed", "message": last or f"worker ended with {process.returncode}"}
    answer: dict[str, Any] = json.loads(output)
    return answer

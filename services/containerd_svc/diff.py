"""Turn layers into trees and trees into layers: unpack a layer's blob onto a snapshot's mounts, and make a
blob of what one set of mounts shows and another does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import errdefs
from linux.crashpoints import crashpoint
from pb.containerd.types import Mount

from containerd_svc.content import ContentStore
from containerd_svc.ingest import Ingest

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
# Images of CRIU, a plain tar; only `checkpoints` asks for it.
CHECKPOINT = "application/vnd.containerd.container.criu.checkpoint.criu.tar"
_TOGETHER = 2  # layers that are unpacked or made at a time
_CHUNK = 1024 * 1024
_DEFAULT = "application/vnd.oci.image.layer.v1.tar+gzip"
# What a layer can be made as, and how it is compressed.
_MADE = {
    "application/vnd.oci.image.layer.v1.tar": "",
    "application/vnd.oci.image.layer.v1.tar+gzip": "gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd": "zstd",
    "application/vnd.docker.image.rootfs.diff.tar": "",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": "gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": "zstd",
    CHECKPOINT: "",
}
_UNCOMPRESSED = "containerd.io/uncompressed"


@dataclass(frozen=True)
class Applied:
    """What was unpacked: digest and bytes of the uncompressed tar, and bytes of the regular files in it."""

    digest: str
    size: int
    unpacked: int
    # The folders that were made without an entry of their own; None when they are too many to tell.
    made: tuple[str, ...] | None = ()


@dataclass(frozen=True)
class Made:
    """A layer that was made: its blob."""

    media_type: str
    digest: str
    size: int


@dataclass(frozen=True)
class _Target:
    """Where files go: a folder, those of the layers below it (nearest first), and whether deletions are
    overlayfs's.
    """

    folder: str
    lower: tuple[str, ...]
    overlay: bool


class Differ:
    """Works in processes of their own; see apply_worker and diff_worker.

    `place` is a folder for their mounts, which nobody else sees.
    """

    def __init__(self, content: ContentStore, place: Path) -> None:
        self._content = content
        self._place = place
        self._places = asyncio.Semaphore(_TOGETHER)

    async def apply(
        self,
        namespace: str,
        media_type: str,
        digest: str,
        mounts: Sequence[Mount],
        *,
        sync: bool = False,
        apart: bool = False,
    ) -> Applied:
        """Unpack the layer `digest` (plain, gzip or zstd) onto an active snapshot's mounts, without mounting
        them; with `apart` as one that is put on its parents later, when `adopt` wants the folders `made`.

        Raises InvalidArgument for a damaged or hostile archive and for mounts that cannot be written,
        NotImplementedHere for another media type, NotFound for the blob, ResourceExhausted for a full disk.
        What was unpacked before an error stays in the snapshot, which the caller removes.
        """
        if media_type not in _LAYER_TYPES and media_type != CHECKPOINT:
            raise errdefs.NotImplementedHere(f"unsupported diff media type: {media_type}: not implemented")
        target = _target(mounts)
        await self._content.info(namespace, digest)
        request = {
            "blob": os.fspath(self._content.path(digest)),
            "target": target.folder,
            "lower": target.lower,
            "overlay": target.overlay or apart,
            "sync": sync,
        }
        async with self._places:
            answer = await _work(request)
        crashpoint("diff.applied")
        _raise_failed(answer, digest)
        made = answer["made"]
        return Applied(
            answer["digest"], answer["size"], answer["unpacked"], None if made is None else tuple(made)
        )

    async def adopt(
        self, digest: str, mounts: Sequence[Mount], made: Sequence[str], lower: Sequence[str]
    ) -> None:
        """Give the folders `made` while the layer `digest` was unpacked apart the attributes that they have
        in `lower`, the folders of the layers below, the nearest first."""
        request = {"adopt": list(made), "target": _target(mounts).folder, "lower": list(lower)}
        _raise_failed(await _work(request), digest)

    async def make(
        self,
        namespace: str,
        lower: Sequence[Mount],
        upper: Sequence[Mount],
        *,
        media_type: str = "",
        ref: str = "",
        labels: Mapping[str, str] | None = None,
        latest: int | None = None,
        lease: str = "",
    ) -> Made:
        """Make a layer of what `upper` shows and `lower` does not, and store it with `labels`; no mounts as
        `lower` stand for an empty tree. `latest` is the newest time in seconds that an entry may have.

        Raises NotImplementedHere for a media type that is no layer's, InvalidArgument for mounts that cannot
        be read, Unavailable while `ref` is being written.
        """
        media_type = media_type or _DEFAULT
        if media_type not in _MADE:
            raise errdefs.NotImplementedHere(f"unsupported diff media type: {media_type}: not implemented")
        request = {
            "lower": _layers(lower),
            "upper": _layers(upper),
            "place": os.fspath(self._place),
            "compression": _MADE[media_type],
            "latest": latest,
        }
        ref = ref or f"diff-{secrets.token_hex(8)}"
        try:
            async with self._places, self._content.writer(namespace, ref, lease=lease) as ingest:
                if ingest.offset:
                    await ingest.restart()  # of a process that was killed: what it made is not continued
                answer = await _make(request, ingest)
                wanted = {**(labels or {}), _UNCOMPRESSED: answer["digest"]}
                crashpoint("diff.made")
                try:
                    digest = await self._content.commit(namespace, ingest, wanted=wanted, lease=lease)
                except errdefs.AlreadyExists:
                    digest = ingest.digest
        except BaseException:
            with contextlib.suppress(errdefs.BuoyError):
                await self._content.abort(namespace, ref)
            raise
        size = (await self._content.info(namespace, digest)).size
        return Made(media_type, digest, size)


def _raise_failed(answer: dict[str, Any], digest: str) -> None:
    match answer.get("error"):
        case None:
            return
        case "archive":
            raise errdefs.InvalidArgument(f"failed to extract layer {digest}: {answer['message']}")
        case "disk":
            raise errdefs.ResourceExhausted(f"failed to extract layer {digest}: {answer['message']}")
    raise errdefs.Internal(f"failed to extract layer {digest}: {answer['message']}")


def _layers(mounts: Sequence[Mount]) -> list[str]:
    """The folders that lie on one another in what the mounts show, the topmost first."""
    if not mounts:
        return []
    if len(mounts) == 1 and mounts[0].type in ("bind", "rbind"):
        return [mounts[0].source]
    if len(mounts) == 1 and mounts[0].type == "overlay":
        options = dict(option.partition("=")[::2] for option in mounts[0].options)
        lower = [path for path in options.get("lowerdir", "").split(":") if path]
        return [options["upperdir"], *lower] if options.get("upperdir") else lower
    raise errdefs.InvalidArgument("a layer can be made of the mounts of a snapshot only: invalid argument")


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


async def _start(module: str, **options: Any) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-m",
        f"containerd_svc.{module}",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        **options,
    )


async def _work(request: dict[str, Any]) -> dict[str, Any]:
    process = await _start("apply_worker")
    try:
        output, errors = await process.communicate(json.dumps(request).encode())
    finally:
        await _end(process)
    return _answer(process, output, errors)


async def _make(request: dict[str, Any], ingest: Ingest) -> dict[str, Any]:
    """Have the worker make the layer into the ingest; the answer, or Internal."""
    reading, writing = os.pipe()
    with open(reading, "rb") as answer:
        try:
            process = await _start("diff_worker", pass_fds=[writing])
        finally:
            os.close(writing)
        try:
            assert process.stdin
            assert process.stdout
            assert process.stderr
            process.stdin.write(json.dumps({**request, "answer": writing}).encode())
            process.stdin.close()
            while data := await process.stdout.read(_CHUNK):
                await ingest.write(data)
            errors = await process.stderr.read()
            await process.wait()
        finally:
            await _end(process)
        found = _answer(process, answer.read(), errors)
    if "error" in found:
        raise errdefs.Internal(f"failed to make a layer: {found['message']}")
    return found


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        await process.wait()


def _answer(process: asyncio.subprocess.Process, output: bytes, errors: bytes) -> dict[str, Any]:
    if process.returncode != 0:
        last = errors.decode(errors="replace").strip().rpartition("\n")[2]
        return {"error": "failed", "message": last or f"worker ended with {process.returncode}"}
    answer: dict[str, Any] = json.loads(output)
    return answer

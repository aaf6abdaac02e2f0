"""Make images: from an archive of `docker save`, from an OCI layout, from a bare file tree.

Order, so that a crash leaves nothing half made: a lease, blobs held by it, snapshots held by it, config and
manifest with labels that hold the rest, and the name last. On an error the lease is given back and containerd
collects what it held.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import errdefs
from linux.crashpoints import crashpoint

from dockerd_api.images import platforms
from dockerd_api.images.archive import ArchivedImage, ArchivedLayer
from dockerd_api.images.assembling import assemble
from dockerd_api.images.blobs import Blobs
from dockerd_api.images.catalog import Catalog
from dockerd_api.images.documents import Descriptor
from dockerd_api.images.layouts import Layout
from dockerd_api.images.leases import PREFIX, Leases
from dockerd_api.images.model import Image, Layer, Publish
from dockerd_api.images.reference import Reference
from dockerd_api.images.spool import Piece, Spool, compression, decompressed, peeked
from dockerd_api.images.unpack import SNAPSHOTTER, Trees

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_KEPT_COMPRESSIONS = {"": "", "gzip": "+gzip", "zstd": "+zstd"}


class Loader:
    """Writes images into containerd."""

    def __init__(
        self, leases: Leases, blobs: Blobs, trees: Trees, catalog: Catalog, publish: Publish
    ) -> None:
        self._leases = leases
        self._blobs = blobs
        self._trees = trees
        self._catalog = catalog
        self._publish = publish

    async def recover(self) -> None:
        """Throw away what a process that died was making."""
        await self._trees.remove_unfinished()
        await self._blobs.abort_all(PREFIX)
        await self._leases.give_back_all()

    async def load(self, spool: Spool, image: ArchivedImage) -> list[str]:
        """Make one image and its names; Docker's lines about it."""
        async with self._leases.held() as lease:
            layers = [
                await self._store_layer(spool, number, layer, lease)
                for number, layer in enumerate(image.layers)
            ]
            crashpoint("images.blobs-stored")
            await self._trees.unpack(layers, lease)
            target = await assemble(self._blobs, image.config, layers, lease)
            crashpoint("images.unpacked")
            for tag in image.tags:
                await self.point(tag, target)
            if not image.tags:
                await self._catalog.put_dangling(target, {})
        await self._publish("image", "load", target.digest, {"name": target.digest})
        if not image.tags:
            return [f"Loaded image ID: {target.digest}\n"]
        return [f"Loaded image: {tag.familiar}\n" for tag in image.tags]

    async def load_layout(self, spool: Spool, layout: Layout) -> str:
        """Keep one image of an OCI layout as it is, and unpack what this machine runs of it; Docker's line
        about it.
        """
        async with self._leases.held() as lease:
            for number, (blob, piece) in enumerate(layout.blobs.values()):
                await self._store_blob(spool, f"{lease}-{number}", blob, piece, lease)
            crashpoint("images.blobs-stored")
            await self._trees.unpack(layout.layers, lease)
            if layout.chain_id:
                held = {f"containerd.io/gc.ref.snapshot.{SNAPSHOTTER}": layout.chain_id}
                await self._blobs.label(layout.config, held)
            for document in layout.documents.values():
                await self._blobs.write_document(
                    document.data,
                    ref=f"{lease}-{document.descriptor.digest}",
                    lease=lease,
                    labels={label: each.digest for label, each in document.below.items()},
                    digest=document.descriptor.digest,
                )
            crashpoint("images.unpacked")
            if layout.tag is not None:
                await self.point(layout.tag, layout.target)
            else:
                await self._catalog.put_dangling(layout.target, {})
        digest = layout.target.digest
        await self._publish("image", "load", digest, {"name": digest})
        return f"Loaded image: {layout.tag.familiar}\n" if layout.tag else f"Loaded image ID: {digest}\n"

    async def _store_blob(self, spool: Spool, ref: str, blob: Descriptor, piece: Piece, lease: str) -> None:
        try:
            await self._blobs.write(
                spool.stream(piece), ref=ref, lease=lease, expected=blob.digest, size=blob.size
            )
        except errdefs.FailedPrecondition as error:
            raise errdefs.InvalidArgument(f"invalid archive: {error.message}") from error

    async def import_tree(
        self,
        data: AsyncIterator[bytes],
        tag: Reference | None,
        *,
        config: Mapping[str, Any],
        message: str,
        architecture: str = "",
    ) -> str:
        """Make an image of one layer from the tar of a file tree; its id."""
        async with self._leases.held() as lease:
            head, whole = await peeked(data)
            kind = compression(head)
            if kind not in _KEPT_COMPRESSIONS:
                whole, kind = decompressed(whole, kind), ""
            digest, size = await self._blobs.write(whole, ref=f"{lease}-layer", lease=lease)
            media_type = _LAYER + _KEPT_COMPRESSIONS[kind]
            blob = Descriptor(media_type, digest, size).message()
            diff_id, _ = await self._trees.unpack_unknown(blob, lease)
            layer = Layer(media_type, digest, size, diff_id)
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
            created = now.replace("+00:00", "Z")
            document = {
                "architecture": architecture or platforms.host().architecture,
                "comment": message,
                "config": dict(config),
                "created": created,
                "history": [{"created": created, "comment": message}],
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": [diff_id]},
            }
            data_ = json.dumps(document, separators=(",", ":")).encode()
            target = await assemble(self._blobs, data_, [layer], lease)
            if tag is None:
                await self._catalog.put_dangling(target, {})
            else:
                await self.point(tag, target)
        await self._publish("image", "import", target.digest, {"name": target.digest})
        return target.digest

    async def unpack_again(self, image: Image) -> None:
        """Have the snapshots of an image whose layers are in the content store but not, or no longer,
        unpacked.
        """
        async with self._leases.held() as lease:
            await self._trees.unpack(image.layers, lease)

    async def point(self, tag: Reference, target: Descriptor) -> None:
        """Let the name point at the image; one that loses its last name stays, unnamed."""
        await self._catalog.put(str(tag), target, {})
        crashpoint("images.named")

    async def _store_layer(self, spool: Spool, number: int, layer: ArchivedLayer, lease: str) -> Layer:
        head = spool.read(layer.piece, layer.piece.size, "") if layer.piece.size < 6 else b""
        async for chunk in spool.stream(layer.piece):
            head = chunk[:6]
            break
        kind = compression(head)
        data = spool.stream(layer.piece)
        expected = "" if kind else layer.diff_id
        if kind not in _KEPT_COMPRESSIONS:
            data, kind, expected = decompressed(data, kind), "", layer.diff_id
        try:
            digest, size = await self._blobs.write(
                data, ref=f"{lease}-{number}", lease=lease, expected=expected
            )
        except errdefs.FailedPrecondition as error:
            raise errdefs.InvalidArgument(f"invalid diffID for layer {number}: {error.message}") from error
        return Layer(_LAYER + _KEPT_COMPRESSIONS[kind], digest, size, layer.diff_id)

"""The documents of an image that is made here: its config, and the manifest over config and layers."""

from __future__ import annotations

import json
from collections.abc import Sequence

from dockerd_api.images.blobs import Blobs
from dockerd_api.images.documents import Descriptor
from dockerd_api.images.model import Layer, chain_ids
from dockerd_api.images.unpack import SNAPSHOTTER

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"


async def assemble(blobs: Blobs, config: bytes, layers: Sequence[Layer], lease: str) -> Descriptor:
    """Store config and manifest, labelled so that a name holds everything: the manifest's descriptor."""
    chain = chain_ids([layer.diff_id for layer in layers])
    held = {f"containerd.io/gc.ref.snapshot.{SNAPSHOTTER}": chain[-1]} if chain else {}
    config_digest = await blobs.write_document(config, ref=f"{lease}-config", lease=lease, labels=held)
    manifest = _manifest(config_digest, len(config), layers)
    references = {"containerd.io/gc.ref.content.config": config_digest} | {
        f"containerd.io/gc.ref.content.l.{number}": layer.digest for number, layer in enumerate(layers)
    }
    digest = await blobs.write_document(manifest, ref=f"{lease}-manifest", lease=lease, labels=references)
    return Descriptor(_MANIFEST, digest, len(manifest))


def _manifest(config_digest: str, config_size: int, layers: Sequence[Layer]) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {"mediaType": _CONFIG, "digest": config_digest, "size": config_size},
            "layers": [
                {"mediaType": layer.media_type, "digest": layer.digest, "size": layer.size}
                for layer in layers
            ],
        },
        separators=(",", ":"),
    ).encode()

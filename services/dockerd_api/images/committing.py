"""Make an image of what a container changed, on the image that it stands on (moby
daemon/containerd/image_commit.go).

As in loading: everything is held by a lease until the name holds it, so that nothing of a commit that failed
stays.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from linux.crashpoints import crashpoint

from dockerd_api.images.assembling import assemble
from dockerd_api.images.blobs import Blobs
from dockerd_api.images.catalog import Catalog
from dockerd_api.images.documents import Descriptor
from dockerd_api.images.leases import Leases
from dockerd_api.images.model import PARENT, Layer, Manifest
from dockerd_api.images.reference import Reference
from dockerd_api.images.unpack import Trees

# The tar of no files: two empty blocks.
_NOTHING = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
# What an image keeps of a container's config (OCI image-spec config.md, and Docker's own).
_KEPT = (
    "User",
    "ExposedPorts",
    "Env",
    "Entrypoint",
    "Cmd",
    "Volumes",
    "WorkingDir",
    "Labels",
    "StopSignal",
    "ArgsEscaped",
    "Healthcheck",
    "OnBuild",
    "Shell",
)


@dataclass(frozen=True)
class Commit:
    """What is to be made: of the snapshot `snapshot` of the container that was made from `parent`, which
    belongs to the image `parent_id`; `config` with Docker's keys.
    """

    snapshot: str
    parent: Descriptor
    parent_id: str
    config: Mapping[str, Any]
    created_by: str
    comment: str
    author: str
    name: Reference | None


class Committer:
    """Writes images of containers into containerd."""

    def __init__(self, leases: Leases, blobs: Blobs, trees: Trees, catalog: Catalog) -> None:
        self._leases = leases
        self._blobs = blobs
        self._trees = trees
        self._catalog = catalog

    async def commit(self, wanted: Commit) -> str:
        """The new image's id. Raises NotFound when the parent's documents or the snapshot are not here."""
        async with self._leases.held() as lease:
            await self._leases.hold_blobs(lease, [wanted.parent.digest])
            parent = await self._catalog.manifest(wanted.parent)
            await self._leases.hold_blobs(lease, [layer.digest for layer in parent.layers])
            layers = list(parent.layers)
            made = await self._trees.changes(wanted.snapshot, lease)
            crashpoint("images.changes-made")
            labels = await self._blobs.labels(made.digest)
            diff_id = labels["containerd.io/uncompressed"]
            if diff_id != _NOTHING:
                layers.append(Layer(made.media_type, made.digest, made.size, diff_id))
            await self._trees.unpack(layers, lease)
            config = _config(wanted, parent, layers)
            target = await assemble(self._blobs, config, layers, lease)
            crashpoint("images.assembled")
            kept = {PARENT: wanted.parent_id}
            if wanted.name is None:
                await self._catalog.put_dangling(target, kept)
            else:
                await self._catalog.put(str(wanted.name), target, kept)
        return target.digest


def _config(wanted: Commit, parent: Manifest, layers: list[Layer]) -> bytes:
    """The image's config document."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    author = wanted.author or parent.config.get("author") or ""
    step = {
        "created": now,
        "created_by": wanted.created_by,
        "author": author,
        "comment": wanted.comment,
        "empty_layer": len(layers) == len(parent.layers),
    }
    document = {
        "architecture": parent.config.get("architecture") or parent.platform.architecture,
        "os": parent.config.get("os") or parent.platform.os,
        "variant": parent.config.get("variant"),
        "created": now,
        "author": author,
        "config": {key: wanted.config[key] for key in _KEPT if wanted.config.get(key)},
        "history": [*(parent.config.get("history") or ()), _filled(step)],
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
    }
    required = ("architecture", "os", "config", "rootfs")
    return json.dumps(
        {key: value for key, value in document.items() if value or key in required}, separators=(",", ":")
    ).encode()


def _filled(document: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value}

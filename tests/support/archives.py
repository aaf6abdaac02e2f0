"""Small images as `docker save` writes them, made from nothing."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any


def tar(files: Mapping[str, bytes]) -> bytes:
    """A tar of regular files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return out.getvalue()


def saved_image(
    tags: Sequence[str], layers: Sequence[Mapping[str, bytes]], **config: Any
) -> tuple[str, bytes]:
    """An image of these layers, each a mapping of files; its id and the archive."""
    tars = [tar(layer) for layer in layers]
    diff_ids = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in tars]
    document = {
        "os": "linux",
        "architecture": "amd64",
        "created": "2024-01-01T00:00:00Z",
        "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    } | config
    data = json.dumps(document).encode()
    names = [f"{number}/layer.tar" for number in range(len(tars))]
    entry = {"Config": "config.json", "RepoTags": list(tags), "Layers": names}
    files = {"config.json": data, "manifest.json": json.dumps([entry]).encode()}
    archive = tar(files | dict(zip(names, tars, strict=True)))
    return f"sha256:{hashlib.sha256(data).hexdigest()}", archive


async def chunks(data: bytes, size: int = 65536) -> AsyncIterator[bytes]:
    """The data as an upload comes in."""
    for start in range(0, len(data), size):
        yield data[start : start + size]

"""Archives that a client uploads: what is read, and what is refused before anything is changed."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import errdefs
import pytest
import zstandard
from dockerd_api.images import archive, layouts, legacy
from dockerd_api.images.spool import receive

LAYER = b"a layer"
DIFF_ID = f"sha256:{hashlib.sha256(LAYER).hexdigest()}"
CONFIG = json.dumps({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [DIFF_ID]}}).encode()


def tar(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            made.addfile(member)
    return out.getvalue()


def saved(**changed: Any) -> bytes:
    entry = {"Config": "c.json", "Layers": ["l.tar"], "RepoTags": ["a:b"]} | changed
    return tar({"c.json": CONFIG, "l.tar": LAYER, "manifest.json": json.dumps([entry]).encode()})


async def chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def read(data: bytes, folder: Path) -> list[archive.ArchivedImage]:
    async with receive(chunks(data), folder) as spool:
        return archive.read(spool)


async def read_layout(data: bytes, folder: Path) -> list[layouts.Layout]:
    async with receive(chunks(data), folder) as spool:
        index = spool.piece("index.json")
        assert index
        return layouts.read(spool, index)


@pytest.mark.parametrize("squeeze", [bytes, gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
async def test_compressions(squeeze: Any, tmp_path: Path) -> None:
    data = squeeze(saved())
    [image] = await read(data, tmp_path)
    assert image.config == CONFIG
    assert [str(tag) for tag in image.tags] == ["docker.io/library/a:b"]
    assert [layer.diff_id for layer in image.layers] == [DIFF_ID]
    assert list(tmp_path.iterdir()) == []
    if squeeze is not bytes:
        for cut in (len(data) // 2, len(data) - 5):
            with pytest.raises(errdefs.InvalidArgument):
                await read(data[:cut], tmp_path)


async def test_links_between_members(tmp_path: Path) -> None:
    manifest = json.dumps([{"Config": "c.json", "Layers": ["d/l.tar"], "RepoTags": None}]).encode()
    data = tar({"c.json": CONFIG, "e/l.tar": LAYER, "manifest.json": manifest}, {"d/l.tar": "../e/l.tar"})
    [image] = await read(data, tmp_path)
    assert image.layers[0].piece.size == len(LAYER)


def oci(**extra: bytes) -> dict[str, bytes]:
    def name(data: bytes) -> str:
        return f"blobs/sha256/{hashlib.sha256(data).hexdigest()}"

    def descriptor(data: bytes, kind: str) -> dict[str, Any]:
        return {
            "mediaType": kind,
            "digest": name(data).replace("blobs/sha256/", "sha256:"),
            "size": len(data),
        }

    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": descriptor(CONFIG, "application/vnd.oci.image.config.v1+json"),
            "layers": [descriptor(LAYER, "application/vnd.oci.image.layer.v1.tar")],
        }
    ).encode()
    entry = descriptor(manifest, "application/vnd.oci.image.manifest.v1+json")
    entry["platform"] = {"os": "linux", "architecture": "amd64"}
    nested = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    top = descriptor(nested, "application/vnd.oci.image.index.v1+json")
    top["annotations"] = {"io.containerd.image.name": "docker.io/library/x:y"}
    return {
        "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [top]}).encode(),
        name(CONFIG): CONFIG,
        name(LAYER): LAYER,
        name(manifest): manifest,
        name(nested): nested,
    } | extra


async def test_oci_layout(tmp_path: Path) -> None:
    files = oci()
    [layout] = await read_layout(tar(files), tmp_path)
    assert layout.tag is not None
    assert layout.tag.familiar == "x:y"
    assert [layer.diff_id for layer in layout.layers] == [DIFF_ID]
    # Everything that the archive has, as it is, the lower documents first.
    stored = {*layout.documents, *layout.blobs}
    assert {f"blobs/{digest.replace(':', '/')}" for digest in stored} == {
        name for name in files if name.startswith("blobs/")
    }
    assert list(layout.documents)[-1] == layout.target.digest
    assert "io.containerd.image.name" not in layout.target.annotations


async def test_a_layout_without_one_of_its_images(tmp_path: Path) -> None:
    files = oci()
    nested = next(name for name, data in files.items() if name.startswith("blobs") and b'"manifests"' in data)
    document = json.loads(files.pop(nested))
    away = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": "sha256:" + "0" * 64,
        "size": 3,
    }
    document["manifests"].append(away | {"platform": {"os": "linux", "architecture": "s390x"}})
    data = json.dumps(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    top = json.loads(files["index.json"])
    top["manifests"][0] |= {"digest": f"sha256:{digest}", "size": len(data)}
    files |= {"index.json": json.dumps(top).encode(), f"blobs/sha256/{digest}": data}
    [layout] = await read_layout(tar(files), tmp_path)
    assert layout.layers
    assert list(layout.documents[f"sha256:{digest}"].below) == ["containerd.io/gc.ref.content.m.0"]
    del files[f"blobs/sha256/{hashlib.sha256(LAYER).hexdigest()}"]
    with pytest.raises(errdefs.InvalidArgument, match="no such file"):
        await read_layout(tar(files), tmp_path)


async def test_oci_blob_that_lies(tmp_path: Path) -> None:
    files = oci()
    name = next(name for name, data in files.items() if data == CONFIG)
    with pytest.raises(errdefs.InvalidArgument, match="has another digest"):
        await read_layout(tar(files | {name: CONFIG[:-1] + b" "}), tmp_path)
    with pytest.raises(errdefs.InvalidArgument, match="bytes, not"):
        await read_layout(tar(files | {name: CONFIG + b" "}), tmp_path)


def relabelled(kind: str) -> dict[str, bytes]:
    """The layout, whose nested index is announced with another media type than it has itself."""
    files = oci()
    name = next(name for name, data in files.items() if name.startswith("blobs") and b'"manifests"' in data)
    data = json.dumps(json.loads(files[name]) | {"mediaType": kind}).encode()
    digest = hashlib.sha256(data).hexdigest()
    top = json.loads(files["index.json"])
    top["manifests"][0] |= {"digest": f"sha256:{digest}", "size": len(data)}
    return files | {"index.json": json.dumps(top).encode(), f"blobs/sha256/{digest}": data}


@pytest.mark.parametrize(
    "files",
    [
        oci() | {"index.json": b'{"manifests":[],"layers":[{}]}'},
        oci() | {"index.json": b'{"manifests":[],"manifests":[]}'},
        relabelled("application/vnd.oci.image.manifest.v1+json"),
    ],
    ids=["index and manifest", "a key twice", "another media type"],
)
async def test_what_can_be_read_in_two_ways(files: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(errdefs.InvalidArgument):
        await read_layout(tar(files), tmp_path)


async def test_a_layout_with_its_media_types(tmp_path: Path) -> None:
    files = relabelled("application/vnd.oci.image.index.v1+json")
    [layout] = await read_layout(tar(files), tmp_path)
    assert layout.target.is_index


HUGE = b"[" * 100_000


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"hello\n", "unexpected EOF"),
        (b"x" * 600, "invalid tar header"),
        (b"", "does not contain a manifest.json"),
        (saved()[:1500], "unexpected EOF"),
        (saved()[:700], "unexpected EOF"),
        (tar({"a": b"b"}), "does not contain a manifest.json"),
        (tar({"manifest.json": b"{"}), "failed to decode manifest.json"),
        (tar({"manifest.json": HUGE}), "failed to decode manifest.json"),
        (tar({"manifest.json": b"null"}), "cannot be null"),
        (tar({"manifest.json": b"{}"}), "is not a list"),
        (tar({"manifest.json": b"[1]"}), "names no config"),
        (saved(Config="../../etc/passwd"), "no such file"),
        (saved(Config="/etc/passwd"), "no such file"),
        (saved(Layers=["/etc/passwd"]), "no such file"),
        (saved(Layers=[]), "layers length mismatch: expected 0, got 1"),
        (saved(Layers=[1]), "no strings"),
        (saved(RepoTags=["A:b"]), "must be lowercase"),
        (saved(RepoTags=["a"]), 'invalid tag "a"'),
        (tar({"../x": b"y"}), "outside of the archive's root"),
        (tar({"/x": b"y"}), "outside of the archive's root"),
        (
            tar({"manifest.json": b'[{"Config":"l"}]'}, {"l": "/etc/passwd"}),
            "no such file",
        ),
        (tar({}, {"manifest.json": "manifest.json"}), "does not contain a manifest.json"),
        (
            tar({"manifest.json": b'[{"Config":"c"}]', "c": b'{"os":"windows","rootfs":{}}'}),
            "cannot load windows image on linux",
        ),
        (tar({"manifest.json": b'[{"Config":"c"}]', "c": b"{}"}), "no RootFS key"),
        (
            tar({"manifest.json": b'[{"Config":"c"}]', "c": b'{"rootfs":{"diff_ids":["x"]}}'}),
            "not digests",
        ),
    ],
)
async def test_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(errdefs.InvalidArgument) as caught:
        await read(data, tmp_path)
    assert message in caught.value.message
    assert list(tmp_path.iterdir()) == []


async def test_limits(tmp_path: Path) -> None:
    data = tar({"manifest.json": b" " * (8 * 1024 * 1024 + 1)})
    with pytest.raises(errdefs.InvalidArgument, match="larger than"):
        await read(data, tmp_path)
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**40
    with pytest.raises(errdefs.InvalidArgument):
        await read(header.tobuf() + bytes(10_000), tmp_path)


async def test_a_client_that_goes_away(tmp_path: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield saved()[:600]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        async with receive(broken(), tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


async def test_the_format_before_manifests(tmp_path: Path) -> None:
    bottom, top = "1" * 64, "2" * 64
    config = {"Cmd": ["sh"]}
    files = {
        "repositories": json.dumps({"a": {"b": top}}).encode(),
        f"{bottom}/json": json.dumps({"id": bottom, "author": "me"}).encode(),
        f"{bottom}/layer.tar": LAYER,
        f"{top}/json": json.dumps(
            {"id": top, "parent": bottom, "config": config, "container_config": {"Cmd": ["run", "x"]}}
        ).encode(),
        f"{top}/layer.tar": gzip.compress(LAYER),
    }
    async with receive(chunks(tar(files)), tmp_path) as spool:
        repositories = archive.read_document(spool, "repositories")
        [image] = legacy.read(spool, repositories)
        damaged: tuple[Any, ...] = (
            [],
            {"a": 1},
            {"a": {"b": "x"}},
            {"A": {"b": top}},
            {"a": {"b": "3" * 64}},
        )
        for bad in damaged:
            with pytest.raises(errdefs.InvalidArgument):
                legacy.read(spool, bad)
    assert [tag.familiar for tag in image.tags] == ["a:b"]
    assert [layer.diff_id for layer in image.layers] == [DIFF_ID, DIFF_ID]
    assert image.document["config"] == config
    assert image.document["history"] == [{"author": "me"}, {"created_by": "run x"}]
    files[f"{bottom}/json"] = json.dumps({"parent": top}).encode()
    async with receive(chunks(tar(files)), tmp_path) as spool:
        with pytest.raises(errdefs.InvalidArgument, match="max depth exceeded"):
            legacy.read(spool, repositories)

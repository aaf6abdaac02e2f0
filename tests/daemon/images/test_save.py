"""`docker save`: archives that have the same image in them when they are loaded again, here and elsewhere."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from dockerd_api.images import platforms

from tests.support.archives import saved_image, tar
from tests.support.engine import Engine

pytestmark = pytest.mark.root

HERE = platforms.host().architecture


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as found:
        return {
            member.name: (stored.read() if (stored := found.extractfile(member)) else b"") for member in found
        }


def document(archive: bytes, name: str) -> Any:
    return json.loads(members(archive)[name])


def test_an_archive_and_back(engine: Engine) -> None:
    _, archive = saved_image(["kept:1", "kept:2"], [{"f": b"1" * 1000}, {"g": b"2"}])
    with engine.http() as http:
        http.post("/images/load", content=archive)
        image = http.get("/images/kept:1/json").json()
        answer = http.get("/images/kept:1/get")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-tar")
        saved = answer.content
        assert http.get("/images/get", params={"names": "kept:1"}).content == saved  # byte by byte
        [described] = document(saved, "index.json")["manifests"]
        assert described["digest"] == image["Id"]
        assert described["annotations"]["io.containerd.image.name"] == "docker.io/library/kept:1"
        [entry] = document(saved, "manifest.json")
        assert entry["RepoTags"] == ["kept:1"]
        assert {entry["Config"], *entry["Layers"]} < set(members(saved))
        for tag in "12":
            http.delete(f"/images/kept:{tag}")
        assert http.get(f"/images/{image['Id']}/json").status_code == 404
        assert http.post("/images/load", content=saved).json() == {"stream": "Loaded image: kept:1\n"}
        again = http.get("/images/kept:1/json").json()
        assert (again["Id"], again["RootFS"]) == (image["Id"], image["RootFS"])
        http.delete("/images/kept:1")


def test_several_names(engine: Engine) -> None:
    with engine.http() as http:
        for name in "ab":
            _, archive = saved_image([f"{name}x:1", f"{name}x:2"], [{name: b"1"}])
            http.post("/images/load", content=archive)
        first = http.get("/images/ax:1/json").json()["Id"]
        # A repository: all its tags; one image has one entry with all its names.
        [entry] = document(http.get("/images/ax/get").content, "manifest.json")
        assert entry["RepoTags"] == ["ax:1", "ax:2"]
        both = http.get("/images/get", params={"names": ["ax:1", "bx:2"]}).content
        assert [each["RepoTags"] for each in document(both, "manifest.json")] == [["ax:1"], ["bx:2"]]
        # An id: no name.
        unnamed = http.get(f"/images/{first[:19]}/get").content
        assert document(unnamed, "manifest.json")[0]["RepoTags"] is None
        assert "annotations" not in document(unnamed, "index.json")["manifests"][0]
        for name in ("ax:1", "ax:2", "bx:1", "bx:2"):
            http.delete(f"/images/{name}")


def of_many_platforms() -> tuple[str, bytes]:
    """The digest of an index, and a layout with it: this machine's image, another's, and an attestation."""
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}

    def add(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        files[f"blobs/sha256/{digest}"] = data
        return {
            "mediaType": f"application/vnd.oci.image.{kind}",
            "digest": f"sha256:{digest}",
            "size": len(data),
        }

    def image(architecture: str, content: bytes) -> dict[str, Any]:
        layer = tar({"f": content})
        platform = {"architecture": architecture, "os": "linux"}
        diff_ids = [f"sha256:{hashlib.sha256(layer).hexdigest()}"]
        config = json.dumps({**platform, "rootfs": {"type": "layers", "diff_ids": diff_ids}}).encode()
        manifest = {
            "schemaVersion": 2,
            "config": add(config, "config.v1+json"),
            "layers": [add(layer, "layer.v1.tar")],
        }
        return add(json.dumps(manifest).encode(), "manifest.v1+json") | {"platform": platform}

    own, other = image(HERE, b"own"), image("s390x" if HERE != "s390x" else "amd64", b"other")
    statement = {
        "schemaVersion": 2,
        "config": add(b"{}", "config.v1+json"),
        "layers": [add(b'{"_type":"x"}', "layer.v1.tar") | {"mediaType": "application/vnd.in-toto+json"}],
    }
    attestation = add(json.dumps(statement).encode(), "manifest.v1+json") | {
        "platform": {"architecture": "unknown", "os": "unknown"},
        "annotations": {
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": own["digest"],
        },
    }
    index = add(
        json.dumps({"schemaVersion": 2, "manifests": [other, own, attestation]}, indent=1).encode(),
        "index.v1+json",
    )
    named = index | {"annotations": {"io.containerd.image.name": "docker.io/library/many:1"}}
    files["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [named]}).encode()
    return index["digest"], tar(files)


def test_an_image_of_many_platforms_is_kept_as_it_is(engine: Engine) -> None:
    digest, archive = of_many_platforms()
    with engine.http() as http:
        assert http.post("/images/load", content=archive).json() == {"stream": "Loaded image: many:1\n"}
        image = http.get("/v1.48/images/many:1/json", params={"manifests": "true"}).json()
        assert image["Id"] == digest
        kinds = [(each["Kind"], each["Available"]) for each in image["Manifests"]]
        assert kinds == [("image", True), ("image", True), ("attestation", True)]
        assert image["Architecture"] == HERE
        saved = http.get("/images/many:1/get").content
        before, after = members(archive), members(saved)
        assert {name: data for name, data in after.items() if name.startswith("blobs/sha256/") and data} == {
            name: data for name, data in before.items() if name.startswith("blobs/")
        }
        [described] = document(saved, "index.json")["manifests"]
        assert described["digest"] == digest
        assert described["annotations"] == {
            "io.containerd.image.name": "docker.io/library/many:1",
            "org.opencontainers.image.ref.name": "1",
        }
        one = json.dumps({"os": "linux", "architecture": HERE})
        alone = http.get("/v1.48/images/many:1/get", params={"platform": one}).content
        [described] = document(alone, "index.json")["manifests"]
        assert described["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
        assert len(members(alone)) < len(after)
        http.delete("/images/many:1")


def test_one_platform_is_loaded(engine: Engine) -> None:
    digest, archive = of_many_platforms()
    other = "s390x" if HERE != "s390x" else "amd64"
    with engine.http() as http:

        def load(architecture: str) -> httpx.Response:
            platform = json.dumps({"os": "linux", "architecture": architecture})
            return http.post("/v1.48/images/load", params={"platform": platform}, content=archive)

        answer = load("riscv64")
        assert (answer.status_code, answer.json()["message"]) == (
            404,
            "image many:1 doesn't provide the requested platform (linux/riscv64)",
        )
        assert load(other).json() == {"stream": "Loaded image: many:1\n"}
        image = http.get("/v1.48/images/many:1/json", params={"manifests": "true"}).json()
        assert image["Id"] == digest
        available = {
            each["Descriptor"]["platform"]["architecture"]: each["Available"] for each in image["Manifests"]
        }
        assert available == {other: True, HERE: False, "unknown": False}
        # The rest may come later.
        assert http.post("/images/load", content=archive).json() == {"stream": "Loaded image: many:1\n"}
        image = http.get("/v1.48/images/many:1/json", params={"manifests": "true"}).json()
        assert all(each["Available"] for each in image["Manifests"])
        http.delete("/images/many:1")


def test_refused(engine: Engine) -> None:
    with engine.http() as http:
        answer = http.get("/images/nothing/get")
        assert (answer.status_code, answer.json()["message"]) == (404, "No such image: nothing:latest")
        platform = json.dumps({"os": "linux", "architecture": "s390x"})
        answer = http.get("/v1.48/images/busybox/get", params={"platform": platform})
        assert answer.status_code == 404
        assert "does not provide the specified platform (linux/s390x)" in answer.json()["message"]


def test_the_client_saves_and_loads(engine: Engine, tmp_path: Path) -> None:
    engine.docker("tag", "busybox", "saved-by:cli")
    engine.docker("save", "-o", str(tmp_path / "image.tar"), "saved-by:cli")
    engine.docker("rmi", "saved-by:cli")
    assert "Loaded image: saved-by:cli" in engine.docker("load", "-i", str(tmp_path / "image.tar")).stdout
    assert engine.docker("run", "--rm", "saved-by:cli", "echo", "whole").stdout == "whole\n"
    engine.docker("rmi", "saved-by:cli")

"""The docker client against registries: pull, push, login, and what goes wrong."""

from __future__ import annotations

import base64
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.archives import tar
from tests.support.engine import Engine
from tests.support.registry import NAME, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, PASSWORD, LocalRegistry

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegistry]:
    with LocalRegistry(tmp_path_factory.mktemp("plain")) as made:
        yield made


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegistry]:
    with LocalRegistry(tmp_path_factory.mktemp("locked"), htpasswd=True) as made:
        yield made


def layer(size: int) -> bytes:
    return gzip.compress(tar({"file": os.urandom(size)}), 1)


def said(answer: httpx.Response) -> list[dict[str, Any]]:
    return [json.loads(line) for line in answer.text.splitlines()]


def pull(engine: Engine, name: str, tag: str = "", **parameters: str) -> httpx.Response:
    with engine.http() as http:
        return http.post("/v1.45/images/create", params={"fromImage": name, "tag": tag, **parameters})


def test_pull(engine: Engine, registry: LocalRegistry) -> None:
    name = f"{registry.address}/a/b"
    first = registry.put_image("a/b", "1", [layer(10), layer(1000)])
    answer = pull(engine, name, "1")
    assert answer.status_code == 200
    lines = said(answer)
    assert lines[0] == {"status": "Pulling from a/b", "id": "1"}
    steps = [each["status"] for each in lines if each.get("id") not in (None, "1")]
    assert [steps.count(step) for step in ("Pulling fs layer", "Download complete", "Pull complete")] == [
        2
    ] * 3
    assert [each["status"] for each in lines[-2:]] == [
        f"Digest: {first['digest']}",
        f"Status: Downloaded newer image for {name}:1",
    ]
    assert engine.out("images", "-q", "--no-trunc", f"{name}:1") == first["digest"]
    assert [each["status"] for each in said(pull(engine, name, "1"))] == [
        "Pulling from a/b",
        f"Digest: {first['digest']}",
        f"Status: Image is up to date for {name}:1",
    ]
    second = registry.put_image("a/b", "1", [layer(20)])
    assert f"Digest: {second['digest']}" in engine.out("pull", f"{name}:1")
    dangling = engine.out("images", "-q", "--no-trunc", "-f", "dangling=true").split()
    assert first["digest"] in dangling  # it has lost its name, and stays
    digest = f"{name}@{first['digest']}"
    assert engine.out("pull", "-q", digest) == digest
    assert first["digest"] not in engine.out("images", "-q", "--no-trunc", "-f", "dangling=true").split()
    engine.out("rmi", f"{name}:1", digest)


def test_all_tags(engine: Engine, registry: LocalRegistry) -> None:
    name = f"{registry.address}/all"
    for tag in "12":
        registry.put_image("all", tag, [layer(10)])
    engine.out("pull", "-a", name)
    assert sorted(engine.out("images", "--format", "{{.Tag}}", name).split()) == ["1", "2"]
    engine.out("rmi", f"{name}:1", f"{name}:2")


def test_platforms(engine: Engine, registry: LocalRegistry) -> None:
    images = [
        (registry.put_image("many", "", [layer(10)], ("linux", machine)), machine)
        for machine in ("amd64", "s390x")
    ]
    index = registry.put_index("many", "1", images)
    name = f"{registry.address}/many"
    assert said(pull(engine, name, "1"))[-2]["status"] == f"Digest: {index['digest']}"
    assert said(pull(engine, name, "1", platform="linux/s390x"))[-2]["status"] == f"Digest: {index['digest']}"
    answer = pull(engine, name, "1", platform="linux/arm64")
    assert answer.status_code == 404
    assert answer.json()["message"].startswith("no matching manifest for linux/arm64 in the manifest list")
    with engine.http() as http:
        found = http.get(f"/v1.45/distribution/{name}:1/json").json()
    assert found["Descriptor"]["digest"] == index["digest"]
    assert [each["architecture"] for each in found["Platforms"]] == ["amd64", "s390x"]
    engine.out("rmi", f"{name}:1")


def test_what_is_not_there(engine: Engine, registry: LocalRegistry) -> None:
    registry.put_image("there", "1", [layer(10)])
    name = f"{registry.address}/there"
    answer = pull(engine, name, "2")
    assert answer.status_code == 404
    assert answer.json()["message"] == f'failed to resolve reference "{name}:2": {name}:2: not found'
    answer = pull(engine, f"{registry.address}/nowhere")
    assert answer.status_code == 404
    assert answer.json()["message"] == (
        f"repository {registry.address}/nowhere not found: "
        "name unknown: repository name not known to registry"
    )
    answer = pull(engine, "127.0.0.1:1/a", "1")
    assert answer.status_code == 500
    assert answer.json()["message"].endswith("dial tcp 127.0.0.1:1: connect: connection refused")


def test_login(engine: Engine, locked: LocalRegistry, tmp_path: Path) -> None:
    name = f"{locked.address}/a"
    config = ("--config", str(tmp_path))
    login = (*config, "login", "-u", NAME, "--password-stdin", locked.address)
    done = engine.docker(*login, input="wrong")
    assert (done.returncode, "401 Unauthorized" in done.stderr) == (1, True)
    done = engine.docker(*config, "pull", f"{name}:1")
    assert (done.returncode, "no basic auth credentials" in done.stderr) == (1, True)
    assert engine.docker(*login, input=PASSWORD).returncode == 0
    done = engine.docker(*config, "pull", f"{name}:1")
    assert (done.returncode, "not found" in done.stderr) == (1, True)
    assert "Removing" in engine.out(*config, "logout", locked.address)


def pushed(engine: Engine, *arguments: str) -> tuple[list[str], str]:
    """What was said of each blob at last, and the last line."""
    first, *blobs, last = engine.out("push", *arguments).splitlines()
    assert first.startswith("The push refers to repository [")
    steps = [line.partition(": ")[2] for line in blobs]
    return [step for step in steps if step != "Waiting"], last


def test_push(engine: Engine, registry: LocalRegistry) -> None:
    image = registry.put_image("source", "1", [layer(10), layer(1000)])
    source, name = f"{registry.address}/source:1", f"{registry.address}/pushed/a:1"
    end = f"1: digest: {image['digest']} size: {image['size']}"
    engine.out("pull", "-q", source)
    engine.out("tag", source, name)
    assert pushed(engine, name) == (["Mounted from source"] * 2, end)
    assert pushed(engine, name) == (["Layer already exists"] * 2, end)
    registry.collect()
    engine.out("rmi", source, name)
    engine.out("pull", "-q", name)
    assert engine.out("images", "-q", "--no-trunc", name) == image["digest"]
    engine.out("rmi", name)


def test_push_of_what_no_registry_has(engine: Engine, registry: LocalRegistry, tmp_path: Path) -> None:
    archive = tmp_path / "root.tar"
    archive.write_bytes(tar({"file": os.urandom(200_000)}))
    name = f"{registry.address}/own"
    for tag in "ab":
        engine.out("import", str(archive), f"{name}:{tag}")
    digests = {tag: engine.out("images", "-q", "--no-trunc", f"{name}:{tag}") for tag in "ab"}
    steps, last = pushed(engine, f"{name}:a")
    assert steps == ["Pushed"]
    kind, _ = registry.manifest("own", "a")
    headers = registry.request("GET", "/v2/own/manifests/a", headers={"Accept": kind})[1]
    assert headers["docker-content-digest"] == digests["a"]
    assert last == f"a: digest: {digests['a']} size: {headers['content-length']}"
    said_of_all = engine.out("push", "-a", name)
    assert [f"{tag}: digest: {digests[tag]}" in said_of_all for tag in "ab"] == [True] * 2
    registry.collect()
    engine.out("rmi", f"{name}:a", f"{name}:b")
    for tag in "ab":
        engine.out("pull", "-q", f"{name}:{tag}")
        assert engine.out("images", "-q", "--no-trunc", f"{name}:{tag}") == digests[tag]
    engine.out("rmi", f"{name}:a", f"{name}:b")
    done = engine.docker("push", f"{name}:a")
    assert (done.returncode, "tag does not exist: " in done.stderr) == (1, True), done.stderr


def test_push_with_login(engine: Engine, locked: LocalRegistry, tmp_path: Path) -> None:
    archive = tmp_path / "root.tar"
    archive.write_bytes(tar({"file": b"x"}))
    name = f"{locked.address}/mine:1"
    engine.out("import", str(archive), name)
    config = ("--config", str(tmp_path / "config"))
    done = engine.docker(*config, "push", name)
    assert (done.returncode, "no basic auth credentials" in done.stderr) == (1, True), done.stderr
    engine.docker(*config, "login", "-u", NAME, "--password-stdin", locked.address, input=PASSWORD)
    digest = engine.out("images", "-q", "--no-trunc", name)
    assert f"1: digest: {digest} " in engine.out(*config, "push", name)
    assert locked.manifest("mine", "1")[1]["layers"]
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    auth = base64.b64encode(f"{NAME}:wrong".encode()).decode()
    (wrong / "config.json").write_text(json.dumps({"auths": {locked.address: {"auth": auth}}}))
    done = engine.docker("--config", str(wrong), "push", name)
    assert (done.returncode, "401" in done.stderr or "denied" in done.stderr) == (1, True), done.stderr
    engine.out("rmi", name)


def test_schema2(engine: Engine, registry: LocalRegistry) -> None:
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    kinds = {
        OCI_MANIFEST: kind,
        OCI_CONFIG: "application/vnd.docker.container.image.v1+json",
        OCI_LAYER: "application/vnd.docker.image.rootfs.diff.tar.gzip",
    }
    plain = registry.put_image("schema2", "", [layer(10)])
    text = json.dumps(registry.manifest("schema2", plain["digest"])[1])
    for old, new in kinds.items():
        text = text.replace(old, new)
    image = registry.put_manifest("schema2", "1", json.loads(text))
    source, name = f"{registry.address}/schema2:1", f"{registry.address}/copied/schema2:1"
    engine.out("pull", "-q", source)
    assert engine.out("images", "-q", "--no-trunc", source) == image["digest"]
    engine.out("tag", source, name)
    assert pushed(engine, name)[1] == f"1: digest: {image['digest']} size: {image['size']}"
    assert registry.manifest("copied/schema2", "1") == (kind, json.loads(text))
    engine.out("rmi", source, name)


def test_push_of_several_platforms(engine: Engine, registry: LocalRegistry) -> None:
    images = [
        (registry.put_image("both", "", [layer(10)], ("linux", machine)), machine)
        for machine in ("amd64", "s390x")
    ]
    index = registry.put_index("both", "1", images)
    source, name = f"{registry.address}/both:1", f"{registry.address}/copied/both"
    engine.out("pull", "-q", "--platform", "linux/amd64", source)
    for tag in "12":
        engine.out("tag", source, f"{name}:{tag}")
    amd64 = images[0][0]
    with engine.http() as http:
        auth = base64.urlsafe_b64encode(b"{}").decode()
        answer = http.post(
            f"/v1.45/images/{name}/push", params={"tag": "1"}, headers={"X-Registry-Auth": auth}
        )
    told = [each["aux"] for each in said(answer) if "aux" in each]
    assert told[0]["manifestPushedInsteadOfIndex"]
    assert told[0]["originalIndex"]["digest"] == index["digest"]
    assert told[0]["selectedManifest"]["digest"] == amd64["digest"]
    assert told[1] == {"Tag": "1", "Digest": amd64["digest"], "Size": amd64["size"]}
    assert registry.manifest("copied/both", "1")[0] == OCI_MANIFEST
    engine.out("pull", "-q", "--platform", "linux/s390x", source)
    assert pushed(engine, f"{name}:2")[1] == f"2: digest: {index['digest']} size: {index['size']}"
    registry.collect()
    assert [each["digest"] for each in registry.manifest("copied/both", "2")[1]["manifests"]] == [
        image["digest"] for image, _ in images
    ]
    engine.out("rmi", source, f"{name}:1", f"{name}:2")

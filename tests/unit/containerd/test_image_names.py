"""The names that an archive's images get in a transfer."""

from __future__ import annotations

import errdefs
import pytest
from containerd_svc.transfer import naming
from pb.containerd.types.transfer import ImageReference, ImageStore

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("name", "normal", "familiar", "tag"),
    [
        ("busybox", "docker.io/library/busybox:latest", "busybox:latest", "latest"),
        ("a/b:1", "docker.io/a/b:1", "a/b:1", "1"),
        ("localhost/a", "localhost/a:latest", "localhost/a:latest", "latest"),
        ("host:5000/a/b:c", "host:5000/a/b:c", "host:5000/a/b:c", "c"),
        (f"a@{DIGEST}", f"docker.io/library/a@{DIGEST}", f"a@{DIGEST}", f"docker.io/library/a@{DIGEST}"),
    ],
)
def test_docker_names(name: str, normal: str, familiar: str, tag: str) -> None:
    assert naming.normal(name) == normal
    assert naming.familiar(normal) == familiar
    assert naming.tag_of(normal) == tag


@pytest.mark.parametrize("name", ["", "A", "a:", "a b", "../a", "a@sha256:1", "host:x/a:1:2"])
def test_bad_docker_names(name: str) -> None:
    with pytest.raises(errdefs.InvalidArgument, match="invalid reference format"):
        naming.normal(name)


@pytest.mark.parametrize(
    ("reference", "annotations", "names"),
    [
        ({"allow_overwrite": True}, {naming.WHOLE_NAME: "x/y:1"}, ["x/y:1"]),
        ({}, {naming.WHOLE_NAME: "x/y:1"}, []),
        ({}, {naming.WHOLE_NAME: "p:1"}, ["p:1"]),
        ({}, {naming.WHOLE_NAME: "pp:1"}, []),
        ({}, {naming.REF_NAME: "1"}, ["p:1"]),
        ({}, {naming.REF_NAME: "q/r:1"}, []),
        ({}, {}, []),
        ({"add_digest": True}, {}, [f"p@{DIGEST}"]),
        ({"add_digest": True}, {naming.REF_NAME: "1"}, ["p:1", f"p@{DIGEST}"]),
        ({"add_digest": True, "skip_named_digest": True}, {naming.REF_NAME: "1"}, ["p:1"]),
    ],
)
def test_names_by_a_prefix(reference: dict[str, bool], annotations: dict[str, str], names: list[str]) -> None:
    wanted = ImageReference(
        name="p",
        is_prefix=True,
        allow_overwrite=reference.get("allow_overwrite", False),
        add_digest=reference.get("add_digest", False),
        skip_named_digest=reference.get("skip_named_digest", False),
    )
    store = ImageStore(extra_references=[wanted, ImageReference(name="whole")])
    assert naming.names_in_index(store, DIGEST, annotations) == names
    assert naming.names_of_whole(store) == ["whole"]

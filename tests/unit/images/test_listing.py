"""Filters and shapes of the image list."""

from __future__ import annotations

import json

import errdefs
import pytest
from dockerd_api.images import listing
from dockerd_api.images.model import Image, Layer

OLD, NEW = "2020-01-01T00:00:00Z", "2024-01-01T00:00:00.123456789Z"


def image(number: int, created: str, *tags: str, labels: dict[str, str] | None = None) -> Image:
    config = {
        "config": {"Labels": labels},
        "history": [
            {"created": created, "created_by": "a"},
            {"created": created, "created_by": "b", "empty_layer": True},
        ],
    }
    layer = Layer("t", "sha256:x", 5, "sha256:same")
    return Image(
        f"sha256:{number:064}", "", tags, (), config, "", 7, created, "amd64", "linux", (layer,), (7,)
    )


A = image(1, OLD, "busybox:latest", labels={"a": "1"})
B = image(2, NEW, "foo/bar:v1", "foo/bar:v2")
C = image(3, NEW)


def chosen(filters: dict[str, list[str]]) -> list[Image]:
    return listing.choose([A, B, C], filters, {"busybox": A, "bar": B}.__getitem__)


def test_choice() -> None:
    assert chosen({}) == [B, C, A]
    assert chosen({"dangling": ["true"]}) == [C]
    assert chosen({"dangling": ["0"]}) == [B, A]
    assert chosen({"label": ["a"]}) == chosen({"label": ["a=1"]}) == [A]
    assert chosen({"label": ["a=2"]}) == []
    assert chosen({"label!": ["a"]}) == [B, C]
    assert chosen({"since": ["busybox"]}) == [B, C]
    assert chosen({"before": ["bar"]}) == chosen({"until": ["2022-01-01T00:00:00Z"]}) == [A]
    assert chosen({"until": ["1h"]}) == [B, C, A]


@pytest.mark.parametrize(
    ("pattern", "shown"),
    [
        ("foo/bar", (["foo/bar:v1", "foo/bar:v2"], [])),
        ("foo/*:v1", (["foo/bar:v1"], [])),
        ("*/b?r:v[2]", (["foo/bar:v2"], [])),
        ("*", None),
        ("foo", None),
    ],
)
def test_references(pattern: str, shown: object) -> None:
    assert listing.shown_names(B, {"reference": [pattern]}) == shown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "invalid filter"),
        ('{"foo":["x"]}', "invalid filter 'foo'"),
        ('{"dangling":[1]}', "invalid filter"),
        ("[]", "invalid filter"),
    ],
)
def test_bad_filters(text: str, message: str) -> None:
    with pytest.raises(errdefs.InvalidArgument) as caught:
        listing.parse_filters(text)
    assert caught.value.message == message


def test_bad_values() -> None:
    with pytest.raises(errdefs.InvalidArgument, match=r"invalid filter 'dangling=\[x\]'"):
        chosen({"dangling": ["x"]})
    with pytest.raises(errdefs.InvalidArgument):
        chosen({"until": ["yesterday"]})
    with pytest.raises(errdefs.InvalidArgument):
        listing.shown_names(B, {"reference": ["a["]})


def test_old_form_of_filters() -> None:
    assert listing.parse_filters('{"dangling":{"true":true,"false":false}}') == {"dangling": ["true"]}


def test_history_and_sharing() -> None:
    steps = listing.history(B)
    assert [(step["CreatedBy"], step["Size"], step["Id"]) for step in steps] == [
        ("b", 0, B.id),
        ("a", 7, "<missing>"),
    ]
    assert steps[0]["Tags"] == ["foo/bar:v1", "foo/bar:v2"]
    assert listing.shared_sizes([A, B]) == {A.id: 7, B.id: 7}
    assert listing.shared_sizes([A]) == {A.id: 0}


def test_versions_of_inspect() -> None:
    assert "VirtualSize" in listing.details(A, (1, 43))
    assert "VirtualSize" not in listing.details(A, (1, 44))
    assert "Container" in listing.details(A, (1, 44))
    assert "Hostname" in listing.details(A, (1, 49))["Config"]
    assert "Hostname" not in listing.details(A, (1, 50))["Config"]
    json.dumps(listing.details(A, (1, 50)))

"""Filters of the image list and of prune, and the shapes of single images."""

from __future__ import annotations

import datetime
import json

import errdefs
import pytest
from dockerd_api.images import filters, listing
from dockerd_api.images.documents import Descriptor as Described
from dockerd_api.images.model import Image, Layer, Manifest
from dockerd_api.images.platforms import Platform
from pb.containerd.services.images import v1 as pb
from pb.containerd.types import Descriptor

DIGEST = f"sha256:{'1' * 64}"


def record(name: str, year: int = 2024) -> pb.Image:
    made = datetime.datetime(year, 1, 1, tzinfo=datetime.UTC)
    return pb.Image(name=name, target=Descriptor(digest=DIGEST), created_at=made)


A = record("docker.io/library/busybox:latest", 2020)
B = record("docker.io/foo/bar:v1")
C = record(f"moby-dangling@{DIGEST}")


def chosen(wanted: dict[str, list[str]]) -> list[pb.Image]:
    suits = filters.of_records(wanted)
    return [image for image in (A, B, C) if suits(image)]


def test_records() -> None:
    assert chosen({}) == [A, B, C]
    assert chosen({"dangling": ["true"]}) == [C]
    assert chosen({"dangling": ["0"]}) == [A, B]
    assert chosen({"until": ["2022-01-01T00:00:00Z"]}) == [A]
    assert chosen({"until": ["1h"]}) == [A, B, C]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("foo/bar", [B]),
        ("foo/*:v1", [B]),
        ("*/b?r:v[1]", [B]),
        ("*/b?r:v[2]", []),
        ("*", [A]),
        ("busybox", [A]),
        ("foo", []),
    ],
)
def test_references(pattern: str, found: list[pb.Image]) -> None:
    assert chosen({"reference": [pattern]}) == found


@pytest.mark.parametrize(
    ("wanted", "has"),
    [
        ({"label": ["a"]}, True),
        ({"label": ["a=1"]}, True),
        ({"label": ["a=2"]}, False),
        ({"label": ["a!=2"]}, True),
        ({"label": ["a", "b"]}, False),
        ({"label!": ["a"]}, False),
        ({"label!": ["b"]}, True),
        ({"label!": ["a=2"]}, True),
    ],
)
def test_labels(wanted: dict[str, list[str]], has: bool) -> None:
    assert filters.has_labels({"config": {"Labels": {"a": "1"}}}, wanted) is has


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
        filters.parse(text)
    assert caught.value.message == message


def test_filters_of_prune() -> None:
    with pytest.raises(errdefs.InvalidArgument, match="invalid filter 'reference'"):
        filters.parse('{"reference":["a"]}', filters.PRUNE)


def test_bad_values() -> None:
    with pytest.raises(errdefs.InvalidArgument, match=r"invalid filter 'dangling=\[x\]'"):
        filters.of_records({"dangling": ["x"]})
    with pytest.raises(errdefs.InvalidArgument, match="invalid filter 'until="):
        filters.of_records({"until": ["soon"]})
    with pytest.raises(errdefs.InvalidArgument, match="syntax error in pattern"):
        filters.of_records({"reference": ["a["]})


def test_old_form_of_filters() -> None:
    assert filters.parse('{"dangling":{"true":true,"false":false}}') == {"dangling": ["true"]}


MANIFEST = Manifest(
    descriptor=Described("m", DIGEST, 3),
    config_descriptor=Described("c", DIGEST, 4),
    config={
        "created": "2024-01-01T00:00:00.123456789Z",
        "config": {"Cmd": ["sh"], "Hostname": "old"},
        "history": [{"created_by": "a"}, {"created_by": "b", "empty_layer": True}],
    },
    layers=(Layer("t", "sha256:x", 5, "sha256:same"),),
    platform=Platform("linux", "amd64"),
)
IMAGE = Image(MANIFEST.descriptor, repo_tags=("foo/bar:v1", "foo/bar:v2"), manifest=MANIFEST)


def test_history() -> None:
    steps = listing.history(IMAGE, MANIFEST, {"sha256:same": 7}.__getitem__)
    assert [(step["CreatedBy"], step["Size"], step["Id"]) for step in steps] == [
        ("b", 0, DIGEST),
        ("a", 7, "<missing>"),
    ]
    assert steps[0]["Tags"] == ["foo/bar:v1", "foo/bar:v2"]


def test_versions_of_inspect() -> None:
    assert listing.details(IMAGE, 9, (1, 43))["VirtualSize"] == 9
    assert "VirtualSize" not in listing.details(IMAGE, 9, (1, 44))
    assert "Descriptor" not in listing.details(IMAGE, 9, (1, 47))
    assert listing.details(IMAGE, 9, (1, 48))["Descriptor"]["digest"] == DIGEST
    assert listing.details(IMAGE, 9, (1, 49))["Config"]["Hostname"] == ""
    assert listing.details(IMAGE, 9, (1, 50))["Config"] == {"Cmd": ["sh"]}
    json.dumps(listing.details(IMAGE, 9, (1, 50)))
    assert listing.details(Image(MANIFEST.descriptor), 9, (1, 50))["Config"] is None

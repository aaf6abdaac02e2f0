"""What a pull or push says, from what containerd tells."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from dockerd_api.images import reference
from dockerd_api.images.progress import PullProgress, PushProgress
from pb.containerd.types import Descriptor
from pb.containerd.types.transfer import Progress

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def said(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def told(event: str, digit: str, media_type: str = LAYER, progress: int = 0, total: int = 0) -> Progress:
    descriptor = Descriptor(media_type=media_type, digest=f"sha256:{digit * 64}", size=total)
    return Progress(event=event, desc=descriptor, progress=progress, total=total)


def test_pull() -> None:
    progress = PullProgress(reference.parse("busybox:1"))
    progress.take_in(Progress(event="Resolving from a registry"))
    progress.take_in(told("waiting", "a"))
    assert said(progress.messages()) == []  # until there is a manifest another status can be answered
    progress.take_in(told("waiting", "f", MANIFEST))
    assert said(progress.messages()) == [
        {"status": "Pulling from library/busybox", "id": "1"},
        {"status": "Pulling fs layer", "progressDetail": {}, "id": "a" * 12},
    ]
    progress.take_in(told("downloading", "a", progress=1_234_567, total=10_000_000))
    assert said(progress.messages()) == [
        {
            "status": "Downloading",
            "progressDetail": {"current": 1_234_567, "total": 10_000_000},
            "progress": f"[======>{' ' * 44}]  1.235MB/10MB",
            "id": "a" * 12,
        }
    ]
    assert said(progress.messages()) == []
    progress.take_in(told("already exists", "b"))
    progress.take_in(told("extracting", "a", progress=5, total=10))
    progress.take_in(told("downloading", "a", progress=9, total=10))  # late
    assert [(each["status"], each["id"]) for each in said(progress.messages())] == [
        ("Download complete", "a" * 12),
        ("Extracting", "a" * 12),
        ("Pulling fs layer", "b" * 12),
        ("Already exists", "b" * 12),
    ]
    assert said(progress.end("sha256:0", newer=True)) == [
        {"status": "Pull complete", "progressDetail": {"hidecounts": True}, "id": "a" * 12},
        {"status": "Digest: sha256:0"},
        {"status": "Status: Downloaded newer image for busybox:1"},
    ]


def test_pull_of_what_is_here_by_names_alone() -> None:
    """containerd 1.7 tells no descriptors."""
    progress = PullProgress(reference.parse("a.example/b@sha256:" + "1" * 64))
    progress.take_in(Progress(event="already exists", name="manifest-sha256:" + "1" * 64))
    progress.take_in(Progress(event="already exists", name="config-sha256:" + "2" * 64))
    [begun] = said(progress.messages())
    assert begun == {"status": "Pulling from b", "id": "a.example/b@sha256:" + "1" * 64}
    last = said(progress.end("sha256:1", newer=False))[-1]
    assert last["status"].startswith("Status: Image is up to date for a.example/b@sha256:1")


def test_push() -> None:
    progress = PushProgress()
    for digit in "abc":
        progress.take_in(told("waiting", digit))
    progress.take_in(told("waiting", "f", MANIFEST))
    progress.take_in(told("already exists", "b"))
    progress.take_in(told("already exists", "d", "application/vnd.in-toto+json"))
    assert [each["status"] for each in said(progress.messages())] == [
        "Waiting",
        "Layer already exists",
        "Waiting",
        "Already exists",
    ]
    progress.take_in(told("uploading", "a", progress=1, total=2))
    progress.take_in(told("complete", "c"))
    assert [each["status"] for each in said(progress.messages())] == ["Pushing", "Pushed"]
    assert said(progress.messages()) == []

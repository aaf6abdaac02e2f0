"""containerd's filter language."""

from __future__ import annotations

from collections.abc import Sequence

import errdefs
import pytest
from containerd_svc import filters

OBJECT = {"name": "docker.io/library/busybox:latest", "id": "a,b", "labels.x.y": "1", "path": "/a b"}


def lookup(path: Sequence[str]) -> str | None:
    return OBJECT.get(".".join(path))


@pytest.mark.parametrize(
    ("wanted", "matches"),
    [
        ([], True),
        ([""], True),
        (["name"], True),
        (["missing"], False),
        (["name==docker.io/library/busybox:latest"], True),
        (["name!=x"], True),
        (["missing!=x"], True),
        (["name~=busybox"], True),
        (["name~=^busybox"], False),
        (["name~=/library\\/busy/"], True),
        (["name~=|library/busy|,id"], True),
        (["missing~=x"], False),
        (['id=="a,b"'], True),
        (["id==a"], False),
        (["labels.x.y==1"], True),
        (['labels."x.y"==1'], True),
        (["labels.x.y==1, name"], True),
        (["labels.x.y == 1 , missing"], False),
        (["missing", "name"], True),
        (['path=="/a b"'], True),
    ],
)
def test_matching(wanted: list[str], matches: bool) -> None:
    assert filters.parse(wanted)(lookup) is matches


@pytest.mark.parametrize("wanted", ["=x", "a==", "a,", "a==b c", 'a=="b', "a~=(", "a~=/b", "a.", "a==b,,c"])
def test_refused(wanted: str) -> None:
    with pytest.raises(errdefs.InvalidArgument):
        filters.parse([wanted])

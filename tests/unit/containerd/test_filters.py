"""containerd_svc.filters: containerd's filter language."""

from __future__ import annotations

from collections.abc import Sequence

import errdefs
import pytest
from containerd_svc import filters

OBJECT = {"id": "abc", "topic": "/tasks/exit", "labels": {"a.b": "1", "very complex label": "x"}}


def lookup(path: Sequence[str]) -> str | None:
    found = OBJECT.get(path[0])
    if isinstance(found, dict):
        return filters.labels_at(path[1:], found)
    return found if len(path) == 1 and isinstance(found, str) else None


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([], True),
        ([""], True),
        (["id"], True),
        (["image"], False),
        (["id==abc"], True),
        (["id!=abc"], False),
        (["image!=abc"], True),
        (["labels.a.b==1"], True),
        (["labels.a.b"], True),
        (['labels."a.b"==1'], True),
        (['labels."very complex label"==x'], True),
        (['id==abc,topic=="/other"'], False),
        (["id==no", 'topic=="/tasks/exit"'], True),
        (["topic~=|^/tasks/|"], True),
        (["topic~=|^/containers/|"], False),
        ([r"topic~=/^\/tasks\//"], True),
        (["topic~=^/tasks/.*"], True),
        (['topic~="exit$"'], True),
        (["id==abc,topic~=|exit$|"], True),
    ],
)
def test_matching(wanted: list[str], expected: bool) -> None:
    assert filters.parse(wanted)(lookup) is expected


@pytest.mark.parametrize(
    "wanted", ["==a", "id==", "id=a", "id==a,", "id~=(", 'id=="a', "id.", "id==|a|b|,", "topic==/a"]
)
def test_what_does_not_parse_is_invalid(wanted: str) -> None:
    with pytest.raises(errdefs.InvalidArgument):
        filters.parse([wanted])

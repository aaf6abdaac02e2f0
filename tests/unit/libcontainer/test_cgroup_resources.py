"""Units of cgroup v1 turned into those of v2, paths, and malformed limits."""

from __future__ import annotations

import errdefs
import pytest
from runc_bin.libcontainer.cgroups import hierarchy, resources


@pytest.mark.parametrize(
    ("shares", "weight"),
    [(1, 1), (2, 1), (1024, 100), (262144, 10000), (300000, 10000), (512, 59), (2048, 174)],
)
def test_cpu_weight_meets_minimum_default_and_maximum(shares: int, weight: int) -> None:
    assert resources.cpu_weight(shares) == weight


def test_io_weight_is_linear() -> None:
    assert [resources.io_weight(weight) for weight in (10, 500, 1000)] == [1, 4950, 10000]


@pytest.mark.parametrize(
    ("memory", "swap", "expected"),
    [(-1, 0, -1), (100, 0, None), (100, -1, -1), (100, 150, 50), (100, 100, 0), (-1, 150, 150), (0, 0, None)],
)
def test_swap_is_what_lies_above_memory(memory: int, swap: int, expected: int | None) -> None:
    assert resources.swap_max(memory, swap) == expected


@pytest.mark.parametrize(("memory", "swap"), [(0, 100), (100, 50), (-2, 50)])
def test_contradicting_swap_is_refused(memory: int, swap: int) -> None:
    with pytest.raises(errdefs.InvalidArgument):
        resources.swap_max(memory, swap)


@pytest.mark.parametrize(("limit", "word"), [(None, None), (-1, "max"), (0, "1"), (1, "1"), (4096, "4096")])
def test_pids_limit(limit: int | None, word: str | None) -> None:
    assert resources.pids_max({"pids": {"limit": limit}}) == word


@pytest.mark.parametrize(
    ("path", "cleaned"),
    [
        ("", ""),
        ("/", "/"),
        ("//docker//x/", "/docker/x"),
        ("/../../etc", "/etc"),
        ("a/../../../b", "b"),
        ("./a/./b", "a/b"),
        ("..", ""),
    ],
)
def test_paths_never_leave_their_root(path: str, cleaned: str) -> None:
    assert hierarchy.clean(path) == cleaned


@pytest.mark.parametrize(
    "document",
    [
        {"memory": []},
        {"pids": {"limit": "7"}},
        {"pids": {"limit": True}},
        {"hugepageLimits": [{"pageSize": "../x", "limit": 1}]},
        {"hugepageLimits": {}},
    ],
)
def test_malformed_limits_are_refused(document: dict[str, object]) -> None:
    def read_all() -> None:
        resources.section(document, "memory")
        resources.pids_max(document)
        resources.hugepage_limits(document)

    with pytest.raises(errdefs.InvalidArgument):
        read_all()

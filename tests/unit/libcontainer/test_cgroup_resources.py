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
    ("document", "field"),
    [
        ({"memory": []}, "memory"),
        ({"memory": {"limit": "1"}}, "memory.limit"),
        ({"memory": {"limit": -2}}, "memory.limit"),
        ({"memory": {"limit": 100, "swap": 50}}, "memory.swap"),
        ({"memory": {"swappiness": 101}}, "swappiness"),
        ({"memory": {"useHierarchy": 1}}, "memory.useHierarchy"),
        ({"cpu": {"shares": -1}}, "cpu.shares"),
        ({"cpu": {"idle": 2}}, "cpu.idle"),
        ({"cpu": {"mems": "0,,1"}}, "cpu.mems"),
        ({"pids": {"limit": "7"}}, "pids.limit"),
        ({"pids": {"limit": True}}, "pids.limit"),
        ({"blockIO": {"weight": 9}}, "blockIO.weight"),
        ({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "weight": 1001}]}}, "blockIO.weightDevice"),
        ({"blockIO": {"throttleWriteIOPSDevice": [{"major": 8, "rate": 1}]}}, "throttleWriteIOPSDevice"),
        ({"hugepageLimits": [{"pageSize": "../x", "limit": 1}]}, "hugepageLimits.pageSize"),
        ({"hugepageLimits": [{"pageSize": "2MB"}]}, "hugepageLimits.limit"),
        ({"hugepageLimits": {}}, "hugepageLimits"),
        ({"network": {"priorities": [{"name": "a b", "priority": 1}]}}, "network.priorities.name"),
        ({"rdma": {"d": {"hcaHandles": -1}}}, "rdma.d.hcaHandles"),
        ({"rdma": {"d e": {"hcaHandles": 1}}}, "rdma.d e"),
    ],
)
@pytest.mark.parametrize("unified", [False, True])
def test_malformed_limits_are_refused_by_name(document: dict[str, object], field: str, unified: bool) -> None:
    with pytest.raises(errdefs.InvalidArgument, match=field):
        resources.check(document, unified=unified)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"memory": {"swappiness": 0}}, "memory.swappiness"),
        ({"memory": {"disableOOMKiller": True}}, "memory.disableOOMKiller"),
        ({"cpu": {"realtimeRuntime": 1}}, "cpu.realtimeRuntime"),
        ({"cpu": {"idle": 1, "shares": 2}}, "cpu.shares"),
        ({"blockIO": {"leafWeight": 10}}, "blockIO.leafWeight"),
        ({"network": {"classID": 1}}, "network.classID"),
        ({"unified": {"../memory.max": "1"}}, "no slashes"),
        ({"unified": {"memory..max": "1"}}, "file name"),
        ({"unified": {"memory": "1"}}, "CONTROLLER.PARAMETER"),
        ({"unified": {"memory.max": 1}}, "string"),
        ({"unified": {"cgroup.procs": "1"}}, "no limit"),
    ],
)
def test_what_cgroup_v2_cannot_do_is_refused(document: dict[str, object], field: str) -> None:
    with pytest.raises(errdefs.InvalidArgument, match=field):
        resources.check(document, unified=True)


def test_what_engines_send_for_nothing_is_taken() -> None:
    document = {
        "memory": {"limit": -1, "swap": -1, "swappiness": (1 << 64) - 1, "disableOOMKiller": False},
        "cpu": {"shares": 0, "quota": -1, "realtimeRuntime": 0, "cpus": " 0-3,8-10:2/4\n", "mems": ""},
        "pids": {"limit": -1},
        "blockIO": {"weight": 0, "leafWeight": None, "weightDevice": None},
        "network": {},
        "unified": {},
    }
    for unified in (False, True):
        resources.check(document, unified=unified)

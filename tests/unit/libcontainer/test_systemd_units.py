"""Names and properties of the unit that a container is with the systemd driver."""

from __future__ import annotations

from typing import Any

import errdefs
import pytest
from runc_bin.libcontainer.cgroups import systemd_units as units
from runc_bin.libcontainer.cgroups.device_rules import target_state


@pytest.mark.parametrize(
    ("path", "user", "expected"),
    [
        ("", False, ("system.slice", "runc-id.scope")),
        ("", True, ("user.slice", "runc-id.scope")),
        (":cri-containerd:abc", False, ("system.slice", "cri-containerd-abc.scope")),
        ("machine.slice:libpod:x", True, ("machine.slice", "libpod-x.scope")),
        ("-.slice:a:b", False, ("-.slice", "a-b.scope")),
    ],
)
def test_a_path_names_slice_and_scope(path: str, user: bool, expected: tuple[str, str]) -> None:
    assert units.parse_path(path, "id", user=user) == expected


@pytest.mark.parametrize(
    "path",
    [
        "/a/b",
        "a:b",
        "a:b:c",
        "a/b.slice:p:n",
        "--.slice:p:n",
        "a.slice:p:",
        "a.slice:p:n/m",
        "a.slice:p:n.slice",
        "a.slice:p:../x",
        ".slice:p:n",
        "a..b/.slice:p:n",
    ],
)
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(errdefs.InvalidArgument, match=r"slice|unit name"):
        units.parse_path(path, "id", user=False)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("-.slice", ""),
        ("system.slice", "/system.slice"),
        ("a-b-c.slice", "/a.slice/a-b.slice/a-b-c.slice"),
    ],
)
def test_slices_lie_below_one_another(name: str, place: str) -> None:
    assert units.expand_slice(name) == place


def properties(resources: dict[str, Any], *, unified: bool = True) -> dict[str, Any]:
    return {found.name: found.value for found in units.limit_properties(resources, unified=unified)}


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({}, {}),
        (
            {"memory": {"limit": 64, "swap": 100, "reservation": 32}},
            {"MemoryMax": 64, "MemoryLow": 32, "MemorySwapMax": 36},
        ),
        ({"memory": {"limit": -1}}, {"MemoryMax": units.INFINITY, "MemorySwapMax": units.INFINITY}),
        ({"cpu": {"shares": 1024}}, {"CPUWeight": 100}),
        ({"cpu": {"idle": 1}}, {"CPUWeight": 0}),
        ({"cpu": {"quota": 50000}}, {"CPUQuotaPerSecUSec": 500_000}),
        (
            {"cpu": {"quota": 50001, "period": 100000}},
            {"CPUQuotaPerSecUSec": 510_000, "CPUQuotaPeriodUSec": 100000},
        ),
        (
            {"cpu": {"quota": -1, "period": 50000}},
            {"CPUQuotaPerSecUSec": units.INFINITY, "CPUQuotaPeriodUSec": 50000},
        ),
        (
            {"cpu": {"cpus": "0,9-10", "mems": "0"}},
            {"AllowedCPUs": b"\x01\x06", "AllowedMemoryNodes": b"\x01"},
        ),
        ({"pids": {"limit": 0}}, {"TasksMax": 1}),
        ({"pids": {"limit": -1}}, {"TasksMax": units.INFINITY}),
        (
            {"unified": {"memory.high": " 7\n", "pids.max": "max", "cpu.max": "max 50000", "io.weight": "9"}},
            {
                "MemoryHigh": 7,
                "TasksMax": units.INFINITY,
                "CPUQuotaPerSecUSec": units.INFINITY,
                "CPUQuotaPeriodUSec": 50000,
            },
        ),
        (
            {"unified": {"cpu.idle": "1", "cpu.weight": "5", "cpuset.cpus": "1"}},
            {"CPUWeight": 0, "AllowedCPUs": b"\x02"},
        ),
    ],
)
def test_limits_that_systemd_knows(resources: dict[str, Any], expected: dict[str, Any]) -> None:
    assert properties(resources) == expected


def test_limits_on_v1() -> None:
    resources = {
        "memory": {"limit": 64, "swap": 100},
        "cpu": {"shares": 7, "cpus": "0"},
        "blockIO": {"weight": 10},
    }
    assert properties(resources, unified=False) == {"MemoryLimit": 64, "CPUShares": 7, "BlockIOWeight": 10}


def test_a_unified_value_that_is_no_number() -> None:
    with pytest.raises(errdefs.InvalidArgument, match=r"memory\.max"):
        properties({"unified": {"memory.max": "lots"}})


def test_device_rules() -> None:
    rules = [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "b", "major": 8, "minor": 1, "access": "r"},
        {"allow": True, "type": "c", "major": 4, "access": "rw"},
        {"allow": True, "type": "c", "minor": 9, "access": "r"},
    ]
    clear, policy, allowed = units.device_properties(target_state(rules))
    assert (clear.name, clear.value) == ("DeviceAllow", ())
    assert (policy.name, policy.value) == ("DevicePolicy", "strict")
    assert {("/dev/block/8:1", "r"), ("char-4", "rw"), ("block-*", "m"), ("/dev/char/1:3", "rwm")} <= set(
        allowed.value
    )
    assert not [path for path, _ in allowed.value if path.endswith(":9") and "1:9" not in path]
    everything = units.device_properties(target_state([{"allow": True, "access": "rwm"}]))
    assert [(found.name, found.value) for found in everything] == [
        ("DeviceAllow", ()),
        ("DevicePolicy", "auto"),
    ]

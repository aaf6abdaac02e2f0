"""`update` and `events`, and containers with limits, through the command line."""

from __future__ import annotations

import json
import select
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from runc_bin.libcontainer.cgroups import hierarchy

from tests.kernel.runtime.bundle import Bundle

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(hierarchy.unified(), reason="reads cgroup v1 files"),
]

MEGA = 1 << 20


def value(bundle: Bundle, controller: str, file: str) -> str:
    return Path(f"/sys/fs/cgroup/{controller}{bundle.linux['cgroupsPath']}", file).read_text().strip()


def test_update_by_flags(bundle: Bundle) -> None:
    container_id, _ = bundle.start("sleep", "60")
    flags = {
        "--cpu-period": "50000",
        "--cpu-quota": "25000",
        "--cpu-burst": "1000",
        "--cpu-share": "512",
        "--cpuset-cpus": "0",
        "--cpuset-mems": "0",
        "--memory": "64M",
        "--memory-swap": "128MiB",
        "--memory-reservation": "33554432",
        "--pids-limit": "20",
    }
    bundle.call("update", *(word for pair in flags.items() for word in pair), container_id)
    found = {
        ("cpu", "cpu.cfs_period_us"): "50000",
        ("cpu", "cpu.cfs_quota_us"): "25000",
        ("cpu", "cpu.shares"): "512",
        ("cpuset", "cpuset.cpus"): "0",
        ("cpuset", "cpuset.mems"): "0",
        ("memory", "memory.limit_in_bytes"): str(64 * MEGA),
        ("memory", "memory.soft_limit_in_bytes"): str(32 * MEGA),
        ("pids", "pids.max"): "20",
    }
    assert {place: value(bundle, *place) for place in found} == found
    bundle.call("update", "--cpu-quota", "30000", "--pids-limit", "-1", container_id)
    assert value(bundle, "cpu", "cpu.cfs_period_us") == "50000"
    assert value(bundle, "pids", "pids.max") == "max"
    if "cpu.idle" in {file.name for file in Path("/sys/fs/cgroup/cpu").glob("*/cpu.idle")}:
        bundle.call("update", "--cpu-idle", "1", container_id)
        assert value(bundle, "cpu", "cpu.idle") == "1"


def test_update_by_a_document(bundle: Bundle) -> None:
    container_id, _ = bundle.start("sleep", "60")
    document = {"memory": {"limit": 64 * MEGA, "kernel": 1}, "pids": {"limit": 9}}
    (bundle.folder / "limits").write_text(json.dumps(document))
    done = bundle.call("update", "-r", str(bundle.folder / "limits"), container_id)
    assert "Kernel memory settings are ignored" in done.stderr
    assert value(bundle, "pids", "pids.max") == "9"
    with open(bundle.folder / "limits") as file:
        bundle.call("update", "--resources", "-", container_id, stdin=file)


def test_a_limit_that_the_interpreter_is_above(bundle: Bundle) -> None:
    bundle.linux["resources"] = {"memory": {"limit": 6 * MEGA, "swap": 6 * MEGA}}
    container_id, _ = bundle.start("sleep", "60")
    assert value(bundle, "memory", "memory.limit_in_bytes") == str(6 * MEGA)
    assert bundle.call("exec", container_id, "echo", "here").stdout == "here\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--cpu-quota", "lots"), "invalid value for cpu-quota"),
        (("--memory", "12parsecs"), "invalid value for memory"),
        (("--l3-cache-schema", "L3:0=f"), "l3 cache schema is not enabled"),
        (("--mem-bw-schema", "MB:0=20"), "memory bandwidth schema is not enabled"),
        (("--blkio-weight", "5"), "blockIO.weight must be between 10 and 1000"),
        (("--memory", "64m", "--memory-swap", "32m"), "memory+swap limit should be >= memory limit"),
        (("--pids-limit", "7", "--cpuset-cpus", "a"), "cpu.cpus must be a list of numbers"),
    ],
)
def test_update_refuses(bundle: Bundle, words: tuple[str, ...], message: str) -> None:
    container_id, _ = bundle.start("sleep", "60")
    done = bundle.call("update", *words, container_id, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert value(bundle, "pids", "pids.max") == "max"


@pytest.mark.parametrize(
    ("resources", "field"),
    [
        ({"memory": {"limit": "1"}}, "linux.resources.memory.limit"),
        ({"cpu": {"quota": 1.5}}, "linux.resources.cpu.quota"),
        ({"cpu": {"cpus": "0-"}}, "linux.resources.cpu.cpus"),
        ({"blockIO": {"weight": 5}}, "linux.resources.blockIO.weight"),
        (
            {"blockIO": {"throttleReadBpsDevice": [{"rate": 1}]}},
            "linux.resources.blockIO.throttleReadBpsDevice",
        ),
        ({"hugepageLimits": [{"pageSize": "2/MB", "limit": 1}]}, "linux.resources.hugepageLimits.pageSize"),
        ({"network": {"classID": -1}}, "linux.resources.network.classID"),
        ({"rdma": {"mlx5_0": {}}}, "linux.resources.rdma.mlx5_0"),
        ({"devices": [{"allow": True, "access": "x"}]}, "device access at 0"),
        ({"unified": {"memory.max": "1"}}, "cannot use unified on cgroup v1"),
    ],
)
def test_bad_limits_are_found_before_anything_is_made(
    bundle: Bundle, resources: dict[str, Any], field: str
) -> None:
    bundle.linux["resources"] = resources
    done = bundle.run("true", check=False)
    assert done.returncode == 1
    assert field in done.stderr
    assert bundle.cgroups() == []
    assert [p.name for p in bundle.root.iterdir() if not p.name.startswith("@")] == []


def test_six_megabytes_are_enough(bundle: Bundle) -> None:
    """The runtime's own memory must not count against the container's limit."""
    bundle.linux["resources"]["memory"] = {"limit": 6 * MEGA, "swap": 6 * MEGA}
    script = "cd /sys/fs/cgroup/memory; cat memory.failcnt memory.limit_in_bytes"
    assert bundle.run("sh", "-c", script).stdout.split() == ["0", str(6 * MEGA)]


# The names that runc 1.1 prints for an idle container on cgroup v1 (others appear once they are not zero).
EVENT_NAMES = {
    "": {"cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt", "network_interfaces"},
    "cpu": {"usage", "throttling"},
    "cpu.usage": {"total", "percpu", "percpu_kernel", "percpu_user", "kernel", "user"},
    "memory": {"usage", "swap", "kernel", "kernelTCP", "raw"},
    "memory.usage": {"limit", "usage", "max", "failcnt"},
    "memory.kernelTCP": {"limit", "failcnt"},
    "pids": {"current"},
    "cpuset": {
        *("cpus", "cpu_exclusive", "mems", "mem_hardwall", "mem_exclusive", "memory_migrate"),
        *("memory_spread_page", "memory_spread_slab", "memory_pressure", "sched_load_balance"),
        "sched_relax_domain_level",
    },
}


def test_stats_have_runc_s_names(bundle: Bundle) -> None:
    container_id, _ = bundle.start("sleep", "60")
    event = json.loads(bundle.call("events", "--stats", container_id).stdout)
    assert (event["type"], event["id"]) == ("stats", container_id)
    for path, names in EVENT_NAMES.items():
        part = event["data"]
        for name in path.split(".") if path else ():
            part = part[name]
        # swap and kernel accounting are build options of the kernel
        optional = {"cache", "psi", "limit"}
        assert names - optional <= part.keys() <= names | optional | {"usage", "max"}, path
    assert event["data"]["cpuset"]["mems"] == [0]
    assert event["data"]["pids"]["current"] == 1
    assert event["data"]["network_interfaces"] is None
    assert all(isinstance(number, int) for number in event["data"]["memory"]["raw"].values())


def test_events_tell_usage_and_out_of_memory_until_the_end(bundle: Bundle) -> None:
    bundle.linux["resources"]["memory"] = {"limit": 16 * MEGA, "swap": 16 * MEGA}
    container_id, _ = bundle.start(
        *("sh", "-c", "until [ -e /tmp/go ]; do sleep 0.02; done; x=a; while :; do x=$x$x; done")
    )
    process = subprocess.Popen(
        bundle.command("events", "--interval", "50ms", container_id), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 10)[0]
        first = json.loads(process.stdout.readline())
        assert first["type"] == "stats"
        (bundle.rootfs / "tmp").mkdir(exist_ok=True)
        (bundle.rootfs / "tmp/go").touch()
        rest, _ = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    events = [json.loads(line) for line in rest.splitlines()]
    assert {"type": "oom", "id": container_id} in events
    assert first["data"]["memory"]["usage"]["limit"] == 16 * MEGA


@pytest.mark.parametrize("interval", ["0s", "-1s", "soon", "5", "1.5x"])
def test_events_refuse_an_interval(bundle: Bundle, interval: str) -> None:
    container_id, _ = bundle.start("sleep", "60")
    done = bundle.call("events", "--interval", interval, container_id, check=False)
    assert done.returncode == 1
    assert "interval" in done.stderr


def test_events_of_a_container_that_has_ended(bundle: Bundle) -> None:
    container_id, _ = bundle.start("true")
    deadline = time.monotonic() + 10
    while bundle.state(container_id)["status"] != "stopped":
        assert time.monotonic() < deadline
    done = bundle.call("events", container_id, check=False)
    assert f"container with id {container_id} is not running" in done.stderr


def test_a_limit_in_the_v2_tree_of_a_hybrid_host(hybrid_hugetlb: None, bundle: Bundle) -> None:
    bundle.linux["resources"] = {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 * MEGA}]}
    bundle.start("sleep", "60")
    assert value(bundle, "unified", "hugetlb.2MB.max") == str(4 * MEGA)

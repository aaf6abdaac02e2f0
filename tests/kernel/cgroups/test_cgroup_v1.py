"""Managers of cgroup v1 on the host's own hierarchies."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import errdefs
import pytest
from runc_bin.libcontainer.cgroups import Manager, hierarchy, manager_for

from .conftest import Start, finish

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(hierarchy.unified(), reason="needs cgroup v1 hierarchies"),
]

DENY_ALL = {"allow": False, "access": "rwm"}


def made(name: str, **resources: Any) -> Manager:
    manager = manager_for({"cgroupsPath": name, "resources": resources}, "id")
    manager.create()
    return manager


def value(manager: Manager, controller: str, file: str) -> str:
    return Path(manager.paths[controller], file).read_text().strip()


def test_life_of_a_cgroup(cgroup_name: str, start: Start) -> None:
    manager = manager_for({"cgroupsPath": cgroup_name, "resources": {"devices": [DENY_ALL]}}, "id")
    assert {"devices", "memory", "cpu", "pids"} <= set(manager.paths)
    assert not manager.exists()
    manager.create()
    manager.apply()
    process = start("sleep 100")
    manager.add_pid(process.pid)
    listed = Path(f"/proc/{process.pid}/cgroup").read_text()
    inside = [line for line in listed.splitlines() if line.endswith(cgroup_name)]
    assert len(inside) == len(set(manager.paths.values()))

    found = Manager.from_paths(manager.paths)
    assert found.pids() == [process.pid]
    with pytest.raises(errdefs.Conflict, match="still in use"):
        found.destroy(timeout=0.05)
    found.kill_all()
    assert process.wait(timeout=5) == -9
    found.destroy()
    assert not any(os.path.exists(path) for path in manager.paths.values())
    found.destroy()
    found.kill_all()
    assert found.pids() == []
    assert found.oom_kills() == 0


def test_a_lone_process_moves_itself(cgroup_name: str) -> None:
    manager = made(cgroup_name)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            manager.join_self()
            code = 0
            os.close(writer)
            os.read(reader, 1)
        finally:
            os._exit(code)
    os.close(reader)
    deadline = time.monotonic() + 5
    joined = 0
    while joined < len(set(manager.paths.values())) and time.monotonic() < deadline:
        joined = Path(f"/proc/{child}/cgroup").read_text().count(cgroup_name)
        time.sleep(0.005)
    os.close(writer)
    assert os.waitpid(child, 0)[1] == 0
    assert joined == len(set(manager.paths.values()))


def test_limits(cgroup_name: str) -> None:
    mega = 1 << 20
    manager = made(cgroup_name)
    manager.apply(
        {
            "memory": {"limit": 64 * mega, "swap": 64 * mega, "reservation": 32 * mega, "swappiness": 7},
            "cpu": {"shares": 512, "quota": 50000, "period": 100000, "cpus": "0", "mems": "0"},
            "pids": {"limit": 77},
        }
    )
    assert value(manager, "memory", "memory.limit_in_bytes") == str(64 * mega)
    assert value(manager, "memory", "memory.soft_limit_in_bytes") == str(32 * mega)
    assert value(manager, "memory", "memory.swappiness") == "7"
    assert value(manager, "cpu", "cpu.shares") == "512"
    assert value(manager, "cpu", "cpu.cfs_quota_us") == "50000"
    assert value(manager, "cpuset", "cpuset.cpus") == "0"
    assert value(manager, "pids", "pids.max") == "77"
    for limit in (128, 32):  # up and down: the order of memory and memory+swap matters
        manager.update({"memory": {"limit": limit * mega, "swap": limit * mega}})
        assert value(manager, "memory", "memory.limit_in_bytes") == str(limit * mega)
    manager.update({"memory": {"limit": -1}, "pids": {"limit": -1}})
    assert int(value(manager, "memory", "memory.limit_in_bytes")) > 1 << 60
    assert value(manager, "pids", "pids.max") == "max"


@pytest.mark.parametrize(
    ("resources", "error", "words"),
    [
        ({"cpu": {"shares": 1}}, errdefs.InvalidArgument, "minimum allowed cpu-shares is 2"),
        ({"cpu": {"quota": 1}}, errdefs.InvalidArgument, "cfs_quota_us"),
        ({"cpu": {"cpus": "4000"}}, errdefs.InvalidArgument, "cpuset.cpus"),
        ({"memory": {"limit": 0x100000, "swappiness": 101}}, errdefs.InvalidArgument, "valid range is 0-100"),
        ({"memory": {"limit": "1"}}, errdefs.InvalidArgument, "whole number"),
        ({"unified": {"memory.max": "1"}}, errdefs.InvalidArgument, "cgroup v1"),
        ({"hugepageLimits": [{"pageSize": "3MB", "limit": 1}]}, errdefs.NotFound, "hugetlb"),
    ],
)
def test_refused_limits(
    cgroup_name: str, resources: dict[str, Any], error: type[errdefs.BuoyError], words: str
) -> None:
    manager = made(cgroup_name)
    with pytest.raises(error, match=words):
        manager.update(resources)


def test_a_controller_of_the_v2_tree_of_a_hybrid_host(hybrid_hugetlb: None, cgroup_name: str) -> None:
    wanted = {"hugepageLimits": [{"pageSize": "2MB", "limit": 4 << 20}]}
    manager = made(cgroup_name, **wanted)
    manager.apply()
    assert value(manager, "", "hugetlb.2MB.max") == str(4 << 20)
    assert value(manager, "", "hugetlb.2MB.rsvd.max") == str(4 << 20)
    manager.update({"hugepageLimits": [{"pageSize": "2MB", "limit": 6 << 20}], "pids": {"limit": 7}})
    assert value(manager, "", "hugetlb.2MB.max") == str(6 << 20)
    assert value(manager, "pids", "pids.max") == "7"
    assert manager.stats()["hugetlb"]["2MB"] == {"usage": 0, "max": 0, "failcnt": 0}


def test_a_limit_whose_controller_is_not_there(cgroup_name: str) -> None:
    lacking = {"net_cls", "net_prio"} - set(hierarchy.v1_mounts())
    if not lacking:
        pytest.skip("needs a host without net_cls or net_prio")
    network = {"classID": 7} if "net_cls" in lacking else {"priorities": [{"name": "lo", "priority": 1}]}
    with pytest.raises(errdefs.NotFound, match="network: cgroup controller net_"):
        manager_for({"cgroupsPath": cgroup_name, "resources": {"network": network}}, "id")


def test_cpuset_is_inherited_through_empty_parents(cgroup_name: str) -> None:
    parent = Path(hierarchy.v1_mounts()["cpuset"][0] + cgroup_name).parent
    parent.mkdir()  # made by somebody who left it empty, so that it takes no process
    manager = made(cgroup_name)
    assert (
        value(manager, "cpuset", "cpuset.cpus") == parent.parent.joinpath("cpuset.cpus").read_text().strip()
    )
    assert value(manager, "cpuset", "cpuset.mems")


def test_a_cpuset_is_set_below_empty_parents(cgroup_name: str) -> None:
    manager = made(f"{cgroup_name}/deeper", cpu={"cpus": "0", "mems": "0"})
    assert value(manager, "cpuset", "cpuset.cpus") == value(manager, "cpuset", "cpuset.mems") == "0"


def test_devices_are_closed_and_opened(cgroup_name: str, start: Start) -> None:
    manager = made(cgroup_name)
    manager.apply({"devices": [DENY_ALL]})
    process = start("cat /dev/kmsg; head -c 1 /dev/zero | wc -c; echo > /dev/null && echo written")
    manager.add_pid(process.pid)
    _, output = finish(process)
    assert "/dev/kmsg: Operation not permitted" in output
    assert "1\n" in output
    assert "written" in output
    listed = value(manager, "devices", "devices.list")
    assert "a *:*" not in listed
    manager.update(
        {"devices": [DENY_ALL, {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}]}
    )
    assert "c 1:11 r" in value(manager, "devices", "devices.list")
    manager.update({"pids": {"limit": 5}})
    assert "c 1:11 r" in value(manager, "devices", "devices.list")
    manager.apply({"devices": [{"allow": True, "access": "rwm"}]})
    assert value(manager, "devices", "devices.list") == "a *:* rwm"


def test_pids_limit_holds(cgroup_name: str, start: Start) -> None:
    manager = made(cgroup_name)
    manager.apply({"pids": {"limit": 2}})
    process = start("sleep 0 & sleep 0 & sleep 0 & wait")
    manager.add_pid(process.pid)
    _, output = finish(process)
    assert "fork" in output


def test_freeze_and_thaw(cgroup_name: str, start: Start) -> None:
    manager = made(cgroup_name)
    process = start("echo out; exit 4")
    manager.add_pid(process.pid)
    assert not manager.frozen()
    manager.freeze()
    assert manager.frozen()
    with pytest.raises(errdefs.Conflict, match="not empty"):
        manager_for({"cgroupsPath": cgroup_name}, "id").create()
    manager.thaw()
    assert not manager.frozen()
    assert finish(process) == (4, "out\n")


def test_frozen_processes_are_killed(cgroup_name: str, start: Start) -> None:
    manager = made(cgroup_name)
    process = start("sleep 100 & wait")
    manager.add_pid(process.pid)
    manager.freeze()
    manager.kill_all()
    assert process.wait(timeout=5) == -9
    manager.destroy()


async def test_memory_kill_is_counted_and_seen_by_a_loop(cgroup_name: str, start: Start) -> None:
    manager = made(cgroup_name)
    limit = 16 << 20
    manager.apply({"memory": {"limit": limit, "swap": limit}})
    process = start("head -c 300000000 /dev/zero | tail -c 250000000 | wc -c")
    manager.add_pid(process.pid)
    seen = asyncio.Event()
    loop = asyncio.get_running_loop()
    with manager.oom_events() as events:
        loop.add_reader(events.fileno(), seen.set)
        assert process.stdin is not None
        process.stdin.write(b"go\n")
        process.stdin.flush()
        await asyncio.wait_for(seen.wait(), 20)
        await asyncio.to_thread(process.wait, 20)
        assert manager.oom_kills() >= 1
        assert events.kills() == manager.oom_kills()
        manager.destroy()
        # removal makes it readable as well: the end of the watch
        assert events.kills() is None
        loop.remove_reader(events.fileno())


def test_stats(cgroup_name: str, start: Start) -> None:
    manager = made(cgroup_name)
    manager.apply({"memory": {"limit": 64 << 20}, "pids": {"limit": 9}})
    process = start("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; exec sleep 100")
    manager.add_pid(process.pid)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"go\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"done\n"
    stats = manager.stats()
    assert stats["cpu"]["usage"]["total"] > 0
    assert stats["memory"]["usage"]["usage"] > 0
    assert stats["memory"]["usage"]["limit"] == 64 << 20
    assert stats["pids"] == {"current": 1, "limit": 9}


def test_failed_create_leaves_nothing(cgroup_name: str) -> None:
    manager = manager_for({"cgroupsPath": cgroup_name, "resources": {"cpu": {"cpus": "4000"}}}, "id")
    with pytest.raises(errdefs.InvalidArgument):
        manager.create()
    parent = os.path.dirname(cgroup_name)
    assert not any(os.path.exists(point + parent) for point, _ in hierarchy.v1_mounts().values())


def test_relative_path_lies_below_the_caller_s_cgroup() -> None:
    own = hierarchy.own_cgroups()
    manager = manager_for({"cgroupsPath": "../../a/b"}, "id")
    for name, path in manager.paths.items():
        if name:
            point = hierarchy.v1_mounts()[name][0]
            assert path == f"{point}{own[name].rstrip('/')}/a/b"
    assert manager_for({}, "some-id").paths["devices"].endswith("/some-id")


@pytest.mark.parametrize("linux", [{"cgroupsPath": "/"}, {"cgroupsPath": 7}, {"resources": []}])
def test_bad_paths_are_refused(linux: dict[str, Any]) -> None:
    with pytest.raises(errdefs.InvalidArgument):
        manager_for(linux, "id")


def test_create_apply_destroy_takes_a_few_milliseconds(cgroup_name: str) -> None:
    defaults = [
        DENY_ALL,
        *(
            {"allow": True, "type": "c", "major": 1, "minor": minor, "access": "rwm"}
            for minor in (3, 5, 8, 9)
        ),
    ]
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        manager = made(cgroup_name, devices=defaults)
        manager.apply()
        manager.destroy()
        times.append(time.perf_counter() - begin)
    # about 0.9 ms on an idle machine; the bound leaves room for a busy one
    assert sorted(times)[2] < 0.02

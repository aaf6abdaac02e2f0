"""Managers of cgroup v2.

A hybrid host's v2 tree has few controllers, but processes, freezer, kill and device rules work there.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import errdefs
import pytest
from runc_bin.libcontainer.cgroups import Manager, bpf_devices, hierarchy, manager_for

from .conftest import Start, finish

ROOT = hierarchy.MOUNT if hierarchy.unified() else hierarchy.HYBRID_MOUNT

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not hierarchy.unified() and not hierarchy.hybrid(), reason="needs a cgroup v2 tree"),
]

DENY_ALL = {"allow": False, "access": "rwm"}


def made(name: str) -> Manager:
    manager = Manager.from_paths({"": ROOT + name})
    manager.create()
    return manager


def test_life_of_a_cgroup(cgroup_name: str, start: Start) -> None:
    manager = made(cgroup_name)
    available = Path(ROOT, "cgroup.controllers").read_text()
    assert Path(manager.directory, "cgroup.controllers").read_text() == available
    process = start("sleep 100 & wait")
    manager.add_pid(process.pid)
    assert manager.pids() == [process.pid]
    with pytest.raises(errdefs.Conflict, match="not empty"):
        made(cgroup_name)
    manager.freeze()
    assert manager.frozen()
    manager.kill_all()
    assert process.wait(timeout=5) == -9
    manager.destroy()
    manager.destroy()
    assert not manager.exists()


def test_device_program_is_attached_and_replaced(cgroup_name: str, start: Start) -> None:
    manager = made(cgroup_name)
    kmsg = {"allow": True, "type": "c", "major": 1, "minor": 11, "access": "r"}
    for devices in ([DENY_ALL, kmsg], [DENY_ALL]):
        manager.apply({"devices": devices})
        directory = os.open(manager.directory, os.O_RDONLY)
        assert len(bpf_devices.attached(directory)) == 1
        os.close(directory)
    process = start("cat /dev/kmsg; head -c 1 /dev/zero | wc -c; echo > /dev/null && echo written")
    manager.add_pid(process.pid)
    _, output = finish(process)
    assert "/dev/kmsg: Operation not permitted" in output
    assert "written" in output


def test_sub_cgroups_go_with_it(cgroup_name: str, start: Start) -> None:
    manager = made(cgroup_name)
    inner = Path(manager.directory, "a/b")
    inner.mkdir(parents=True)
    process = start("sleep 100")
    (inner / "cgroup.procs").write_text(str(process.pid))
    assert manager.pids() == [process.pid]
    manager.kill_all()
    process.wait(timeout=5)
    manager.destroy()
    assert not manager.exists()


@pytest.mark.parametrize(
    ("resources", "error", "words"),
    [
        ({"unified": {"a/b": "1"}}, errdefs.InvalidArgument, "no slashes"),
        ({"unified": {"memory": "1"}}, errdefs.InvalidArgument, "CONTROLLER.PARAMETER"),
        ({"unified": {"nothing.max": "1"}}, errdefs.NotFound, 'controller "nothing" not available'),
        ({"unified": {"cgroup.max.depth": "x"}}, errdefs.InvalidArgument, "unable to set"),
    ],
)
def test_refused_unified_values(
    cgroup_name: str, resources: dict[str, Any], error: type[errdefs.BuoyError], words: str
) -> None:
    manager = made(cgroup_name)
    with pytest.raises(error, match=words):
        manager.update(resources)


def test_unified_values_are_written(cgroup_name: str) -> None:
    manager = made(cgroup_name)
    manager.update({"unified": {"cgroup.max.depth": "3", "cgroup.max.descendants": "9"}})
    assert Path(manager.directory, "cgroup.max.depth").read_text() == "3\n"


@pytest.mark.skipif(hierarchy.unified(), reason="the memory controller is there")
def test_limit_without_its_controller_says_so(cgroup_name: str) -> None:
    manager = made(cgroup_name)
    with pytest.raises(errdefs.NotFound, match="controller memory is not available"):
        manager.apply({"memory": {"limit": 1 << 30}})
    with pytest.raises(errdefs.NotFound):
        manager.oom_events()
    assert manager.oom_kills() == 0


def test_a_service_s_own_cgroup_gives_no_controllers(cgroup_name: str) -> None:
    service = f"{os.path.dirname(cgroup_name)}/x.service"
    manager = made(f"{service}/box")
    assert Path(ROOT + service, "cgroup.subtree_control").read_text().strip() == ""
    manager.destroy()


full = pytest.mark.skipif(not hierarchy.unified(), reason="needs all controllers in cgroup v2")


def value(manager: Manager, file: str) -> str:
    return Path(manager.directory, file).read_text().strip()


@full
def test_limits(cgroup_name: str) -> None:
    mega = 1 << 20
    manager = manager_for({"cgroupsPath": cgroup_name, "resources": {"cpu": {"shares": 512}}}, "id")
    manager.create()
    manager.apply()
    assert value(manager, "cpu.weight") == "59"
    manager.update(
        {
            "memory": {"limit": 64 * mega, "swap": 96 * mega, "reservation": 32 * mega},
            "cpu": {"quota": 50000, "period": 200000, "cpus": "0", "mems": "0"},
            "pids": {"limit": 77},
            "unified": {"memory.high": str(48 * mega)},
        }
    )
    assert value(manager, "memory.max") == str(64 * mega)
    assert value(manager, "memory.low") == str(32 * mega)
    assert value(manager, "memory.high") == str(48 * mega)
    assert value(manager, "cpu.max") == "50000 200000"
    assert value(manager, "cpuset.cpus") == "0"
    assert value(manager, "pids.max") == "77"
    swap = Path(manager.directory, "memory.swap.max")
    assert not swap.exists() or swap.read_text().strip() == str(32 * mega)
    manager.update({"memory": {"limit": -1}, "pids": {"limit": -1}, "cpu": {"quota": -1}})
    assert value(manager, "memory.max") == "max"
    assert value(manager, "pids.max") == "max"
    assert value(manager, "cpu.max") == "max 100000"
    with pytest.raises(errdefs.InvalidArgument, match=r"cpu\.max"):
        manager.update({"cpu": {"quota": 1}})


@full
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
        deadline = loop.time() + 60
        while (
            not events.kills() and loop.time() < deadline
        ):  # memory.events also tells of the limit being met
            await asyncio.wait_for(seen.wait(), 60)
            seen.clear()
        await asyncio.to_thread(process.wait, 60)
        assert manager.oom_kills() >= 1
        assert manager.stats()["memory"]["usage"]["limit"] == limit
        loop.remove_reader(events.fileno())
        manager.kill_all()
        manager.destroy(timeout=5)
        assert events.kills() is None


@full
def test_pids_limit_holds(cgroup_name: str, start: Start) -> None:
    manager = made(cgroup_name)
    manager.apply({"pids": {"limit": 2}})
    process = start("sleep 0 & sleep 0 & sleep 0 & wait")
    manager.add_pid(process.pid)
    _, output = finish(process)
    assert "fork" in output


@full
def test_relative_path_lies_beside_the_caller_s_cgroup() -> None:
    own = hierarchy.own_cgroups()[""]
    manager = manager_for({"cgroupsPath": "../a/b"}, "id")
    assert manager.paths == {"": f"{hierarchy.MOUNT}{os.path.dirname(own).rstrip('/')}/a/b"}

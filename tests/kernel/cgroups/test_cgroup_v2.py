"""Managers of cgroup v2.

A hybrid host's v2 tree has few controllers, but processes, freezer, kill and device rules work there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import errdefs
import pytest
from runc_bin.libcontainer.cgroups import Manager, bpf_devices, hierarchy

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

"""Each field of a config.json broken in turn: the error names it, and nothing has been made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from errdefs import BuoyError
from runc_bin.libcontainer import create, spec, spec_document

pytestmark = pytest.mark.root

DEVICE = {"major": 8, "minor": 0}
RATES = [{**DEVICE, "rate": 1000}]
IDS = [{"containerID": 0, "hostID": 100000, "size": 1000}]
HOOK = {"path": "/bin/true", "args": ["true"], "env": ["A=b"], "timeout": 5}
LIMITS: dict[str, Any] = {
    "devices": [{"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rwm"}],
    "memory": {
        **dict.fromkeys(("limit", "reservation", "swap", "kernel", "kernelTCP"), 1 << 26),
        "swappiness": 5,
        "disableOOMKiller": False,
        "useHierarchy": True,
        "checkBeforeUpdate": False,
    },
    "cpu": {
        "shares": 512,
        "quota": 50000,
        "burst": 100,
        "period": 100000,
        "realtimeRuntime": 0,
        "realtimePeriod": 0,
        "cpus": "0",
        "mems": "0",
        "idle": 0,
    },
    "pids": {"limit": 100},
    "blockIO": {
        "weight": 100,
        "leafWeight": 100,
        "weightDevice": [{**DEVICE, "weight": 100, "leafWeight": 100}],
        "throttleReadBpsDevice": RATES,
        "throttleWriteBpsDevice": RATES,
        "throttleReadIOPSDevice": RATES,
        "throttleWriteIOPSDevice": RATES,
    },
    "hugepageLimits": [{"pageSize": "2MB", "limit": 1 << 21}],
    "network": {"classID": 1048577, "priorities": [{"name": "lo", "priority": 1}]},
    "rdma": {"mlx5_0": {"hcaHandles": 3, "hcaObjects": 10}},
}


def document() -> dict[str, Any]:
    """A config.json that has every field which is understood."""
    whole = spec_document.default()
    whole.update(
        domainname="d",
        annotations={"a": "b"},
        hooks={kind: [HOOK] for kind in spec.HOOK_KINDS},
    )
    whole["process"].update(
        terminal=False,
        consoleSize={"height": 5, "width": 6},
        user={"uid": 0, "gid": 0, "umask": 18, "additionalGids": [1]},
        oomScoreAdj=0,
        scheduler={
            "policy": "SCHED_OTHER",
            "nice": 1,
            "priority": 0,
            "flags": ["SCHED_FLAG_RESET_ON_FORK"],
            "runtime": 0,
            "deadline": 0,
            "period": 0,
        },
        ioPriority={"class": "IOPRIO_CLASS_BE", "priority": 4},
        apparmorProfile="",
        selinuxLabel="",
    )
    whole["mounts"].append(
        {
            "destination": "/data",
            "type": "bind",
            "source": "/tmp",
            "options": ["rbind", "ridmap"],
            "uidMappings": IDS,
            "gidMappings": IDS,
        }
    )
    whole["linux"].update(
        namespaces=[*whole["linux"]["namespaces"], {"type": "user", "path": ""}, {"type": "time"}],
        uidMappings=IDS,
        gidMappings=IDS,
        timeOffsets={"monotonic": {"secs": 1, "nanosecs": 2}, "boottime": {"secs": 3, "nanosecs": 4}},
        devices=[
            {
                "path": "/dev/x",
                "type": "c",
                "major": 1,
                "minor": 3,
                "fileMode": 438,
                "uid": 0,
                "gid": 0,
            }
        ],
        cgroupsPath="/buoy-broken/c",
        sysctl={"net.ipv4.ip_forward": "0"},
        rootfsPropagation="private",
        personality={"domain": "LINUX", "flags": []},
        resources=LIMITS,
        seccomp={
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "architectures": ["SCMP_ARCH_X86_64"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [
                {
                    "names": ["getcwd"],
                    "action": "SCMP_ACT_ERRNO",
                    "errnoRet": 1,
                    "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_EQ"}],
                }
            ],
        },
    )
    return whole


def fields(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The places of all members, list entries included, from the outside in."""
    if at:
        yield at
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from fields(inner, (*at, name))
    elif isinstance(value, list):
        for index, inner in enumerate(value[-1:], len(value) - 1 if value else 0):
            yield from fields(inner, (*at, index))


def named(place: tuple[str | int, ...]) -> str:
    return ".".join(part for part in place if isinstance(part, str))


def wrong(value: Any) -> Any:
    """A value of another type."""
    return ["x"] if isinstance(value, str | int | dict) else {"x": 1}


PLACES = list(fields(document()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("bundle")
    (made / "rootfs").mkdir()
    return made


def error_of(whole: dict[str, Any], folder: Path) -> str:
    """What creating a container of that config says, in a process of its own; empty when it does not fail."""
    told, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = ""
        try:
            (folder / "config.json").write_text(json.dumps(whole))
            read = spec.load_spec(str(folder))
            create.create(str(folder / "state"), "c", read, create.CreateOptions(bundle=str(folder)))
        except BuoyError as error:
            text = error.message
        except BaseException as error:
            text = f"not an error for callers: {error!r}"
        finally:
            os.write(end, text.encode())
            os._exit(0)
    os.close(end)
    with os.fdopen(told) as reader:
        text = reader.read()
    os.waitpid(pid, 0)
    return text


@pytest.mark.parametrize("place", PLACES, ids=[".".join(map(str, place)) for place in PLACES])
def test_a_value_of_another_type(folder: Path, place: tuple[str | int, ...]) -> None:
    whole = json.loads(json.dumps(document()))  # where nothing is shared
    if place[:2] != ("linux", "resources"):  # which a host has not all
        whole["linux"]["resources"] = {}
    at: Any = whole
    for part in place[:-1]:
        at = at[part]
    at[place[-1]] = wrong(at[place[-1]])
    text = error_of(whole, folder)
    assert named(place) in text
    assert not (folder / "state").exists()
    assert not any(base.joinpath("buoy-broken").exists() for base in Path("/sys/fs/cgroup").iterdir())

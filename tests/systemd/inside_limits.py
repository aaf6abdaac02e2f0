"""What a booted machine runs to look at containers with limits on its cgroups.

Prints one line, `found=` and a JSON object of what was found; the tests outside judge. Calls of the runtime
are forks of this process, since starting an interpreter takes seconds in an emulated machine.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runc_bin.__main__ import main
from runc_bin.libcontainer import spec_document, warmth
from runc_bin.libcontainer.cgroups import hierarchy, manager_for

FOLDER = Path("/run/limits")
MEGA = 1 << 20
LIMITS: dict[str, Any] = {
    "devices": [{"allow": False, "access": "rwm"}],
    "memory": {"limit": 64 * MEGA, "swap": 128 * MEGA, "reservation": 32 * MEGA},
    "cpu": {"shares": 512, "quota": 50500, "period": 100000, "cpus": "0", "mems": "0"},
    "pids": {"limit": 50},
}
BUSY = "until [ -e /go ]; do sleep 0.05; done; x=a; while :; do x=$x$x; done"


def call(*words: str, out: Path = FOLDER / "out") -> tuple[int, str]:
    """Run the runtime; its exit code and what it printed."""
    pid = begin(*words, out=out)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), out.read_text()


def begin(*words: str, out: Path) -> int:
    """Start the runtime and go on; its pid."""
    out.touch()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            fd = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            os.chdir(FOLDER)
            code = main(["--root", str(FOLDER / "state"), *words])
        finally:
            os._exit(code)
    return pid


def container(name: str, resources: dict[str, Any], *args: str, path: str = "") -> None:
    """Write the bundle of a container."""
    spec = spec_document.default()
    spec["process"].update({"args": list(args), "terminal": False})
    spec["root"]["readonly"] = False
    spec["linux"]["resources"] = resources
    spec["annotations"] = {"org.systemd.property.TasksMax": "uint64 7"}  # which is to set nothing
    spec["linux"]["cgroupsPath"] = path or f"/buoy-limits/{name}"
    (FOLDER / "config.json").write_text(json.dumps(spec))


def until(fact: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Poll; whether it came true."""
    poller = select.poll()
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            return False
        poller.poll(50)
    return True


def values(group: str, *names: str) -> dict[str, str]:
    return {name: Path(group, name).read_text().strip() for name in names}


def unified_limits() -> dict[str, Any]:
    """Every kind of limit on cgroup v2, set, changed, and kept by the kernel."""
    found: dict[str, Any] = {}
    group = "/sys/fs/cgroup/buoy-limits/one"
    names = ("memory.max", "memory.swap.max", "cpu.max", "cpu.idle", "pids.max")
    wanted = LIMITS | {"unified": {"memory.high": str(60 * MEGA), "cpu.max.burst": "1000"}}
    container("one", wanted, "sleep", "1000")
    found["run"] = call("run", "-d", "one")
    if found["run"][0]:
        return found
    more = ("memory.low", "memory.high", "cpu.weight", "cpu.max.burst", "cpuset.cpus", "cpuset.mems")
    found["set"] = values(group, *names, *more)
    found["stats"] = json.loads(call("events", "--stats", "one")[1])["data"]
    for step, words in {
        "quota": ("--cpu-quota", "20000"),
        "period": ("--cpu-period", "50000", "--pids-limit", "-1"),
        "memory": ("--memory", "56m"),
        "swap": ("--memory-swap", "64m", "--cpu-idle", "1"),
    }.items():
        code, text = call("update", *words, "one")
        found[step] = values(group, *names) | ({} if code == 0 else {"error": text})
    found["refused"] = call("update", "--memory", "65m", "one")
    call("pause", "one")
    found["paused"] = json.loads(call("state", "one")[1])["status"]
    call("resume", "one")
    found["exec"] = call("exec", "one", "cat", "/proc/self/cgroup")[1].strip()
    found["delete"] = call("delete", "--force", "one")
    found["left"] = os.path.exists(group)

    container(
        "small", {"memory": {"limit": 6 * MEGA, "swap": 6 * MEGA}}, "cat", "/sys/fs/cgroup/memory.events"
    )
    found["small"] = call("run", "small")

    container("hungry", {"memory": {"limit": 16 * MEGA, "swap": 16 * MEGA}}, "sh", "-c", BUSY)
    call("run", "-d", "hungry")
    watcher = begin("events", "--interval", "100ms", "hungry", out=FOLDER / "events")
    until(lambda: b"stats" in (FOLDER / "events").read_bytes())
    (FOLDER / "rootfs/go").touch()
    os.waitpid(watcher, 0)
    kinds = [json.loads(line)["type"] for line in (FOLDER / "events").read_text().splitlines()]
    found["oom"] = "oom" in kinds
    call("delete", "--force", "hungry")

    refused: dict[str, dict[str, Any]] = {
        "slash": {"unified": {"../memory.max": "1"}},
        "swappiness": {"memory": {"swappiness": 5}},
        "unknown": {"unified": {"nothing.max": "1"}},
    }
    for name, resources in refused.items():
        container(name, resources, "true")
        found[name] = call("run", name)

    linux = {"cgroupsPath": "/buoy-limits/owned", "resources": {}}
    manager = manager_for(linux, "owned", owner=1000)
    manager.create()
    files = (".", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads", "memory.max", "cpu.max")
    found["owners"] = {name: os.stat(f"{manager.directory}/{name}").st_uid for name in files}
    manager.destroy()
    os.rmdir("/sys/fs/cgroup/buoy-limits")
    return found


def trees() -> dict[str, Any]:
    """What containers see at /sys/fs/cgroup on cgroup v2: with and without a cgroup and a user namespace."""
    found: dict[str, Any] = {"host": _tree(Path("/proc/self/mountinfo").read_text())}
    for name, own, user in (
        ("own", True, False),
        ("host's", False, False),
        ("mapped", True, True),
        ("mapped host's", False, True),
    ):
        container("tree", {}, "cat", "/proc/self/mountinfo", "/sys/fs/cgroup/cgroup.procs")
        spec = json.loads((FOLDER / "config.json").read_text())
        section = spec["linux"]
        section["namespaces"] = [n for n in section["namespaces"] if own or n["type"] != "cgroup"]
        if user:
            section["namespaces"].append({"type": "user"})
            section["uidMappings"] = section["gidMappings"] = [
                {"containerID": 0, "hostID": 100000, "size": 1000}
            ]
        (FOLDER / "config.json").write_text(json.dumps(spec))
        code, text = call("run", "tree")
        found[name] = _tree(text) if code == 0 else {"error": text}
    found["after"] = _tree(Path("/proc/self/mountinfo").read_text())
    os.rmdir("/sys/fs/cgroup/buoy-limits")
    return found


def _tree(text: str) -> dict[str, Any]:
    """The last mount of the tree in a mountinfo file, and whether 1 is among the numbers that follow."""
    lines = text.splitlines()
    line = [line for line in lines if " - cgroup2 " in line][-1].split()
    return {"root": line[3], "at": line[4], "options": line[5], "super": line[-1], "pid 1": "1" in lines}


def unit_limits() -> dict[str, Any]:
    """The systemd driver: the unit has the limits, keeps them, changes them, and goes."""
    unified = hierarchy.unified()
    memory = "MemoryMax" if unified else "MemoryLimit"
    shown = (
        "Slice",
        "Delegate",
        memory,
        "TasksMax",
        "CPUQuotaPerSecUSec",
        "CPUQuotaPeriodUSec",
        "ActiveState",
    )

    def unit() -> dict[str, str]:
        words = ["systemctl", "show", "buoy-two.scope", "-p", ",".join(shown)]
        text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        return dict(line.split("=", 1) for line in text.splitlines())

    def limits() -> list[str]:
        base = "/sys/fs/cgroup" if unified else "/sys/fs/cgroup/memory"
        name = "memory.max" if unified else "memory.limit_in_bytes"
        return list(values(f"{base}/system.slice/buoy-two.scope", name).values())

    found: dict[str, Any] = {}
    container("two", LIMITS, "sleep", "1000", path="system.slice:buoy:two")
    found["run"] = call("--systemd-cgroup", "run", "-d", "two")
    if found["run"][0]:
        return found
    found["unit"], found["limits"] = unit(), limits()
    found["pid"] = json.loads(call("state", "two")[1])["pid"]
    found["member"] = Path(f"/proc/{found['pid']}/cgroup").read_text()
    found["exec"] = call("exec", "two", "sh", "-c", "cat /proc/self/cgroup; : </dev/null && echo opened")[1]
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    found["reloaded"] = limits()
    found["update"] = call("update", "--memory", "48m", "--cpu-quota", "20000", "two")
    found["updated"], found["updated-limits"] = unit(), limits()
    found["delete"] = call("delete", "--force", "two")
    found["gone"] = unit()["ActiveState"]
    container("bad", LIMITS, "true", path="/not/a/unit")
    found["bad"] = call("--systemd-cgroup", "run", "bad")
    return found


if __name__ == "__main__":
    (FOLDER / "rootfs/bin").mkdir(parents=True)
    subprocess.run(["cp", "/bin/busybox", FOLDER / "rootfs/bin/busybox"], check=True)
    for applet in ("sh", "sleep", "cat", "true"):
        (FOLDER / "rootfs/bin" / applet).symlink_to("busybox")
    warmth.warm()
    report: dict[str, Any] = {"unit": unit_limits()}
    if hierarchy.unified():
        report["unified"] = unified_limits()
        report["trees"] = trees()
    print("found=" + json.dumps(report))
    sys.stdout.flush()

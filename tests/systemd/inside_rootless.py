"""What an ordinary user of a booted machine runs to look at containers of their own, on cgroup v2.

Called with the folder of the services and the user's place: `delegated` in a control group that is theirs,
`undelegated` in one that is not, `unit` below a systemd of the user's own. Prints one line, `<place>=` and a
JSON object of what was found; the tests outside judge. Calls of the runtime are forks of this process, since
starting an interpreter takes seconds in an emulated machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[1])

from linux import crashpoints
from runc_bin.__main__ import main
from runc_bin.libcontainer import spec_document, warmth

MEGA = 1 << 20
PLACE = sys.argv[2]
FOLDER = Path("/home/sailor", PLACE)
LIMITS: dict[str, Any] = {
    "memory": {"limit": 64 * MEGA},
    "cpu": {"quota": 50000, "period": 100000},
    "pids": {"limit": 50},
}
FILES = ("memory.max", "cpu.max", "pids.max")


def call(*words: str, crash: str = "") -> tuple[int, str]:
    """Run the runtime, with the default folder for records, until it ends or comes by the point `crash`; its
    exit code and what it printed.
    """
    out = FOLDER / "out"
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
            crashpoints.arm(crash)
            code = main([*words])
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), out.read_text()


def container(resources: dict[str, Any], *args: str) -> None:
    """Write the bundle of a container."""
    spec = spec_document.rootless(spec_document.default(), os.geteuid(), os.getegid())
    spec["process"].update({"args": list(args), "terminal": False})
    spec["linux"]["resources"] = resources
    (FOLDER / "config.json").write_text(json.dumps(spec))


def own_group() -> str:
    return "/sys/fs/cgroup" + Path("/proc/self/cgroup").read_text().strip().partition("::")[2]


def values(group: str) -> list[str]:
    return [Path(group, name).read_text().strip() for name in FILES]


def life(group: str, *flags: str) -> dict[str, Any]:
    """A container with limits, whose control group is `group`, used by every verb."""
    found: dict[str, Any] = {}
    container(LIMITS, "sleep", "1000")
    found["create"] = call(*flags, "create", "one")
    if found["create"][0]:
        return found
    found["set"] = values(group)
    found["early"] = call("exec", "one", "echo", "in a created container")
    found["start"] = call("start", "one")
    pid = json.loads(call("state", "one")[1])["pid"]
    found["member"] = "/sys/fs/cgroup" + Path(f"/proc/{pid}/cgroup").read_text().strip().partition("::")[2]
    call("exec", "-d", "--pid-file", "pid", "one", "sleep", "1000")
    found["ps"] = sorted(json.loads(call("ps", "-f", "json", "one")[1])) == sorted(
        [pid, int((FOLDER / "pid").read_text())]
    )
    found["pause"] = call("pause", "one")
    found["paused"] = json.loads(call("state", "one")[1])["status"]
    found["frozen"] = "frozen 1" in Path(group, "cgroup.events").read_text()
    found["resume"] = call("resume", "one")
    found["update"] = call("update", "--memory", "48m", "--pids-limit", "20", "--cpu-quota", "20000", "one")
    found["changed"] = values(group)
    found["usage"] = json.loads(call("events", "--stats", "one")[1])["data"]["pids"]
    found["kill"] = call("kill", "--all", "one", "KILL")
    found["delete"] = call("delete", "--force", "one")
    found["left"] = os.path.exists(group) or os.listdir(os.environ["XDG_RUNTIME_DIR"] + "/buoy-runc")
    container({"pids": {"limit": 3}}, "sh", "-c", "for n in 1 2 3 4; do sleep 1 & done; wait")
    found["full"] = call(*flags, "run", "full")
    return found


def delegated() -> dict[str, Any]:
    """In a subtree of the user's own, made ready as systemd's documents have it: no process in the middle."""
    own = own_group()
    os.mkdir(f"{own}/inner")
    Path(own, "inner/cgroup.procs").write_text("0")
    Path(own, "cgroup.subtree_control").write_text("+cpu +memory +pids")
    return life(f"{own}/one") | {"group": f"{own}/one"}


def undelegated() -> dict[str, Any]:
    """Without a subtree: what needs no control group works, what needs one says so."""
    container({}, "cat", "/proc/self/cgroup")
    found: dict[str, Any] = {"plain": call("run", "plain"), "own": own_group()}
    found["strict"] = call("--rootless=false", "run", "strict")
    container(LIMITS, "true")
    found["limits"] = call("run", "limits")
    found["records"] = os.listdir(os.environ["XDG_RUNTIME_DIR"] + "/buoy-runc")
    return found


def unit() -> dict[str, Any]:
    """The user's own systemd makes the control group."""
    above = own_group().partition("/app.slice/")[0]
    group = f"{above}/user.slice/runc-one.scope"
    found = life(group, "--systemd-cgroup") | {"group": group}
    found["gone"] = active()
    container(LIMITS, "sleep", "1000")
    found["crashes"] = {}
    for point, words in {
        "cgroups.unit-started": ("--systemd-cgroup", "create", "one"),
        "cgroups.unit-updated": ("update", "--memory", "40m", "one"),
        "runc.exec.attached": ("exec", "-d", "one", "sleep", "1000"),
        "cgroups.unit-stopped": ("delete", "--force", "one"),
    }.items():
        if "create" not in words:
            call("--systemd-cgroup", "create", "one")
        killed = call(*words, crash=point)[0]
        state = call("state", "one")[0]
        removed = call("delete", "--force", "one")
        found["crashes"][point] = [killed, state, *removed, os.path.exists(group), active()]
    return found


def active() -> str:
    words = ["systemctl", "--user", "show", "runc-one.scope", "-P", "ActiveState"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    (FOLDER / "rootfs/bin").mkdir(parents=True)
    subprocess.run(["cp", "/bin/busybox", FOLDER / "rootfs/bin/busybox"], check=True)
    for applet in ("sh", "sleep", "cat", "true", "echo"):
        (FOLDER / "rootfs/bin" / applet).symlink_to("busybox")
    warmth.warm()
    report = {"delegated": delegated, "undelegated": undelegated, "unit": unit}[PLACE]()
    print(f"{PLACE}=" + json.dumps(report))
    sys.stdout.flush()

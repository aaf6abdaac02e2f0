"""What a booted machine runs to checkpoint and restore containers.

Its argument is an empty folder. It prints one line, `checkpoints=` and a JSON object of what was found; the
tests outside judge. Calls of the runtime are forks of this process, since starting an interpreter takes
seconds in an emulated machine.
"""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from linux import crashpoints, fds
from runc_bin.__main__ import main
from runc_bin.libcontainer import checkpoint, spec_document, warmth

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "/run/checkpoints")
STATE, IMAGES, SHARED = FOLDER / "state", FOLDER / "images", FOLDER / "shared"
GROUPS = Path("/sys/fs/cgroup")
GROUP = "/buoy-checkpoints/"
# Counts in a variable, into a file that it keeps open and onto its standard output.
COUNTING = "exec 5>>/shared/count; i=0; while :; do i=$((i+1)); echo $i >&5; echo $i; sleep 0.02; done"
ECHOING = "stty -echo; while read word; do echo got $word; done"


def fork(words: tuple[str, ...], streams: tuple[int, int, int], crash: str = "") -> int:
    """Start the runtime with these streams; its pid. It is killed at the point `crash`."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for number, fd in enumerate(streams):
                os.dup2(fd, number)
            os.chdir(FOLDER)
            crashpoints.arm(crash)
            code = main(["--root", str(STATE), *words])
        finally:
            os._exit(code)
    return pid


def call(*words: str, out: int | None = None, crash: str = "") -> tuple[int, str]:
    """Run the runtime to its end; its exit code and what it said. `out` becomes the container's output."""
    null = os.open("/dev/null", os.O_RDWR)
    file = os.open(FOLDER / "out", os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    streams = (null, file, file) if out is None else (null, out, out)
    try:
        _, status = os.waitpid(fork(words, streams, crash), 0)
        return os.waitstatus_to_exitcode(status), (FOLDER / "out").read_text()
    finally:
        os.close(null)
        os.close(file)


def until(fact: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Poll; whether it came true."""
    poller = select.poll()
    deadline = time.monotonic() + seconds
    while not fact():
        if time.monotonic() > deadline:
            return False
        poller.poll(20)
    return True


def write_bundle(*args: str, **changes: Any) -> None:
    """Write the bundle of a container, which has a network without devices and a shared folder."""
    spec = spec_document.default()
    spec["process"].update({"args": list(args), "terminal": changes.pop("terminal", False)})
    spec["linux"]["cgroupsPath"] = GROUP + "c"
    spec["mounts"].append(
        {"destination": "/shared", "type": "bind", "source": str(SHARED), "options": ["rbind", "rw"]}
    )
    if network := changes.pop("network", ""):
        namespaces = spec["linux"]["namespaces"]
        spec["linux"]["namespaces"] = [
            {**item, "path": network} if item["type"] == "network" else item for item in namespaces
        ]
    (FOLDER / "config.json").write_text(json.dumps(spec | changes))


def counted() -> list[int]:
    file = SHARED / "count"
    return [int(word) for word in file.read_text().split()] if file.exists() else []


def goes_on() -> bool:
    """Whether the count grows, each number being the one after its predecessor."""
    before = len(counted())
    grows = until(lambda: len(counted()) > before + 1)
    numbers = counted()
    return grows and numbers == list(range(1, len(numbers) + 1))


def parents() -> list[Path]:
    """The control groups that our containers' are in."""
    tops = [GROUPS, *(p for p in GROUPS.iterdir() if p.is_dir() and not p.is_symlink())]
    return [top / GROUP.strip("/") for top in tops if (top / GROUP.strip("/")).is_dir()]


def groups() -> list[str]:
    """The control groups of our containers that are there."""
    return [str(path) for parent in parents() for path in parent.iterdir() if path.is_dir()]


def host_mounts() -> set[str]:
    return set(Path("/proc/self/mountinfo").read_text().splitlines())


def counting(found: dict[str, Any]) -> None:
    """A count goes on after a dump and a restore, under another id, with a dump of memory before."""
    hook = {"path": "/bin/sh", "args": ["sh", "-c", f"cat >>{FOLDER}/hooks; echo >>{FOLDER}/hooks"]}
    write_bundle("sh", "-c", COUNTING, hooks={"createRuntime": [hook], "poststop": [hook]})
    before = host_mounts()
    reader, writer = os.pipe2(os.O_CLOEXEC)
    found["run"] = call("run", "-d", "one", out=writer)
    found["began"] = goes_on()
    found["pre-dump"] = call("checkpoint", "--pre-dump", "--image-path", str(FOLDER / "first"), "one")
    found["after pre-dump"] = json.loads(call("state", "one")[1])["status"]
    parent = ("--parent-path", "../first") if found["pre-dump"][0] == 0 else ()
    words = ("--image-path", str(IMAGES), "--work-path", str(FOLDER / "work"), *parent)
    found["checkpoint"] = call("checkpoint", *words, "one")
    found["stopped"] = call("state", "one")
    found["left"] = groups()
    reached = len(counted())
    os.close(writer)
    os.close(reader)

    reader, writer = os.pipe2(os.O_CLOEXEC)
    words = ("--image-path", str(IMAGES), "--pid-file", str(FOLDER / "pid"))
    found["restore"] = call("restore", "--detach", *words, "two", out=writer)
    found["restored"] = json.loads(call("state", "two")[1])["status"]
    found["goes on"] = goes_on() and len(counted()) > reached
    # It may have been caught between its two lines for one number.
    first = int(os.read(reader, 4096).split()[0])
    found["streams"] = first in (reached, reached + 1)
    found["exec"] = call("exec", "two", "cat", "/proc/1/comm")
    found["pid"] = (FOLDER / "pid").read_text() == str(json.loads(call("state", "two")[1])["pid"])
    found["groups"] = bool(groups())
    found["taken"] = call("restore", "--detach", "--image-path", str(IMAGES), "two")
    found["rival"] = call("restore", "--detach", "--image-path", str(IMAGES), "rival")
    found["unharmed"] = goes_on() and os.listdir(STATE) == ["two"]
    call("pause", "two")
    leave = ("--leave-running", "--image-path", str(FOLDER / "again"))
    found["leave"] = call("checkpoint", *leave, "two")
    found["left as"] = json.loads(call("state", "two")[1])["status"]
    call("resume", "two")
    found["left running"] = goes_on()
    found["delete"] = call("delete", "--force", "two")
    found["gone"] = [*groups(), *os.listdir(STATE)]
    os.close(reader)
    os.close(writer)
    lines = (FOLDER / "hooks").read_text().split("\n")
    seen = [json.loads(line) for line in lines if line]
    found["hooks"] = [(state["id"], state["status"]) for state in seen]
    found["mounts"] = sorted(host_mounts() ^ before)


def registered(kind: str) -> list[str]:
    """The crash points of a checkpoint or a restore."""
    found: list[str] = []
    for path in sorted(Path(checkpoint.__path__[0]).glob("*.py")):
        found += re.findall(rf'crashpoint\("({kind}\.[\w-]+)"\)', path.read_text())
    return found


def crashes(found: dict[str, Any]) -> None:
    """What a kill at each point leaves is removed by `delete --force`."""
    write_bundle("sh", "-c", COUNTING)
    null = os.open("/dev/null", os.O_RDWR)
    for kind in ("checkpoint", "restore"):
        for point in registered(kind):
            name = point.replace(".", "-")
            if kind == "checkpoint":
                call("run", "-d", name, out=null)
                code, _ = call("checkpoint", "--image-path", str(FOLDER / name), name, crash=point)
            else:
                code, _ = call("restore", "-d", "--image-path", str(IMAGES), name, crash=point)
            state = call("state", name)[0]
            removed = call("delete", "--force", name)[0]
            found[point] = [code, state, removed, *groups(), *os.listdir(STATE)]
    os.close(null)


def failures(found: dict[str, Any]) -> None:
    """A restore that fails, on its way or by a hook, takes all back."""
    broken = FOLDER / "broken"
    shutil.copytree(IMAGES, broken, symlinks=True)
    (broken / "core-1.img").unlink()
    hook = {"path": "/bin/sh", "args": ["sh", "-c", "echo refused; exit 3"]}
    for name, images, hooks in (("images", broken, {}), ("hook", IMAGES, {"createRuntime": [hook]})):
        write_bundle("sh", "-c", COUNTING, hooks=hooks)
        code, said = call("restore", "-d", "--image-path", str(images), name)
        found[name] = [code, said, *groups(), *os.listdir(STATE)]


def take_master(listener: socket.socket) -> int:
    connection, _ = listener.accept()
    with connection:
        _, (master,) = fds.receive_fds(connection, 64, 1)
    return master


def answers(master: int, word: str) -> bool:
    """Whether the program on a terminal gives a word back."""
    os.write(master, f"{word}\n".encode())
    said = b""
    poller = select.poll()
    poller.register(master, select.POLLIN)
    while f"got {word}".encode() not in said:
        if not poller.poll(60000):
            return False
        said += os.read(master, 4096)
    return True


def terminal(found: dict[str, Any]) -> None:
    """A terminal's new master comes over the console socket; the network namespace is somebody else's."""
    subprocess.run(["ip", "netns", "add", "given"], check=True)
    try:
        write_bundle("sh", "-c", ECHOING, terminal=True, network="/run/netns/given")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(60)
            listener.bind(str(FOLDER / "console"))
            listener.listen()
            words = ("--console-socket", str(FOLDER / "console"))
            found["run"] = call("run", "-d", *words, "three")
            master = take_master(listener)
            found["first"] = answers(master, "one")
            where = ("--image-path", str(FOLDER / "terminal"))
            found["checkpoint"] = call("checkpoint", *where, "three")
            os.close(master)
            found["restore"] = call("restore", "-d", *where, *words, "three")
            master = take_master(listener)
            found["second"] = answers(master, "two")
            pid = json.loads(call("state", "three")[1])["pid"]
            same = os.stat(f"/proc/{pid}/ns/net").st_ino == os.stat("/run/netns/given").st_ino
            found["network"] = same
            call("delete", "--force", "three")
            os.close(master)
    finally:
        subprocess.run(["ip", "netns", "del", "given"], check=True)


def look() -> dict[str, Any]:
    warmth.warm()
    FOLDER.mkdir(exist_ok=True)
    SHARED.mkdir()
    rootfs = FOLDER / "rootfs"
    (rootfs / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", rootfs / "bin/busybox")
    for name in ("sh", "sleep", "cat", "stty"):
        (rootfs / "bin" / name).symlink_to("busybox")
    found: dict[str, Any] = {}
    for part in (counting, crashes, failures, terminal):
        found[part.__name__] = {}
        started = time.monotonic()
        try:
            part(found[part.__name__])
        except Exception as error:
            found[part.__name__]["error"] = repr(error)
        found[part.__name__]["seconds"] = round(time.monotonic() - started, 1)
    for parent in parents():
        parent.rmdir()
    return found


if __name__ == "__main__":
    # The children of the containers' making are ours to take.
    from linux import syscalls

    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    print("checkpoints=" + json.dumps(look()))
    sys.stdout.flush()

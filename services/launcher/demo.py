"""`make demo`: the main job, shown. A container runs while the daemons above it are restarted and killed.

Everything is below a private folder in /tmp and is removed at the end. It speaks plain HTTP: no docker client
is needed.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from launcher.busybox_image import busybox_rootfs_tar

LINES = 60
SCRIPT = f"i=0; while [ $i -lt {LINES} ]; do echo line $i; i=$((i+1)); sleep 0.1; done; exit 7"
DAEMONS = ("dockerd-api", "containerd-svc")


class Api(http.client.HTTPConnection):
    """HTTP on the engine's Unix socket, one request a connection."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(str(self.path))


class Demo:
    """The steps of the demo on one engine below `state`."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def launcher(self, verb: str, *options: str) -> None:
        command = [sys.executable, "-m", "launcher", verb, "--state", str(self.state), *options]
        subprocess.run(command, check=True)

    def call(self, method: str, path: str, body: bytes | dict[str, Any] | None = None) -> bytes:
        """One API call; an error status ends the demo with the engine's message."""
        connection = Api(self.state / "run/docker.sock")
        if isinstance(body, dict):
            data, kind = json.dumps(body).encode(), "application/json"
        else:
            data, kind = body or b"", "application/x-tar"
        connection.request(method, f"/v1.50{path}", data, {"Content-Type": kind})
        reply = connection.getresponse()
        answer = reply.read()
        connection.close()
        if reply.status >= 400:
            raise SystemExit(f"demo: {method} {path}: {reply.status} {answer.decode(errors='replace')}")
        return answer

    def inspect(self, id: str) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads(self.call("GET", f"/containers/{id}/json"))["State"])

    def lines(self, id: str) -> list[str]:
        """What the log holds, from Docker's frames: 8 bytes of header, then the text."""
        raw, text = self.call("GET", f"/containers/{id}/logs?stdout=1"), b""
        while raw:
            length = int.from_bytes(raw[4:8], "big")
            text, raw = text + raw[8 : 8 + length], raw[8 + length :]
        return text.decode().splitlines()

    def pid(self, service: str) -> int:
        return int((self.state / f"run/{service}.pid").read_text())

    def run(self) -> None:
        say("an image from the host's static busybox")
        archive = self.state / "busybox.tar"
        busybox_rootfs_tar(archive)
        self.call(
            "POST", f"/images/create?fromSrc=-&repo={quote('busybox')}&tag=latest", archive.read_bytes()
        )

        say(f"a container that prints {LINES} lines in 6 seconds and exits with 7")
        made = self.call("POST", "/containers/create", {"Image": "busybox", "Cmd": ["sh", "-c", SCRIPT]})
        id = json.loads(made)["Id"]
        self.call("POST", f"/containers/{id}/start")
        before = self.inspect(id)
        show_tree(before["Pid"])

        for service in DAEMONS:
            say(f"restart {service}")
            self.launcher("restart", "--service", service)
        for service in DAEMONS:
            say(f"kill -9 {service} (pid {self.pid(service)})")
            os.kill(self.pid(service), signal.SIGKILL)

        after = self.inspect(id)
        say(f"the container is {after['Status']}, pid {after['Pid']} (was {before['Pid']})")
        show_tree(after["Pid"])
        if (after["Pid"], after["StartedAt"]) != (before["Pid"], before["StartedAt"]):
            raise SystemExit("demo: the container is not the same any more")

        code = json.loads(self.call("POST", f"/containers/{id}/wait"))["StatusCode"]
        printed = self.lines(id)
        whole = printed == [f"line {n}" for n in range(LINES)]
        how = "each once, in order" if whole else "NOT as printed"
        say(f"exit code {code}; {len(printed)} log lines, {how}")
        self.call("DELETE", f"/containers/{id}")
        if code != 7 or not whole:
            raise SystemExit("demo: that is not what the container did")


def say(what: str) -> None:
    print(f"\n==> {what}", flush=True)


def show_tree(pid: int) -> None:
    """The container's process and its ancestors, as ps shows them."""
    chain = [pid]
    while chain[-1] > 1:
        stat = Path(f"/proc/{chain[-1]}/stat").read_text().rpartition(")")[2].split()
        chain.append(int(stat[1]))
    numbers = ",".join(str(number) for number in reversed(chain) if number > 1)
    subprocess.run(["ps", "-o", "pid,ppid,lstart,args", "--forest", "-p", numbers], check=True)


def main() -> int:
    if os.geteuid() != 0:
        print("demo: needs root, to make namespaces, mounts and cgroups", file=sys.stderr)
        return 1
    began = time.monotonic()
    state = Path(tempfile.mkdtemp(prefix="buoy-demo-", dir="/tmp"))
    demo = Demo(state)
    try:
        say(f"the engine comes up below {state}")
        demo.launcher("up")
        demo.run()
    finally:
        say("everything is removed")
        demo.launcher("purge")
    print(f"\nDone in {time.monotonic() - began:.1f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The engine as systemd services: every unit restarted, killed and upgraded beside running containers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.systemd.machine import Machine

pytestmark = [pytest.mark.root, pytest.mark.systemd, pytest.mark.slow, pytest.mark.timeout(300)]

SERVICES = ("shim-svc", "containerd-svc", "dockerd-api")

# Serves a page and prints one number each 20 ms; ends with 7 when told to.
PRINTER = """mkdir /www; echo payload > /www/index.html; httpd -p 80 -h /www
trap 'exit 7' TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done"""

# Asks the published port every 50 ms, on loopback and on the machine's own address, until told to stop;
# prints what failed.
PROBER = """
import pathlib, sys, time, urllib.request
failed, asked = [], 0
while not pathlib.Path("/run/prober.stop").exists():
    for host in ("127.0.0.1", "10.9.8.7"):
        began = time.monotonic()
        try:
            body = urllib.request.urlopen(f"http://{host}:8080/", timeout=1).read()
            if body != b"payload\\n": failed.append(f"{host}: {body!r}")
        except Exception as error:
            failed.append(f"{host}: {error!r} after {time.monotonic() - began:.2f}")
        asked += 1
    time.sleep(0.05)
print(asked, failed)
"""


@dataclass
class Running:
    """A container that must not change, and what it looked like at first."""

    machine: Machine
    id: str

    def identity(self) -> tuple[int, str, str]:
        """Pid, its start time in clock ticks since boot, and StartedAt."""
        state = json.loads(self.machine.out("docker", "inspect", "-f", "{{json .State}}", self.id))
        assert state["Status"] == "running", state
        stat = self.machine.out("cat", f"/proc/{state['Pid']}/stat")
        return state["Pid"], stat.rpartition(")")[2].split()[19], state["StartedAt"]

    def numbers(self) -> list[int]:
        return [int(line) for line in self.machine.out("docker", "logs", self.id).splitlines()]


@pytest.fixture
def printer(machine: Machine) -> Iterator[Running]:
    id = machine.out("docker", "run", "-d", "-p", "8080:80", "busybox", "sh", "-c", PRINTER)
    yield Running(machine, id)
    machine.run("docker", "rm", "-f", id, check=False)


@pytest.fixture
def prober(machine: Machine, printer: Running) -> Iterator[None]:
    """Asks the published port all through the test: no answer may be missing, late or wrong."""
    machine.run("rm", "-f", "/run/prober.stop")
    machine.wait_until("the page", "curl", "-sf", "http://127.0.0.1:8080/")
    process = machine.start("python3", "-c", PROBER, stdout=subprocess.PIPE)
    yield
    machine.run("touch", "/run/prober.stop")
    printed, _ = process.communicate(timeout=30)
    asked, failed = printed.split(" ", 1)
    assert int(asked) > 10
    assert failed.strip() == "[]"


def restart(machine: Machine, service: str) -> None:
    machine.run("systemctl", "restart", service)


def kill(machine: Machine, service: str) -> None:
    before = machine.main_pid(service)
    machine.kill(before)
    deadline = time.monotonic() + 30
    while machine.main_pid(service) in (0, before):
        assert time.monotonic() < deadline, f"{service} did not come back\n{machine.journal()}"
        time.sleep(0.05)
    machine.wait_until(f"{service} ready", "systemctl", "is-active", "-q", service)


def upgrade(machine: Machine, service: str) -> None:
    """Install the same tree under another version number; `service` only names it."""
    target = machine.source / "next"
    shutil.rmtree(target, ignore_errors=True)
    machine.copy_source(target)
    project = target / "pyproject.toml"
    project.write_text(
        re.sub(r"^version = .*$", f'version = "9.{len(service)}.0"', project.read_text(), flags=re.M)
    )
    before = machine.out("readlink", "/opt/buoy/current")
    machine.run("make", "-C", "/source/next", "install", "WHEELS=/wheels")
    after = machine.out("readlink", "/opt/buoy/current")
    assert after.startswith("9.")
    assert after != before
    assert machine.run("test", "-e", f"/opt/buoy/{before}/.complete", check=False).returncode == 0


@pytest.mark.parametrize(
    ("act", "service"),
    [
        *((restart, service) for service in SERVICES),
        *((kill, service) for service in SERVICES),
        (upgrade, "all"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
@pytest.mark.usefixtures("prober")
def test_a_container_does_not_notice(machine: Machine, printer: Running, act: object, service: str) -> None:
    before = printer.identity()
    waiter = machine.start("docker", "wait", printer.id, stdout=-1)
    follower = machine.start("docker", "logs", "-f", printer.id, stdout=-1)
    act(machine, service)  # type: ignore[operator]
    assert printer.identity() == before
    machine.run("docker", "exec", printer.id, "true")
    seen = printer.numbers()
    assert seen == list(range(len(seen)))
    time_limit = time.monotonic() + 10
    while len(printer.numbers()) <= len(seen):
        assert time.monotonic() < time_limit, "it prints no more"
    machine.run("docker", "kill", "-s", "TERM", printer.id)
    assert waiter.communicate(timeout=20)[0].strip() == "7"
    followed = [int(line) for line in follower.communicate(timeout=20)[0].splitlines()]
    assert followed == list(range(len(followed)))
    assert followed == printer.numbers()


EXITS = {
    "0": ("sleep 1; exit 0", [], 0, False),
    "3": ("sleep 1; exit 3", [], 3, False),
    "signal": ("sleep 1; kill -9 $$", ["--init"], 137, False),
    "out of memory": ("sleep 1; x=a; while :; do x=$x$x; done", ["--memory", "16m"], 137, True),
}


def test_exits_while_both_daemons_are_down(machine: Machine) -> None:
    ids = {
        name: machine.out("docker", "run", "-d", *options, "busybox", "sh", "-c", script)
        for name, (script, options, _, _) in EXITS.items()
    }
    machine.run("systemctl", "stop", "dockerd-api.service", "containerd-svc.service")
    pids = [machine.out("cat", f"/run/buoy/containerd/moby/{id}/init.pid") for id in ids.values()]
    for pid in pids:
        machine.wait_until("the container's end", "sh", "-c", f"! kill -0 {pid} 2>/dev/null")
    machine.run("systemctl", "start", "containerd-svc.service", "dockerd-api.service")
    for name, (_, _, code, oom) in EXITS.items():
        assert machine.out("docker", "wait", ids[name]) == str(code), name
        state = json.loads(machine.out("docker", "inspect", "-f", "{{json .State}}", ids[name]))
        assert (state["Status"], state["ExitCode"], state["OOMKilled"]) == ("exited", code, oom), (
            name,
            state,
        )
    machine.run("docker", "rm", *ids.values())


def test_units_say_what_they_need_and_no_more(machine: Machine) -> None:
    for service in SERVICES:
        for property in ("Requires", "BindsTo", "PartOf", "Requisite"):
            named = machine.out("systemctl", "show", "-P", property, f"{service}.service")
            assert not re.search(r"(dockerd-api|containerd-svc|shim-svc)\.service", named), (
                service,
                property,
                named,
            )
        namespace = machine.out("readlink", f"/proc/{machine.main_pid(service)}/ns/mnt")
        assert namespace == machine.out("readlink", "/proc/1/ns/mnt"), service
    verified = machine.run(
        "systemd-analyze", "verify", *(f"{name}.service" for name in SERVICES), check=False
    )
    complaints = [
        line
        for line in verified.stderr.splitlines()
        if any(name in line for name in SERVICES) and "FileDescriptorStorePreserve" not in line
    ]
    assert not complaints

"""The engine as systemd services: every unit restarted, killed and upgraded beside running containers."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

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


class Prober:
    """Asks the published port until `stop`: no answer may be missing, late or wrong."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        machine.run("rm", "-f", "/run/prober.stop")
        machine.wait_until("the page", "curl", "-sf", "http://127.0.0.1:8080/")
        self._process = machine.start("python3", "-c", PROBER, stdout=subprocess.PIPE)

    def stop(self) -> None:
        self._machine.run("touch", "/run/prober.stop")
        printed, _ = self._process.communicate(timeout=30)
        asked, failed = printed.split(" ", 1)
        assert int(asked) > 10
        assert failed.strip() == "[]"

    def close(self) -> None:
        self._machine.end(self._process)


@pytest.fixture
def prober(machine: Machine, printer: Running) -> Iterator[Prober]:
    made = Prober(machine)
    yield made
    made.close()


class Client:
    """A client of the engine that goes on beside the test, its output in a file."""

    def __init__(self, machine: Machine, output: Path, *command: str) -> None:
        self._output = output
        with open(output, "wb") as file:
            self._process = machine.start(*command, stdout=file, stderr=file)

    def printed(self) -> str:
        return self._output.read_text()

    def ended(self) -> str:
        """What it printed until it ended by itself."""
        self._process.wait(20)
        return self.printed()

    def close(self) -> None:
        Machine.end(self._process)


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


def shim_version(machine: Machine, id: str) -> str:
    """The version whose files the shim of a container runs from."""
    shim = machine.out("cat", f"/run/buoy/containerd/moby/{id}/shim.pid")
    found = set(re.findall(r"/opt/buoy/([^/]+)/", machine.out("cat", f"/proc/{shim}/maps")))
    assert len(found) == 1, found
    return str(found.pop())


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
    machine.run("test", "-e", f"/opt/buoy/{before}/.complete")
    for name in SERVICES:
        maps = machine.out("cat", f"/proc/{machine.main_pid(name)}/maps")
        assert f"/opt/buoy/{after}/" in maps
        assert f"/opt/buoy/{before}/" not in maps
    # Old shims are spoken to, new ones come from the new version.
    old, new = (
        machine.out("docker", "ps", "-q", "--no-trunc"),
        machine.out("docker", "run", "-d", "busybox", "sleep", "1000"),
    )
    assert shim_version(machine, old) == before
    assert shim_version(machine, new) == after
    machine.run("docker", "exec", old, "true")
    machine.run("docker", "rm", "-f", new)


@pytest.mark.parametrize(
    ("act", "service"),
    [
        *((restart, service) for service in SERVICES),
        *((kill, service) for service in SERVICES),
        (upgrade, "all"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_container_does_not_notice(
    machine: Machine,
    printer: Running,
    prober: Prober,
    tmp_path: Path,
    act: Callable[[Machine, str], None],
    service: str,
) -> None:
    before = printer.identity()
    with (
        contextlib.closing(Client(machine, tmp_path / "wait", "docker", "wait", printer.id)) as waiter,
        contextlib.closing(
            Client(machine, tmp_path / "logs", "docker", "logs", "-f", printer.id)
        ) as follower,
    ):
        # Each has its connection and its reply's file in the store by then, beside the map of connections.
        stored = "test $(systemctl show -P NFileDescriptorStore dockerd-api) -ge 5"
        machine.wait_until("both clients are kept", "sh", "-c", stored)
        act(machine, service)
        assert printer.identity() == before
        machine.run("docker", "exec", printer.id, "true")
        seen = printer.numbers()
        assert seen == list(range(len(seen)))
        time_limit = time.monotonic() + 10
        while len(printer.numbers()) <= len(seen):
            assert time.monotonic() < time_limit, "it prints no more"
        # The nursery and what it keeps ready.
        family = "test $(pgrep -fc '^shim-svc nursery') -le 3"
        machine.wait_until("nothing of an earlier nursery is left", "sh", "-c", family)
        prober.stop()
        machine.run("docker", "kill", "-s", "TERM", printer.id)
        assert waiter.ended().strip() == "7"
        followed = [int(line) for line in follower.ended().splitlines()]
    assert followed == list(range(len(followed)))
    assert followed == printer.numbers()


@pytest.mark.parametrize("service", SERVICES)
def test_a_stuck_service_is_started_again(machine: Machine, printer: Running, service: str) -> None:
    """The watchdog, with a shorter limit than the unit's."""
    before = printer.identity()
    folder = f"/run/systemd/system/{service}.service.d"
    limits = "[Service]\nWatchdogSec=1\nTimeoutStopSec=1\nTimeoutAbortSec=1\n"
    machine.run("mkdir", "-p", folder)
    machine.run("sh", "-c", f"printf '{limits}' >{folder}/watchdog.conf")
    try:
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", service)
        stuck = machine.main_pid(service)
        machine.kill(stuck, signal.SIGSTOP)
        back = f"p=$(systemctl show -P MainPID {service}); test $p != {stuck} && test $p != 0"
        machine.wait_until("another process", "sh", "-c", back)
        machine.wait_until(f"{service} ready", "systemctl", "is-active", "-q", service)
        assert printer.identity() == before
        machine.run("docker", "exec", printer.id, "true")
    finally:
        machine.run("rm", "-r", folder)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", service)


def test_commands_start_quickly(machine: Machine) -> None:
    """No pip wrapper: an isolated interpreter that skips the site module."""
    for command in ("runc-bin", "shim-svc"):
        started = machine.out(
            "grep", "-aoE", "'?/opt/buoy/[^/]+/bin/python'? -IS", f"/opt/buoy/current/bin/{command}"
        )
        assert started, command
        machine.run(f"/opt/buoy/current/bin/{command}", "--version")


def test_install_again_changes_nothing(machine: Machine) -> None:
    before = [machine.main_pid(service) for service in SERVICES]
    current = machine.out("readlink", "/opt/buoy/current")
    source = "/source/next" if current.startswith("9.") else "/source"
    machine.run("make", "-C", source, "install", "WHEELS=/wheels")
    assert [machine.main_pid(service) for service in SERVICES] == before
    assert machine.out("readlink", "/opt/buoy/current") == current


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

"""The machine is powered off and booted again: containers end by their own settings; what should run does."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.systemd.machine import Machine

pytestmark = [pytest.mark.root, pytest.mark.systemd, pytest.mark.slow, pytest.mark.timeout(200)]

PRINTS = "i=0; trap 'echo bye; exit 5' TERM; while :; do echo $i; i=$((i+1)); sleep 0.1; done"

# Options of `docker run`, the script, the exit code that is recorded, whether it runs after the boot.
CONTAINERS: dict[str, tuple[list[str], str, int, bool]] = {
    "plain": ([], PRINTS, 5, False),
    "other-signal": (["--stop-signal", "QUIT"], "trap 'exit 9' QUIT; while :; do sleep 0.1; done", 9, False),
    "stubborn": (["--stop-timeout", "1"], "trap '' TERM; while :; do sleep 0.1; done", 137, False),
    "paused": ([], PRINTS, 5, False),
    "always": (["--restart", "always"], PRINTS, 5, True),
    "unless-stopped": (["--restart", "unless-stopped"], PRINTS, 5, True),
    "stopped-by-hand": (["--restart", "unless-stopped"], PRINTS, 5, False),
    "always-stopped-by-hand": (["--restart", "always"], PRINTS, 5, True),
    "backing-off": (["--restart", "always"], "exit 4", 4, True),
    "removed-at-its-end": (["--rm"], PRINTS, 5, False),
}


def state(machine: Machine, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(machine.out("docker", "inspect", "-f", "{{json .State}}", name))
    return found


def test_containers_end_and_start_again_with_the_host(machine: Machine) -> None:
    for name, (options, script, _, _) in CONTAINERS.items():
        machine.run("docker", "run", "-d", "--name", name, *options, "busybox", "sh", "-c", script)
    machine.run("docker", "pause", "paused")
    machine.run("docker", "stop", "stopped-by-hand", "always-stopped-by-hand")
    started = {name: state(machine, name)["StartedAt"] for name in CONTAINERS}
    machine.wait_until("the first lines", "sh", "-c", "docker logs plain | grep -q 3")

    # Not the end of the host: nothing happens to a container.
    for verb in ("restart", "stop", "start"):
        machine.run("systemctl", verb, "buoy-containers.service")
    assert state(machine, "plain")["Status"] == "running"
    assert state(machine, "plain")["StartedAt"] == started["plain"]

    machine.power_off()
    machine.boot()

    machine.wait_until("the engine", "docker", "version")
    said = machine.journal_of_last_boot()
    assert "8 of 8 containers ended" in said, said
    for name, (_, _, code, again) in CONTAINERS.items():
        if name == "removed-at-its-end":
            gone = f"! docker inspect {name}"
            machine.wait_until(gone, "sh", "-c", gone)
        elif name == "backing-off":
            machine.wait_until(
                name,
                "sh",
                "-c",
                f"test {started[name]} != $(docker inspect -f {{{{.State.StartedAt}}}} {name})",
            )
            assert state(machine, name)["ExitCode"] in (0, 4)
        elif again:
            running = f"test $(docker inspect -f {{{{.State.Status}}}} {name}) = running"
            machine.wait_until(name, "sh", "-c", running)
            assert state(machine, name)["StartedAt"] != started[name]
        else:
            found = state(machine, name)
            assert (found["Status"], found["ExitCode"]) == ("exited", code), (name, found)
    # Every line up to the last is on the disk, once.
    lines = machine.out("docker", "logs", "plain").splitlines()
    assert lines == [*map(str, range(len(lines) - 1)), "bye"]
    lines = machine.out("docker", "logs", "always").splitlines()
    assert lines.count("bye") == 1
    machine.run("docker", "rm", "-f", *(name for name in CONTAINERS if name != "removed-at-its-end"))

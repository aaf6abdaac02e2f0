"""Logs in a real journald: written by the shim, read by the API."""

from __future__ import annotations

import json

import pytest

from tests.systemd.machine import Machine

pytestmark = [pytest.mark.root, pytest.mark.systemd, pytest.mark.slow, pytest.mark.timeout(300)]

SCRIPT = "echo one; echo err >&2; echo; head -c 40000 /dev/zero | tr '\\0' x; echo; printf last"
SAID = "one\n\n" + "x" * 40000 + "\nlast"


def test_a_log_in_the_journal(machine: Machine) -> None:
    run = ("docker", "run", "--name", "told", "--log-driver", "journald")
    options = ("--log-opt", "tag=T/{{.Name}}", "--log-opt", "labels=a", "--label", "a=1")
    machine.run(*run, *options, "busybox", "sh", "-c", SCRIPT)
    try:
        assert machine.run("docker", "logs", "told").stdout == SAID
        assert machine.out("docker", "logs", "--tail", "1", "told") == "last"
        assert machine.out("docker", "logs", "--tail", "0", "told") == ""
        assert machine.run("docker", "logs", "-f", "told").stdout == SAID
        details = machine.out("docker", "logs", "--details", "told").splitlines()
        assert details[0] == "A=1 one"
        times = [line.split(" ")[0] for line in machine.out("docker", "logs", "-t", "told").splitlines()]
        assert times == sorted(times)
        since = machine.run("docker", "logs", "--since", times[-1], "told").stdout
        assert since == "last"
        found = machine.out("journalctl", "CONTAINER_NAME=told", "-o", "json", "--no-pager")
        entries = [json.loads(line) for line in found.splitlines()]
        assert {entry["CONTAINER_TAG"] for entry in entries} == {"T/told"}
        assert {entry["SYSLOG_IDENTIFIER"] for entry in entries} == {"T/told"}
        assert {entry["IMAGE_NAME"] for entry in entries} == {"busybox"}
        assert [entry["PRIORITY"] for entry in entries if entry["MESSAGE"] == "err"] == ["3"]
        parts = [entry for entry in entries if entry.get("CONTAINER_PARTIAL_MESSAGE") == "true"]
        assert [entry["CONTAINER_PARTIAL_ORDINAL"] for entry in parts[:3]] == ["1", "2", "3"]
    finally:
        machine.run("docker", "rm", "-f", "told", check=False)

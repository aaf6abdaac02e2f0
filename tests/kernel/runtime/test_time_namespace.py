"""Time namespaces: clocks set off before the first process is in, or joined by path."""

from __future__ import annotations

import os
from decimal import Decimal
from pathlib import Path

import pytest

from tests.kernel.runtime.bundle import Bundle, namespace

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        not os.path.exists("/proc/self/timens_offsets"), reason="the kernel has no time namespaces"
    ),
]

DAYS = 7 * 86400


@pytest.fixture
def timed(bundle: Bundle) -> Bundle:
    bundle.linux["namespaces"].append({"type": "time"})
    bundle.linux["timeOffsets"] = {
        "monotonic": {"secs": 1234, "nanosecs": 5},
        "boottime": {"secs": DAYS, "nanosecs": 0},
    }
    return bundle


def offsets(text: str) -> dict[str, tuple[int, int]]:
    return {name: (int(secs), int(rest)) for name, secs, rest in map(str.split, text.splitlines())}


def uptime(text: str) -> Decimal:
    """Seconds, exactly as printed: a float loses the last hundredth once days are taken off."""
    return Decimal(text.split()[0])


def test_clocks_are_set_off(timed: Bundle) -> None:
    done = timed.run("cat", "/proc/self/timens_offsets")
    assert offsets(done.stdout) == {"monotonic": (1234, 5), "boottime": (DAYS, 0)}
    host = Path("/proc/uptime")
    before = uptime(host.read_text())
    inside = uptime(timed.run("cat", "/proc/uptime").stdout)
    assert before <= inside - DAYS <= uptime(host.read_text())
    assert offsets(Path("/proc/self/timens_offsets").read_text())["boottime"] == (0, 0)


def test_processes_before_and_after(timed: Bundle) -> None:
    container_id, pid = timed.start("sleep", "60")
    assert namespace(pid, "time") != namespace("self", "time")
    assert namespace(pid, "time") == namespace(pid, "time_for_children")
    assert timed.state(container_id)["status"] == "running"  # its start time is told apart all the same
    script = "readlink /proc/self/ns/time; cat /proc/uptime"
    link, line = timed.call("exec", container_id, "sh", "-c", script).stdout.splitlines()
    assert link == namespace(pid, "time")
    assert uptime(line) > DAYS


def test_joined_by_path(timed: Bundle) -> None:
    _, pid = timed.start("sleep", "60")
    timed.linux["namespaces"][-1]["path"] = f"/proc/{pid}/ns/time"
    done = timed.run("true", check=False)
    assert "both namespace path and time offsets specified" in done.stderr
    del timed.linux["timeOffsets"]
    timed.linux["cgroupsPath"] += "2"
    done = timed.run("sh", "-c", "readlink /proc/self/ns/time; cat /proc/uptime")
    assert done.stdout.splitlines()[0] == namespace(pid, "time")
    assert uptime(done.stdout.splitlines()[1]) > DAYS


@pytest.mark.parametrize("kind", ["new", "joined"])
def test_with_a_user_namespace(timed: Bundle, kind: str) -> None:
    first = 300000
    timed.linux["namespaces"].append({"type": "user"})
    timed.linux["uidMappings"] = timed.linux["gidMappings"] = [
        {"containerID": 0, "hostID": first, "size": 100}
    ]
    os.chown(timed.rootfs, first, first)
    _, pid = timed.start("sleep", "60")
    if kind == "joined":
        timed.linux["cgroupsPath"] += "2"
        timed.linux["namespaces"][-1]["path"] = f"/proc/{pid}/ns/user"
        _, other = timed.start("sleep", "60")
        assert namespace(other, "user") == namespace(pid, "user")
        assert namespace(other, "time") != namespace(pid, "time")
        pid = other
    shown = (Path("/proc") / str(pid) / "timens_offsets").read_text()
    assert offsets(shown) == {"monotonic": (1234, 5), "boottime": (DAYS, 0)}


def test_without_offsets(timed: Bundle) -> None:
    del timed.linux["timeOffsets"]
    done = timed.run("sh", "-c", "readlink /proc/self/ns/time; cat /proc/self/timens_offsets")
    assert done.stdout.splitlines()[0] != namespace("self", "time")
    assert offsets("\n".join(done.stdout.splitlines()[1:])) == {"monotonic": (0, 0), "boottime": (0, 0)}


def test_offsets_that_cannot_be(timed: Bundle) -> None:
    for given, text in (
        ({"realtime": {"secs": 1}}, "linux.timeOffsets: there is no clock 'realtime' to set off"),
        ({"boottime": {"secs": 1, "nanosecs": 10**9}}, "linux.timeOffsets.boottime.nanosecs must be between"),
        ({"boottime": {"secs": "1"}}, "linux.timeOffsets.boottime.secs must be of type int"),
    ):
        timed.linux["timeOffsets"] = given
        done = timed.run("true", check=False)
        assert text in done.stderr
    assert not list(timed.root.glob("t-*"))
    timed.linux["timeOffsets"] = {"boottime": {"secs": -(10**9)}}  # only the kernel knows: before the boot
    assert "timens_offsets: " in timed.run("true", check=False).stderr
    assert not list(timed.root.glob("t-*"))
    timed.linux["namespaces"] = [n for n in timed.linux["namespaces"] if n["type"] != "time"]
    done = timed.run("true", check=False)
    assert "time namespace offsets specified, but time namespace isn't enabled in the config" in done.stderr

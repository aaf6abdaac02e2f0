"""Seccomp profiles with a listener: an agent gets the descriptor and answers the container's calls."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.runtime.bundle import Bundle
from tests.kernel.runtime.seccomp_agent import Agent, go_on

pytestmark = pytest.mark.root

MKDIR = [83, 258]  # mkdir, mkdirat of x86_64
EVERY_FLAG = [f"SECCOMP_FILTER_FLAG_{name}" for name in ("TSYNC", "LOG", "SPEC_ALLOW", "WAIT_KILLABLE_RECV")]


@pytest.fixture
def path(bundle: Bundle) -> Path:
    return bundle.folder / "agent.sock"


@pytest.fixture
def agent(path: Path) -> Iterator[Agent]:
    made = Agent(path)
    yield made
    made.close()


def ask_for(bundle: Bundle, path: Path, *names: str, **more: Any) -> None:
    """Have the agent at `path` asked for these calls."""
    bundle.linux["seccomp"] = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": list(names), "action": "SCMP_ACT_NOTIFY"}],
        "listenerPath": str(path),
        **more,
    }


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_the_first_process(bundle: Bundle, path: Path, agent: Agent, no_new_privileges: bool) -> None:
    """The root is read-only; the agent says that the folders have been made."""
    bundle.process["noNewPrivileges"] = no_new_privileges
    ask_for(bundle, path, "mkdir", "mkdirat", listenerMetadata="m: 1")
    bundle.spec["annotations"] = {"a": "b"}
    container_id, pid = bundle.start("sh", "-c", "busybox mkdir /x && sleep 60")
    (found,) = agent.states
    assert (found["fds"], found["pid"], found["metadata"]) == (["seccompFd"], pid, "m: 1")
    state = found["state"]
    assert (state["id"], state["status"], state["pid"]) == (container_id, "creating", pid)
    assert (state["bundle"], state["annotations"]) == (str(bundle.folder), {"a": "b"})
    assert found["ociVersion"].startswith("1.")
    bundle.call("delete", "--force", container_id)
    ask_for(bundle, path, "mkdir", "mkdirat")
    done = bundle.run("sh", "-c", "busybox mkdir /x; busybox mkdir /y && echo made")
    assert done.stdout == "made\n"
    assert {number for _, number in agent.asked} <= set(MKDIR)
    assert len(agent.asked) == 3
    assert agent.states[1]["metadata"] == ""


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_a_further_process(bundle: Bundle, path: Path, agent: Agent, no_new_privileges: bool) -> None:
    bundle.process["noNewPrivileges"] = no_new_privileges
    ask_for(bundle, path, "mkdir", "mkdirat", listenerMetadata="m")
    container_id, pid = bundle.start("sleep", "60")
    assert bundle.call("exec", container_id, "sh", "-c", "busybox mkdir /x && echo made").stdout == "made\n"
    _, found = agent.states
    assert found["fds"] == ["seccompFd"]
    assert found["metadata"] == "m"
    assert (found["state"]["status"], found["state"]["pid"]) == ("running", pid)
    assert found["pid"] not in (pid, 0)


def test_an_error_as_the_answer(bundle: Bundle, path: Path) -> None:
    agent = Agent(path, lambda _number: (0, errno.ENOMEDIUM, 0))
    try:
        ask_for(bundle, path, "mkdir", "mkdirat")
        done = bundle.run("busybox", "mkdir", "/x", check=False)
    finally:
        agent.close()
    assert "No medium found" in done.stderr


@pytest.mark.parametrize("no_new_privileges", [True, False])
def test_every_call_may_be_asked_for(bundle: Bundle, path: Path, no_new_privileges: bool) -> None:
    """Those of the runtime too, which come between the filter and the program."""
    agent = Agent(path, go_on)
    try:
        ask_for(bundle, path, "sendmsg", "sendto", "read", "recvfrom", "write", "close")
        bundle.linux["seccomp"]["defaultAction"] = "SCMP_ACT_NOTIFY"
        bundle.process["noNewPrivileges"] = no_new_privileges
        assert bundle.run("echo", "through").stdout == "through\n"
    finally:
        agent.close()
    assert len(agent.asked) > 10


def test_with_every_flag(bundle: Bundle, path: Path, agent: Agent) -> None:
    ask_for(bundle, path, "mkdir", "mkdirat", flags=EVERY_FLAG)
    assert bundle.run("sh", "-c", "busybox mkdir /x && echo made").stdout == "made\n"


def test_without_such_an_action_nobody_is_called(bundle: Bundle, path: Path) -> None:
    ask_for(bundle, path, "mkdir", flags=EVERY_FLAG)
    bundle.linux["seccomp"]["syscalls"][0]["action"] = "SCMP_ACT_ERRNO"
    assert "Operation not permitted" in bundle.run("busybox", "mkdir", "/x", check=False).stderr


def test_an_agent_that_is_not_there(bundle: Bundle, path: Path) -> None:
    ask_for(bundle, path, "mkdir")
    done = bundle.run("true", check=False)
    assert f"linux.seccomp.listenerPath: {path}: no such file or directory" in done.stderr
    path.write_text("")
    assert f"{path} is not a socket" in bundle.run("true", check=False).stderr
    path.unlink()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        done = bundle.run("true", check=False)
    assert f"sending the seccomp descriptor to {path}: connection refused" in done.stderr
    assert bundle.cgroups() == []
    assert bundle.call("list", "-q").stdout == ""

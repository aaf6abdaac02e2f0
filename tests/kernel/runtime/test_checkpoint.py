"""Checkpoint and restore where this host has a CRIU that works with its kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from errdefs import BuoyError
from runc_bin.libcontainer.checkpoint import criu

from tests.kernel.runtime.bundle import SERVICES, Bundle

pytestmark = pytest.mark.root

INSIDE = Path(__file__).parents[2] / "systemd/inside_checkpoint.py"


def judge_counting(found: dict[str, Any]) -> None:
    """What holds for a program that counts, checkpointed and restored twice."""
    assert found["run"] == [0, ""]
    assert found["began"]
    if found["pre-dump"][0]:
        assert "this kernel cannot tell which pages of memory have changed" in found["pre-dump"][1]
    assert found["after pre-dump"] == "running"
    assert found["checkpoint"] == [0, ""]
    assert found["stopped"][0] == 1
    assert "container does not exist" in found["stopped"][1]
    assert found["left"] == []
    assert found["restore"] == [0, ""]
    assert found["restored"] == "running"
    assert found["goes on"]
    assert found["streams"]
    assert found["exec"] == [0, "sh\n"]
    assert found["pid"]
    assert found["groups"]
    assert found["taken"][0] == 1
    assert "container with given ID already exists" in found["taken"][1]
    assert found["rival"][0] == 1
    assert "container's cgroup is not empty" in found["rival"][1]
    assert found["unharmed"]
    assert found["leave"] == [0, ""]
    assert found["left as"] == "paused"
    assert found["left running"]
    assert found["delete"] == [0, ""]
    assert found["gone"] == []
    names = ("one", "one", "two", "rival", "two")
    states = ("created", "stopped", "created", "stopped", "stopped")
    assert found["hooks"] == [[name, status] for name, status in zip(names, states, strict=True)]


def judge_crashes(found: dict[str, Any]) -> None:
    """What holds for the runtime killed at each step: it is told of, and `delete --force` leaves nothing."""
    points = {name: facts for name, facts in found.items() if "." in name}
    assert {name.split(".")[0] for name in points} == {"checkpoint", "restore"}
    for name, facts in points.items():
        unknown = int(name == "restore.folder-made")  # nothing is on record yet
        assert facts == [-9, unknown, 0], name


def judge_failures(found: dict[str, Any]) -> None:
    """What holds for restores that fail: the reason is told, and nothing is left."""
    for name, words in (("images", "criu failed: type RESTORE"), ("hook", "createRuntime hook #0")):
        code, said, *left = found[name]
        assert (code, left) == (1, [])
        assert words in said


def judge_terminal(found: dict[str, Any]) -> None:
    """What holds for a program on a terminal, in a network namespace that was given."""
    assert found["run"] == [0, ""]
    assert found["first"]
    assert found["checkpoint"] == [0, ""]
    assert found["restore"] == [0, ""]
    assert found["second"]
    assert found["network"]


def test_round_trips(tmp_path: Path) -> None:
    try:
        criu.check()
    except BuoyError as error:
        pytest.skip(error.message)
    done = subprocess.run(
        [sys.executable, str(INSIDE), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SERVICES)},
        timeout=60,
    )
    found = json.loads(done.stdout.rpartition("checkpoints=")[2])
    judge_counting(found["counting"])
    judge_crashes(found["crashes"])
    judge_failures(found["failures"])
    judge_terminal(found["terminal"])


def test_nothing_is_changed_without_criu(bundle: Bundle, tmp_path: Path) -> None:
    container_id, _ = bundle.start("sleep", "60")
    images, programs = tmp_path / "images", tmp_path / "programs"
    programs.mkdir()
    words = ("checkpoint", "--image-path", str(images), container_id)
    environment = {**os.environ, "PATH": str(programs)}
    absent = bundle.call(*words, check=False, env=environment)
    assert absent.returncode == 1
    assert "there is no criu in $PATH" in absent.stderr
    (programs / "criu").write_text("#!/bin/sh\necho Version: 3.15\n")
    (programs / "criu").chmod(0o755)
    old = bundle.call(*words, check=False, env=environment)
    assert old.returncode == 1
    assert "is version 3.15, and 3.16 or later is needed" in old.stderr
    named = bundle.call("--criu", str(programs / "criu"), *words, check=False)
    assert f"{programs}/criu is version 3.15" in named.stderr
    assert "/no/where is no program" in bundle.call("--criu", "/no/where", *words, check=False).stderr
    assert not images.exists()
    assert bundle.state(container_id)["status"] == "running"

    images.mkdir()
    restore = ("restore", "--detach", "--image-path", str(images), "other")
    empty = bundle.call(*restore, check=False, env=environment)
    assert "has no images of a checkpoint" in empty.stderr
    (images / "inventory.img").touch()
    (images / "descriptors.json").write_text("[]")
    assert "or later is needed" in bundle.call(*restore, check=False, env=environment).stderr
    assert "no_criu in $PATH" in bundle.call("--criu", "no_criu", *restore, check=False).stderr
    assert not (bundle.root / "other").exists()


def test_only_what_runs_can_be_checkpointed(bundle: Bundle) -> None:
    bundle.process["args"] = ["sleep", "60"]
    container_id = bundle.new_id()
    bundle.detach("create", container_id)
    refused = bundle.call("checkpoint", container_id, check=False)
    assert refused.returncode == 1
    assert "Container cannot be checkpointed in created state" in refused.stderr

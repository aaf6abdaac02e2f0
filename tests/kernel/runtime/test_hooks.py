"""Hooks: which run when, where, with what on their standard input, and what their failures mean (runtime.md,
"Lifecycle", and config.md, "POSIX-platform Hooks").
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.runtime.bundle import Bundle, is_gone, namespace, wait_until

pytestmark = pytest.mark.root

OUTSIDE = ("prestart", "createRuntime", "poststart", "poststop")
PID = "sed -n 's/.*\"pid\": \\([0-9]*\\).*/\\1/p'"  # of the state on standard input
KINDS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")


class Hooks:
    """Hooks that note what they see, in one file that is inside and outside the container."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._folder = bundle.folder / "notes"
        self._folder.mkdir()
        bundle.spec["mounts"].append(
            {"destination": "/notes", "source": str(self._folder), "options": ["bind", "rw"]}
        )

    def set(self, kind: str, *scripts: str) -> None:
        """Have hooks of a kind run shell scripts; `$F` is the folder of notes."""
        folder = "/notes" if kind == "startContainer" else str(self._folder)
        self._bundle.spec.setdefault("hooks", {})[kind] = [
            {"path": "/bin/sh", "args": ["sh", "-c", script], "env": [f"F={folder}", f"K={kind}"]}
            for script in scripts
        ]

    def note(self, *kinds: str) -> None:
        """Have hooks of these kinds add their kind to the notes."""
        for kind in kinds:
            self.set(kind, "echo $K >> $F/order")

    @property
    def order(self) -> list[str]:
        path = self._folder / "order"
        return path.read_text().split() if path.exists() else []

    def read(self, name: str) -> str:
        return (self._folder / name).read_text()

    def exists(self, name: str) -> bool:
        return (self._folder / name).exists()


@pytest.fixture
def hooks(bundle: Bundle) -> Hooks:
    return Hooks(bundle)


def seen_state(hooks: Hooks, kind: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(hooks.read(f"state-{kind}"))
    return found


def create(bundle: Bundle, *args: str) -> tuple[str, int]:
    bundle.process["args"] = list(args)
    container_id = bundle.new_id()
    null = subprocess.DEVNULL
    words = bundle.command("create", "--bundle", str(bundle.folder), container_id)
    subprocess.run(words, stdin=null, stdout=null, stderr=null, cwd="/", timeout=30, check=True)
    return container_id, int(bundle.state(container_id)["pid"])


def test_order_and_state(bundle: Bundle, hooks: Hooks) -> None:
    """By the verb that runs them, each with the state as it is where the hook runs."""
    for kind in KINDS:
        hooks.set(kind, "cat > $F/state-$K; echo $K >> $F/order", "echo $K-2 >> $F/order")
    bundle.spec["annotations"] = {"a.b": "c"}
    container_id, pid = create(bundle, "sleep", "60")
    created = [word for kind in KINDS[:3] for word in (kind, f"{kind}-2")]
    assert hooks.order == created
    bundle.call("start", container_id)
    started = [word for kind in KINDS[:5] for word in (kind, f"{kind}-2")]
    assert hooks.order == started
    bundle.call("delete", "--force", container_id)
    assert hooks.order == [*started, "poststop", "poststop-2"]
    statuses = dict.fromkeys(KINDS, "created") | {"poststart": "running", "poststop": "stopped"}
    pids = dict.fromkeys(KINDS, pid) | {"createContainer": 1, "startContainer": 1, "poststop": None}
    for kind in KINDS:
        state = seen_state(hooks, kind)
        assert (state["id"], state["bundle"]) == (container_id, str(bundle.folder))
        assert state["annotations"] == {"a.b": "c"}
        assert state["ociVersion"].startswith("1.")
        assert (state["status"], state.get("pid")) == (statuses[kind], pids[kind])


def test_namespaces_and_folders(bundle: Bundle, hooks: Hooks) -> None:
    script = "for n in mnt uts pid; do readlink /proc/self/ns/$n; done > $F/$K; pwd >> $F/$K; ls / >> $F/$K"
    for kind in KINDS:
        hooks.set(kind, script)
    container_id, pid = create(bundle, "sleep", "60")
    bundle.call("start", container_id)
    inside = [namespace(pid, kind) for kind in ("mnt", "uts", "pid")]
    outside = [namespace("self", kind) for kind in ("mnt", "uts", "pid")]
    bundle.call("delete", "--force", container_id)
    host = sorted(os.listdir("/"))
    for kind in KINDS:
        words = hooks.read(kind).split("\n")
        assert words[:3] == (outside if kind in OUTSIDE else inside), kind
        folder = {"createContainer": str(bundle.rootfs), "startContainer": "/"}.get(kind, str(bundle.folder))
        assert words[3] == folder, kind
        sees_host = sorted(word for word in words[4:] if word and not word.startswith(".")) == [
            name for name in host if not name.startswith(".")
        ]
        assert sees_host == (kind != "startContainer"), kind


def test_mounts_are_there_for_hooks_of_the_creation(bundle: Bundle, hooks: Hooks) -> None:
    """createRuntime and createContainer come after the mounts and before pivot_root."""
    hooks.set("createContainer", "ls dev/null proc/self/stat > $F/seen")
    hooks.set("createRuntime", f"head -c1 /proc/$(head -n1 $F/pid)/root{bundle.rootfs}/proc/stat > $F/out")
    hooks.set("prestart", f"{PID} > $F/pid")
    bundle.run("true")
    assert hooks.read("seen").split() == ["dev/null", "proc/self/stat"]
    assert hooks.read("out") == "c"


def test_arguments_and_environment(bundle: Bundle, hooks: Hooks) -> None:
    """Without an environment a hook has the runtime's, and startContainer the process's; without arguments
    its path.
    """
    script = bundle.folder / "hook"
    inside = bundle.rootfs / "bin/hook"
    for path, notes in ((script, bundle.folder / "notes"), (inside, Path("/notes"))):
        path.write_text(f'#!/bin/sh\necho "$0 $# [$X]" >> {notes}/env\n')
        path.chmod(0o755)
    bundle.process["env"].append("X=process")
    bundle.spec["hooks"] = {
        "prestart": [
            {"path": str(script)},
            {"path": str(script), "env": ["X=own"]},
            {"path": str(script), "env": []},
            {"path": str(script), "args": ["a", "b c", "d"]},
        ],
        "startContainer": [{"path": "/bin/hook"}, {"path": "/bin/hook", "env": ["X=own"]}],
    }
    bundle.run("true", env={**os.environ, "X": "runtime"})
    assert hooks.read("env").splitlines() == [
        f"{script} 0 [runtime]",
        f"{script} 0 [own]",
        f"{script} 0 []",
        f"{script} 2 [runtime]",
        "/bin/hook 0 [process]",
        "/bin/hook 0 [own]",
    ]


@pytest.mark.parametrize("kind", ["prestart", "createRuntime", "createContainer"])
def test_a_failure_in_the_creation_destroys_the_container(bundle: Bundle, hooks: Hooks, kind: str) -> None:
    hooks.note(*KINDS)
    hooks.set(kind, "echo one >> $F/order", "echo why; exit 4", "echo never >> $F/order")
    done = bundle.call("create", bundle.new_id(), check=False)
    assert done.returncode == 1
    assert f"error running {kind} hook #1: exit status 4, stdout/stderr: why" in done.stderr
    before = list(KINDS[: KINDS.index(kind)])
    assert hooks.order == [*before, "one", "poststop"]
    assert bundle.cgroups() == []
    assert bundle.call("list", "-q").stdout == ""


def test_a_failure_without_hooks_at_fault_runs_poststop_too(bundle: Bundle, hooks: Hooks) -> None:
    """Whatever the creation's hooks have made must be taken back."""
    hooks.note("prestart")
    hooks.set("poststop", "cat > $F/state-$K; echo $K >> $F/order")
    assert "executable file not found" in bundle.run("nosuch", check=False).stderr
    assert hooks.order == ["prestart", "poststop"]
    assert seen_state(hooks, "poststop")["status"] == "stopped"


@pytest.mark.parametrize("verb", ["start", "run"])
def test_a_failing_start_hook_destroys_the_container(bundle: Bundle, hooks: Hooks, verb: str) -> None:
    hooks.note(*KINDS)
    hooks.set("startContainer", "echo why; exit 5", "echo never >> $F/order")
    program = ["sh", "-c", "echo ran >> /notes/order"]
    if verb == "run":
        done = bundle.run(*program, check=False)
    else:
        container_id, pid = create(bundle, *program)
        done = bundle.call("start", container_id, check=False)
        wait_until(lambda: is_gone(pid))
        assert "does not exist" in bundle.call("state", container_id, check=False).stderr
    assert done.returncode == 1
    assert "error running startContainer hook #0: exit status 5, stdout/stderr: why" in done.stderr
    assert hooks.order == ["prestart", "createRuntime", "createContainer", "poststop"]
    assert bundle.cgroups() == []


def test_a_failing_late_hook_is_a_warning(bundle: Bundle, hooks: Hooks) -> None:
    for kind in ("poststart", "poststop"):
        hooks.set(kind, "echo why; exit 6", "echo $K >> $F/order")
    log = bundle.folder / "log"
    container_id, pid = create(bundle, "sleep", "60")
    bundle.call("--log", str(log), "--log-format", "json", "start", container_id)
    assert not is_gone(pid)
    assert hooks.order == ["poststart"]
    bundle.call("--log", str(log), "--log-format", "json", "delete", "--force", container_id)
    assert hooks.order == ["poststart", "poststop"]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["level"], line["msg"]) for line in lines] == [
        ("warning", f"error running {kind} hook #0: exit status 6, stdout/stderr: why\n")
        for kind in ("poststart", "poststop")
    ]


@pytest.mark.parametrize("kind", ["prestart", "startContainer", "poststart", "poststop"])
def test_a_slow_hook_is_ended(bundle: Bundle, hooks: Hooks, kind: str) -> None:
    hooks.set(kind, "exec sleep 60")
    bundle.spec["hooks"][kind][0]["timeout"] = 1
    done = bundle.run("true", check=False)
    assert f"error running {kind} hook #0: hook /bin/sh did not end within 1 s" in done.stderr
    assert done.returncode == (1 if kind in ("prestart", "startContainer") else 0)


def test_poststart_comes_after_the_program(bundle: Bundle, hooks: Hooks) -> None:
    """However long its execve(2) takes: by then the process is the program."""
    hooks.set("poststart", f"{PID} > $F/pid; tr '\\0' ' ' < /proc/$(cat $F/pid)/cmdline > $F/is")
    bundle.process["args"] = ["sleep", "61"]
    container_id = bundle.new_id()
    slowly = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=execve:delay_enter=300000"]
    null = subprocess.DEVNULL
    words = [*slowly, *bundle.command("create", container_id)]
    with subprocess.Popen(words, stdin=null, stdout=null, stderr=null, cwd=bundle.folder) as traced:
        fifo = bundle.root / container_id / "exec.fifo"
        wait_until(lambda: fifo.exists() and bundle.state(container_id)["status"] == "created")
        bundle.call("start", container_id)
        bundle.call("delete", "--force", container_id)
        assert traced.wait(10) == 0
    assert hooks.read("is") == "sleep 61 "


def test_poststart_of_a_program_that_is_over(bundle: Bundle, hooks: Hooks) -> None:
    hooks.set("poststart", "cat > $F/state-$K")
    bundle.run("true")
    assert seen_state(hooks, "poststart")["status"] == "running"


def test_the_program_has_nothing_of_the_fifo(bundle: Bundle, hooks: Hooks) -> None:
    hooks.note("poststart")
    assert bundle.run("ls", "/proc/self/fd").stdout.split() == ["0", "1", "2", "3"]  # 3: the folder itself


def test_a_change_of_the_bundle_changes_no_hook(bundle: Bundle, hooks: Hooks) -> None:
    hooks.note("poststart", "poststop")
    container_id, _ = create(bundle, "sleep", "60")
    hooks.set("poststart", "echo changed >> $F/order")
    hooks.set("poststop", "echo changed >> $F/order")
    bundle.call("start", container_id)
    (bundle.folder / "config.json").unlink()
    words = [*bundle.command("delete", "--force", container_id)]
    (bundle.folder / "config.json").unlink()
    subprocess.run(words, cwd="/", check=True, timeout=30)
    assert hooks.order == ["poststart", "poststop"]


def test_a_hook_that_does_not_read(bundle: Bundle, hooks: Hooks) -> None:
    """A state that is larger than a pipe, and nobody who wants it."""
    bundle.spec["annotations"] = {"large": "x" * 200_000}
    hooks.set("prestart", "exit 0", "cat > $F/state-$K")
    hooks.set("createContainer", "exec 0<&-; echo $K >> $F/order")
    bundle.run("true")
    assert len(seen_state(hooks, "prestart")["annotations"]["large"]) == 200_000
    assert hooks.order == ["createContainer"]

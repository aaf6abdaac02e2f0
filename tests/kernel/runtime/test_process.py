"""What the process object asks for beyond user and program, for a container's first process and others."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.runtime.bundle import Bundle

pytestmark = pytest.mark.root

KILL, BIND = 1 << 5, 1 << 10


def exec_file(bundle: Bundle, container: str, process: dict[str, Any], *, check: bool = True) -> str:
    """What a process of a file prints in a container."""
    path = bundle.folder / "process.json"
    path.write_text(json.dumps({"cwd": "/", "env": ["PATH=/bin"], **process}))
    done = bundle.call("exec", "--process", str(path), container, check=check)
    return done.stdout + done.stderr


def capability_sets(status: str) -> dict[str, int]:
    lines = (line.split(":\t") for line in status.splitlines() if line.startswith("Cap"))
    return {name.removeprefix("Cap"): int(value, 16) for name, value in lines}


def test_capabilities_of_a_spec_without_any(bundle: Bundle) -> None:
    del bundle.process["capabilities"]
    status = bundle.run("grep", "Cap", "/proc/self/status").stdout
    assert set(capability_sets(status).values()) == {0}


def test_five_capability_sets(bundle: Bundle) -> None:
    names = ["CAP_KILL", "CAP_NET_BIND_SERVICE"]
    bundle.process["user"] = {"uid": 1000, "gid": 1000}
    bundle.process["capabilities"] = {
        "bounding": [*names, "CAP_CHOWN"],
        "permitted": names,
        "inheritable": names,
        "effective": ["CAP_KILL"],
        "ambient": ["CAP_KILL"],
    }
    wanted = {"Bnd": KILL | BIND | 1, "Prm": KILL, "Inh": KILL | BIND, "Eff": KILL, "Amb": KILL}
    assert capability_sets(bundle.run("grep", "Cap", "/proc/self/status").stdout) == wanted
    container, _ = bundle.start("sleep", "60")
    done = bundle.call("exec", container, "grep", "Cap", "/proc/self/status")
    assert capability_sets(done.stdout) == wanted
    # a process of a file that says nothing has those of the container; one that says so has none
    of_file = {"args": ["grep", "Cap", "/proc/self/status"], "user": {"uid": 1000, "gid": 1000}}
    assert capability_sets(exec_file(bundle, container, of_file)) == wanted
    none = capability_sets(exec_file(bundle, container, {**of_file, "capabilities": {}}))
    assert set(none.values()) == {0}


def test_an_added_capability_is_ambient_only_beside_inheritable_ones(bundle: Bundle) -> None:
    container, _ = bundle.start("sleep", "60")
    words = ("exec", "--cap", "CAP_CHOWN", container, "grep", "Cap", "/proc/self/status")
    found = capability_sets(bundle.call(*words).stdout)
    assert found["Eff"] & found["Prm"] & found["Bnd"] & 1
    assert found["Amb"] == found["Inh"] == 0
    done = bundle.call("exec", "-c", "CAP_NONE", container, "true", check=False)
    assert "unknown capability" in done.stderr


def test_limits_and_umask_of_a_further_process(bundle: Bundle) -> None:
    bundle.process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 123, "hard": 234}]
    bundle.process["user"]["umask"] = 0o27
    container, _ = bundle.start("sleep", "60")
    script = "ulimit -Sn; ulimit -Hn; umask"
    assert bundle.call("exec", container, "sh", "-c", script).stdout.split() == ["123", "234", "0027"]
    of_file: dict[str, Any] = {"args": ["sh", "-c", script]}
    assert exec_file(bundle, container, of_file).split() == ["123", "234", "0027"]
    of_file["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": 12, "hard": 23}]
    of_file["user"] = {"uid": 0, "gid": 0, "umask": 0}
    assert exec_file(bundle, container, of_file).split() == ["12", "23", "0000"]


def test_out_of_memory_score(bundle: Bundle) -> None:
    bundle.process["oomScoreAdj"] = 321
    container, pid = bundle.start("sleep", "60")
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "321\n"
    score = ["cat", "/proc/self/oom_score_adj"]
    assert bundle.call("exec", container, *score).stdout == "321\n"
    assert exec_file(bundle, container, {"args": score}) == "321\n"
    assert exec_file(bundle, container, {"args": score, "oomScoreAdj": 456}) == "456\n"


def scheduling(stat: str) -> tuple[int, int, int]:
    """(policy, real-time priority, nice) of a line of proc_pid_stat(5)."""
    fields = stat.rpartition(")")[2].split()
    return int(fields[38]), int(fields[37]), int(fields[16])


@pytest.mark.parametrize(
    ("section", "found"),
    [
        ({"policy": "SCHED_OTHER", "nice": 7}, (0, 0, 7)),
        ({"policy": "SCHED_BATCH", "nice": -3}, (3, 0, -3)),
        ({"policy": "SCHED_IDLE"}, (5, 0, 0)),
        ({"policy": "SCHED_FIFO", "priority": 2}, (1, 2, 0)),
        ({"policy": "SCHED_RR", "priority": 3, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}, (2, 3, 0)),
        (
            {
                "policy": "SCHED_DEADLINE",
                "runtime": 1_000_000,
                "deadline": 10_000_000,
                "period": 10_000_000,
                "flags": ["SCHED_FLAG_RECLAIM"],
            },
            (6, 0, 0),
        ),
    ],
    ids=lambda value: value.get("policy", "") if isinstance(value, dict) else "",
)
def test_scheduler(bundle: Bundle, section: dict[str, Any], found: tuple[int, int, int]) -> None:
    args = ["cat", "/proc/self/stat"]
    bundle.process["scheduler"] = section
    done = bundle.run(*args, check=False)
    if "operation not permitted" in done.stderr:
        pytest.skip("the host lets root have no such scheduling policy")
    assert scheduling(done.stdout) == found
    container, _ = bundle.start("sleep", "60")
    assert scheduling(bundle.call("exec", container, *args).stdout) == found
    assert scheduling(exec_file(bundle, container, {"args": args})) == found
    other = {"args": args, "scheduler": {"policy": "SCHED_BATCH", "nice": 9}}
    assert scheduling(exec_file(bundle, container, other)) == (3, 0, 9)


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ({"class": "IOPRIO_CLASS_IDLE"}, "idle"),
        ({"class": "IOPRIO_CLASS_BE", "priority": 6}, "best-effort: prio 6"),
        ({"class": "IOPRIO_CLASS_RT", "priority": 1}, "realtime: prio 1"),
    ],
)
def test_io_priority(bundle: Bundle, section: dict[str, Any], text: str) -> None:
    bundle.process["ioPriority"] = section
    ionice = ["/bin/busybox", "ionice"]
    assert bundle.run(*ionice).stdout.strip() == text
    container, _ = bundle.start("sleep", "60")
    assert bundle.call("exec", container, *ionice).stdout.strip() == text
    assert exec_file(bundle, container, {"args": ionice}).strip() == text
    other = {"args": ionice, "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 2}}
    assert exec_file(bundle, container, other).strip() == "best-effort: prio 2"


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the other domain has another name here")
def test_execution_domain(bundle: Bundle) -> None:
    machine = ("/bin/busybox", "uname", "-m")
    bundle.linux["personality"] = {"domain": "LINUX32"}
    assert bundle.run(*machine).stdout.strip() == "i686"
    container, _ = bundle.start("sleep", "60")
    assert bundle.call("exec", container, *machine).stdout.strip() == "i686"


def test_cpus_of_a_further_process(bundle: Bundle) -> None:
    last = max(os.sched_getaffinity(0))
    show = ["grep", "Cpus_allowed_list", "/proc/self/status"]

    def cpus(**affinity: str) -> str:
        process = {"args": show, "execCPUAffinity": affinity}
        return exec_file(bundle, container, process, check=False).split("\t")[-1].strip()

    everywhere = bundle.run(*show).stdout.split()[-1]
    bundle.process["execCPUAffinity"] = {"final": str(last)}
    assert bundle.run(*show).stdout.split()[-1] == everywhere, "it is not for the first process"
    container, _ = bundle.start("sleep", "60")
    assert bundle.call("exec", container, *show).stdout.split()[-1] == str(last)
    assert cpus(final=str(last)) == str(last)
    assert cpus(initial=str(last), final="0") == "0"
    assert cpus(initial=str(last)) == everywhere
    assert "error setting initial CPU affinity: invalid argument" in cpus(initial="8191")
    assert "error setting final CPU affinity: invalid argument" in cpus(initial="0", final="8191")


def test_the_caller_s_cpus_are_not_the_container_s(bundle: Bundle) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one CPU only")
    show = ["grep", "Cpus_allowed_list", "/proc/self/status"]
    everywhere = bundle.run(*show).stdout
    bundle.process["args"] = show

    def bind() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    assert bundle.call("run", bundle.new_id(), preexec_fn=bind).stdout == everywhere
    container, _ = bundle.start("sleep", "60")
    assert bundle.call("exec", container, *show, preexec_fn=bind).stdout == everywhere
    if Path("/sys/fs/cgroup/cpuset").is_dir() or Path("/sys/fs/cgroup/cgroup.controllers").exists():
        bundle.call("update", "--cpuset-cpus", "0", container)
        assert bundle.call("exec", container, *show, preexec_fn=bind).stdout.split()[-1] == "0"


def test_a_label_without_selinux(bundle: Bundle) -> None:
    if Path("/sys/fs/selinux/enforce").exists():
        pytest.skip("the host has SELinux")
    message = "selinux label is specified in config, but selinux is disabled or not supported"
    container, _ = bundle.start("sleep", "60")
    label = "system_u:system_r:container_t:s0"
    assert message in bundle.call("exec", "--process-label", label, container, "true", check=False).stderr
    assert message in exec_file(bundle, container, {"args": ["true"], "selinuxLabel": label}, check=False)
    bundle.process["selinuxLabel"] = label
    done = bundle.run("true", check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert {path.name for path in bundle.root.iterdir()} - {"@python"} == {container}

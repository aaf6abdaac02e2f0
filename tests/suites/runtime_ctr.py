"""What containerd's client is asked with a runtime: runs, further processes, states, measures."""

from __future__ import annotations

import json

from tests.suites.transcript import Transcript

IMAGE = "docker.io/library/busybox:latest"


def runs(ctr: Transcript) -> None:
    """Exit codes, streams, options, failures."""
    ctr(f"run --rm {IMAGE} r echo hello")
    ctr(f"run --rm {IMAGE} r sh -c 'echo out; sleep 0.1; echo err >&2; exit 3'")
    ctr(f"run --rm {IMAGE} r sh -c 'read x; echo got $x'", stdin=b"typed\n")
    ctr(f"run --rm {IMAGE} r sh -c 'kill -TERM $$'")
    ctr(f"run --rm {IMAGE} r nothing")
    ctr(f"run --rm {IMAGE} r /no/such")
    ctr(f"run --rm {IMAGE} r /etc")
    ctr(f"run --rm {IMAGE} r /etc/passwd")
    ctr(f"run --rm --cwd /etc/passwd {IMAGE} r true")
    ctr(
        f"run --rm --user nobody --env A=b --cwd /tmp --hostname hh {IMAGE} r "
        "sh -c 'id; pwd; echo $A; hostname'"
    )
    ctr(f"run --rm --read-only {IMAGE} r touch /x")
    ctr(f"run --rm --mount type=bind,src=/no/such,dst=/y {IMAGE} r true")
    ctr(f"run --rm --mount type=tmpfs,dst=/x,options=rw:size=64k {IMAGE} r grep /x /proc/mounts")
    ctr(f"run --rm --memory-limit 20000000 --cpus 0.5 {IMAGE} r cat /proc/self/cgroup")
    ctr(f"run --rm --cap-drop CAP_CHOWN {IMAGE} r chown 1 /etc/passwd")
    ctr(f"run --rm --seccomp {IMAGE} r grep Seccomp /proc/self/status")
    ctr(f"run --rm --privileged {IMAGE} r grep Cap /proc/self/status")
    ctr(f"run --rm --net-host {IMAGE} r ls /sys/class/net")
    ctr(f"run --rm --no-pivot {IMAGE} r true")
    ctr(f"run --rm --runc-root {ctr.work}/records {IMAGE} r true")
    ctr(f"run --rm --rootfs {ctr.work}/rootfs r ls /")
    ctr(f"run --rm --uidmap 0:1000:5000 --gidmap 0:1000:5000 --remap-labels {IMAGE} r cat /proc/self/uid_map")
    ctr.terminal(f"run --rm -t {IMAGE} r sh -c 'tty; read x; echo got $x; stty size'", b"word\n", "/pts")
    ctr("containers ls")


def tasks(ctr: Transcript) -> None:
    """The life of a container that stays."""
    ctr(f"run -d --memory-limit 50000000 {IMAGE} t sleep 100")
    ctr("tasks exec --exec-id e t sh -c 'echo out; sleep 0.1; echo err >&2; exit 4'")
    ctr("tasks exec --exec-id e --cwd /tmp --user nobody t sh -c 'pwd; id -un'")
    ctr("tasks exec --exec-id e t sh -c 'read x; echo got $x'", stdin=b"typed\n")
    ctr("tasks exec --exec-id e t nothing")
    ctr("tasks exec --exec-id e t /etc")
    ctr("tasks exec --exec-id e --cwd /no/such t true")
    ctr("tasks exec -d --exec-id e t sleep 50")
    ctr.note("tasks ps t", 0, str(len(ctr.quietly("tasks ps t").splitlines())))
    ctr("tasks kill -s KILL --exec-id e t")
    ctr.terminal("tasks exec -t --exec-id f t sh -c 'tty; read x; echo got $x'", b"word\n", "/pts")
    ctr("tasks pause t")
    ctr.note("tasks ls", 0, ctr.quietly("tasks ls").split()[-1])
    ctr("tasks exec --exec-id g t true")
    ctr("tasks resume t")
    ctr.note("tasks ls", 0, ctr.quietly("tasks ls").split()[-1])
    measured = _names(ctr.quietly("tasks metrics --format json t"))
    ctr.note("metrics", 0, " ".join(sorted(measured & _MEASURED)))
    ctr("tasks kill -s NOPE t")
    ctr("tasks rm t")
    ctr("tasks kill -s KILL t")
    ctr.until(lambda: ctr.quietly("tasks ls").split()[-1] == "STOPPED", "stopped")
    ctr("tasks exec --exec-id h t true")
    ctr("tasks rm t")
    ctr("tasks start -d t")
    ctr("tasks rm --force t")
    ctr("containers rm t")


# What is zero is left out, and the rest depends on what the kernel has just read.
_MEASURED = {"cpu", "memory", "pids", "usage", "limit", "current", "total", "throttling"}


def _names(document: str) -> set[str]:
    """The names of values in a JSON document, wherever."""
    found: set[str] = set()

    def walk(value: object) -> None:
        if isinstance(value, dict):
            found.update(value)
            for each in value.values():
                walk(each)
        elif isinstance(value, list):
            for each in value:
                walk(each)

    walk(json.loads(document))
    return found


SECTIONS = (runs, tasks)

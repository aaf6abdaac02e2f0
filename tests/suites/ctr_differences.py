"""Where `ctr` sees another answer here than from the real containerd, and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """One question of one section: the lines that only ours answers, and those of only the real one. `shim`:
    the answer is the shim's, so that the real daemon above our shim gives it too.
    """

    section: str
    question: str
    why: str
    ours: list[str]
    peer: list[str]
    shim: bool = False


_STATE = (
    "a state that forbids a call is FailedPrecondition here, as containerd's documentation of codes has it"
)

KNOWN: list[Difference] = [
    Difference(
        "daemon",
        "version",
        "it is another daemon, and says so",
        [" Version: 0.1.0", " Revision: buoy", "WARNING: version mismatch", "WARNING: revision mismatch"],
        [],
    ),
    Difference(
        "daemon",
        "plugins ls",
        "skip: missing here (docs/features.md); the real one lists none that its configuration disables. "
        "Its collector's schedule is left out of ours for this comparison. Rows are kept in SQLite. "
        "The real one's services behind the wire are no parts of their own here",
        [
            "io.containerd.grpc.v1 cri linux/amd64 skip",
            "io.containerd.grpc.v1 sandbox-controllers - skip",
            "io.containerd.internal.v1 opt - skip",
            "io.containerd.metadata.v1 sqlite - ok",
            "io.containerd.monitor.v1 cgroups linux/amd64 skip",
            "io.containerd.nri.v1 nri - skip",
            "io.containerd.runtime.v1 linux linux/amd64 skip",
            "io.containerd.sandbox.controller.v1 local - skip",
        ],
        [
            "io.containerd.gc.v1 scheduler - ok",
            "io.containerd.grpc.v1 sandbox-controllers - ok",
            "io.containerd.internal.v1 opt - ok",
            "io.containerd.metadata.v1 bolt - ok",
            "io.containerd.monitor.v1 cgroups linux/amd64 ok",
            "io.containerd.runtime.v1 linux linux/amd64 ok",
            "io.containerd.sandbox.controller.v1 local - ok",
            *(
                f"io.containerd.service.v1 {name}-service - ok"
                for name in (
                    *("containers", "content", "diff", "images", "introspection", "namespaces"),
                    *("snapshots", "tasks"),
                )
            ),
        ],
    ),
    Difference(
        "daemon",
        "plugins ls -d id==overlayfs",
        "missing here",
        [],
        ["Exports:", " root PLACE/lib/io.containerd.snapshotter.v1.overlayfs"],
    ),
    Difference(
        "daemon",
        "namespaces label foo a=b",
        "a label makes no namespace: what does not exist is NotFound",
        ["exit 1", 'ctr: namespace "foo": not found'],
        ["exit 0"],
    ),
    Difference(
        "images",
        "images ls =",
        "another parser's words",
        ["ctr: failed to list images: filters: parse error at 0 of '=': expected a field: invalid argument"],
        [
            "ctr: failed to list images: filters: parse error: [ >|=|< ]: expected field or quoted: "
            "invalid argument: invalid argument"
        ],
    ),
    Difference(
        "transfers",
        "images import --local=false /dev/null",
        "what a client sends is InvalidArgument",
        ["ctr: rpc error: code = InvalidArgument desc = unrecognized image format: invalid argument"],
        ["ctr: rpc error: code = Unknown desc = unrecognized image format"],
    ),
    Difference(
        "snapshots",
        "snapshots mounts /mnt s2",
        "the real one shows the name that it has for the snapshot inside",
        ["ctr: requested snapshot s2 not active or view: failed precondition"],
        [
            "ctr: failed to get active mount: requested snapshot NAMESPACE/7/s2 not active or view: "
            "failed precondition"
        ],
    ),
    Difference(
        "runs",
        "run --rm --runtime io.containerd.nothing.v9 docker.io/library/bb:1 r true",
        "what a client sends is InvalidArgument",
        [
            'ctr: failed to start shim: failed to resolve runtime path: runtime "io.containerd.nothing.v9" '
            'binary not installed "containerd-shim-nothing-v9": file does not exist: invalid argument'
        ],
        [
            'ctr: failed to start shim: failed to resolve runtime path: runtime "io.containerd.nothing.v9" '
            'binary not installed "containerd-shim-nothing-v9": file does not exist: unknown'
        ],
    ),
    Difference(
        "runs",
        "run --rm --runtime nothing docker.io/library/bb:1 r true",
        "an OCI runtime's name will do here",
        [
            "ctr: failed to start shim: failed to resolve runtime path: invalid runtime name nothing, "
            "correct runtime name should be either format like `io.containerd.runc.v1`, the name of an OCI "
            "runtime or a full path to the binary: invalid argument"
        ],
        [
            "ctr: failed to start shim: failed to resolve runtime path: invalid runtime name nothing, "
            "correct runtime name should be either format like `io.containerd.runc.v1` or a full path to the "
            "binary: unknown"
        ],
    ),
    Difference(
        "tasks",
        "tasks pause t (again)",
        _STATE,
        ["ctr: cannot pause a paused process: failed precondition"],
        ["ctr: cannot pause a paused container: unknown"],
        shim=True,
    ),
    Difference(
        "tasks",
        "tasks exec --exec-id g t true",
        _STATE,
        ["ctr: cannot exec in a paused process: failed precondition"],
        ["ctr: cannot exec in a paused state: unknown"],
        shim=True,
    ),
    Difference(
        "tasks",
        "tasks resume t (again)",
        _STATE,
        ["ctr: cannot resume a running process: failed precondition"],
        ["ctr: cannot resume a running process: unknown"],
        shim=True,
    ),
    Difference(
        "tasks",
        "tasks exec --exec-id h t true",
        _STATE,
        ["ctr: cannot exec in a stopped process: failed precondition"],
        ["ctr: cannot exec in a stopped state: unknown"],
        shim=True,
    ),
    Difference(
        "tasks",
        "tasks pause t (again) (again)",
        _STATE,
        ["ctr: cannot pause a stopped process: failed precondition"],
        ["ctr: cannot pause a stopped container: unknown"],
        shim=True,
    ),
    Difference(
        "tasks",
        "tasks metrics t",
        "nothing is measured of a task that has ended",
        [],
        [
            *("ID", "t", "", "METRIC", "memory.usage_in_bytes", "memory.limit_in_bytes", "memory.stat.cache"),
            *("cpuacct.usage", "cpuacct.usage_percpu", "pids.current", "pids.limit"),
        ],
        shim=True,
    ),
    Difference(
        "runtimes",
        "run --rm --runc-binary WORK/bin/nothing docker.io/library/bb:1 o true",
        "a program that is not there is told before anything is tried",
        [
            "ctr: failed to create shim task: unable to retrieve OCI runtime: exec: "
            '"WORK/bin/nothing": executable file not found in $PATH: invalid argument'
        ],
        ["ctr: failed to create shim task: OCI runtime create failed: ...: unknown"],
    ),
    Difference(
        "sandboxes",
        "sandboxes rm nothing",
        "the real one says so while it has no sandbox at all",
        [
            'time="TIME" level=error msg="failed to load sandbox nothing" '
            'error="sandbox \\"nothing\\": not found"'
        ],
        [
            'time="TIME" level=error msg="failed to load sandbox nothing" '
            'error="no sandbox buckets: not found"'
        ],
    ),
]

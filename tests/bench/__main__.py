"""`make bench`: Buoy and the engine at PEER_DOCKER_HOST, measured in one run, alternating; ratios of medians.

    PEER_DOCKER_HOST=unix:///path/docker.sock make bench [ROUNDS=20]

Without a peer, Buoy alone is measured. The runtime is measured by itself beside `runc` and `crun`
(`tests.bench.runtime`), containerd-svc beside containerd (`tests.bench.containerd`). ONLY=runtime,
ONLY=containerd, ONLY=logs and ONLY=many measure one part alone. Prints Markdown tables, times in
milliseconds, memory in MB of PSS (proc(5), smaps_rollup). Both engines are asked by the same docker client,
whose own time is in every figure but those of `tests.bench.many`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench import containerd, logs, many, runtime
from tests.bench.memory import pss
from tests.support.engine import DOCKER, SERVICES, Engine

PARALLEL = 50
_AT_A_TIME = 10
_SETTLED = 6.0  # seconds after which a shim of ours has let its log writer go
IMAGE = "buoy-bench"
PEER_PROCESSES = ("dockerd", "containerd")


class Side:
    """One engine under measurement, by its DOCKER_HOST."""

    def __init__(self, name: str, host: str) -> None:
        self.name = name
        self.host = host

    def docker(self, *arguments: str) -> str:
        done = subprocess.run([DOCKER, "-H", self.host, *arguments], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{self.name}: docker {' '.join(arguments)}: {done.stderr}")
        return done.stdout.strip()

    def timed(self, *arguments: str) -> float:
        began = time.perf_counter()
        self.docker(*arguments)
        return (time.perf_counter() - began) * 1000


def _named(wanted: Callable[[str, str], bool]) -> list[int]:
    """Pids whose (comm, command line) fit."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            comm = (entry / "comm").read_text().strip()
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if wanted(comm, line):
            found.append(int(entry.name))
    return found


def _commands(sides: list[Side], rounds: int) -> dict[str, list[list[float]]]:
    """Times of each single command, by name, one list a side."""
    kinds = {
        "run --rm, bridge": ("run", "--rm", IMAGE, "true"),
        "run --rm, none": ("run", "--rm", "--network", "none", IMAGE, "true"),
        "run --rm, host": ("run", "--rm", "--network", "host", IMAGE, "true"),
        "exec": ("exec", "buoy-bench-target", "true"),
    }
    times: dict[str, list[list[float]]] = {kind: [[] for _ in sides] for kind in kinds}
    for side in sides:
        side.docker("run", "-d", "--name", "buoy-bench-target", IMAGE, "sleep", "3600")
    try:
        for kind, arguments in kinds.items():
            for turn in range(rounds + 1):
                for index, side in enumerate(sides):
                    took = side.timed(*arguments)
                    if turn:  # the first turn warms both up
                        times[kind][index].append(took)
    finally:
        for side in sides:
            side.docker("rm", "-f", "buoy-bench-target")
    return times


def _parallel(side: Side) -> tuple[float, float, float]:
    """Milliseconds for PARALLEL `run -d` at once and for their `rm -f`; PSS in MB of one of their shims."""

    def start(_: int) -> str:
        return side.docker("run", "-d", IMAGE, "sleep", "3600")

    began = time.perf_counter()
    with ThreadPoolExecutor(PARALLEL) as pool:
        ids = list(pool.map(start, range(PARALLEL)))
    started = (time.perf_counter() - began) * 1000
    shim = _shim_memory(ids)
    began = time.perf_counter()
    side.docker("rm", "-f", *ids)
    return started, (time.perf_counter() - began) * 1000, shim


def _shim_memory(ids: list[str]) -> float:
    """The median in MB of the shims of these containers."""
    shims = _named(lambda comm, line: any(id in line for id in ids) and ("shim" in line))
    return statistics.median(pss(pid) for pid in shims) if shims else 0.0


def _published(side: Side) -> float:
    """The same for PARALLEL idle containers with a published port each, once all that begins has ended."""

    def start(_: int) -> str:
        return side.docker("run", "-d", "-p", "80", IMAGE, "sleep", "3600")

    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        ids = list(pool.map(start, range(PARALLEL)))
    time.sleep(_SETTLED)
    memory = _shim_memory(ids)
    side.docker("rm", "-f", *ids)
    return memory


_NETWORKS = ("bridge", "none")
_PUBLISHED = f"shim, {PARALLEL} idle with a published port"
# What the ratios are to be at most.
_WANTED = {
    "run --rm, bridge": 0.5,
    "exec": 0.6,
    f"{PARALLEL} run -d at once": 0.5,
    _PUBLISHED: 0.6,
    "256 MB of lines printed, json-file": 0.3,
    "256 MB of lines printed, local": 0.15,
    "docker logs of them, json-file": 0.2,
    "docker logs of them, local": 0.2,
    **{many.name_of(network): 0.35 for network in _NETWORKS},
}
_RUNTIME_WANTED = 1.0


def _row(name: str, values: list[float], unit: str, wanted: float | None = None) -> str:
    cells = [f"{value:.1f}" for value in values]
    if len(values) == 2:
        cells.append(f"{values[0] / values[1]:.2f}" if values[1] else "-")
        cells.append("" if wanted is None else f"{wanted:g}")
    return f"| {name} | {unit} | " + " | ".join(cells) + " |"


def _measure_runtime(rounds: int) -> None:
    print("| what | unit | Buoy | peer | ratio | wanted |\n|---|---|---|---|---|---|")
    for name, values in runtime.rows(rounds):
        print(_row(name, values, "ms", _RUNTIME_WANTED), flush=True)
    print()


def _measure_containerd(rounds: int) -> None:
    print("| what | unit | Buoy | peer | ratio | wanted |\n|---|---|---|---|---|---|")
    for name, unit, values in containerd.rows(rounds):
        print(_row(name, values, unit, containerd.WANTED.get(name)), flush=True)
    print()


def _measure_logs(sides: list[Side], archive: Path, rounds: int) -> None:
    lines = logs.add_lines(archive)
    for side in sides:
        side.docker("import", str(lines), logs.IMAGE)
    hosts = [side.host for side in sides]
    for name, lists in logs.rows(hosts, lambda index, words: sides[index].docker(*words), min(rounds, 3)):
        print(_row(name, [statistics.median(one) for one in lists], "ms", _WANTED[name]), flush=True)


def _measure_many(sides: list[Side], rounds: int) -> None:
    hosts = [side.host for side in sides]
    for network in _NETWORKS:
        name = many.name_of(network)
        values = many.medians(hosts, IMAGE, network, min(rounds, 3))
        print(_row(name, values, "ms", _WANTED[name]), flush=True)


def main() -> int:
    peer = os.environ.get("PEER_DOCKER_HOST", "")
    rounds = int(os.environ.get("ROUNDS", "20"))
    only = os.environ.get("ONLY", "")
    if only in ("", "runtime"):
        _measure_runtime(rounds)
    if only in ("", "containerd"):
        _measure_containerd(rounds)
    if only in ("runtime", "containerd"):
        return 0
    engine = Engine()
    try:
        engine.up()
        engine.import_busybox(IMAGE)
        sides = [Side("Buoy", engine.host)]
        if peer:
            sides.append(Side("peer", peer))
            sides[1].docker("import", str(engine.state / "busybox.tar"), IMAGE)
        heads = [side.name for side in sides] + (["ratio", "wanted"] if peer else [])
        print("| what | unit | " + " | ".join(heads) + " |")
        print("|---|---|" + "---|" * len(heads))
        if only in ("", "logs"):
            _measure_logs(sides, engine.state / "busybox.tar", rounds)
        if only in ("", "many"):
            _measure_many(sides, rounds)
        if only in ("logs", "many"):
            return 0
        for kind, lists in _commands(sides, rounds).items():
            medians = [statistics.median(one) for one in lists]
            print(_row(kind, medians, "ms", _WANTED.get(kind)), flush=True)
        together = [[_parallel(side) for side in sides] for _ in range(3)]
        for column, (name, unit) in enumerate(
            (
                (f"{PARALLEL} run -d at once", "ms"),
                (f"rm -f of {PARALLEL}", "ms"),
                ("shim, 50 running", "MB PSS"),
            )
        ):
            values = [
                statistics.median(turn[index][column] for turn in together) for index in range(len(sides))
            ]
            print(_row(name, values, unit, _WANTED.get(name)), flush=True)
        published = [_published(side) for side in sides]
        print(_row(_PUBLISHED, published, "MB PSS", _WANTED[_PUBLISHED]), flush=True)
        daemons = [sum(pss(engine.pid(name)) for name in SERVICES)]
        if peer:
            daemons.append(sum(pss(pid) for pid in _named(lambda comm, _: comm in PEER_PROCESSES)))
        print(_row("daemons, idle", daemons, "MB PSS"))
    finally:
        engine.purge()
    return 0


if __name__ == "__main__":
    sys.exit(main())

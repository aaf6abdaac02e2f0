"""`make bench`, the runtime's rows: `runc-bin` beside `runc` and `crun`, on one bundle, alternating.

PEER_RUNC and PEER_CRUN name the peers; without them, those on PATH are taken. All get the same minimal
bundle: a static busybox, `runc spec`'s config with `true` as its program. A peer that refuses is named with
its reason, and the rows beside the other are measured all the same.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from linux.interpreter import remove_mounts
from runc_bin.libcontainer import spec_document

from tests.support.busybox import find_busybox
from tests.support.hierarchies import in_full_view

AT_ONCE = 100
OURS = str(Path(sys.executable).parent / "runc-bin")
HERE = str(Path(__file__).resolve().parents[2])
_NULL = subprocess.DEVNULL
# crun takes a host for a v1 one, which it serves, when no v2 tree is mounted.
_LEGACY = """
shift
umount /sys/fs/cgroup/unified 2>/dev/null && rmdir /sys/fs/cgroup/unified
exec "$@"
"""

Row = tuple[str, list[float]]


class Refused(Exception):
    """A runtime ended with an error, which this holds."""


class Side:
    """One runtime, with a root of its own."""

    def __init__(self, binary: str, folder: Path, config: Path) -> None:
        self.binary = binary
        self.root = folder / f"root-{Path(binary).name}"
        self._bundle = config
        self._errors = folder / f"errors-{Path(binary).name}"
        self._count = 0

    def start(self, *words: str, bundle: Path | None = None) -> subprocess.Popen[bytes]:
        command = [self.binary, "--root", str(self.root), *words]
        # A file, since a detached container keeps it.
        with open(self._errors, "ab") as errors:
            return subprocess.Popen(
                command, cwd=bundle or self._bundle, stdin=_NULL, stdout=_NULL, stderr=errors
            )

    def call(self, *words: str, bundle: Path | None = None) -> None:
        self._end(self.start(*words, bundle=bundle))

    def new_id(self) -> str:
        self._count += 1
        return f"bench-{os.getpid()}-{Path(self.binary).name}-{self._count}"

    def run(self) -> None:
        self.call("run", self.new_id())

    def run_at_once(self) -> float:
        """Milliseconds of processor time that AT_ONCE runs took together."""
        before = _processor_time()
        for process in [self.start("run", self.new_id()) for _ in range(AT_ONCE)]:
            self._end(process)
        return _processor_time() - before

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.wait(timeout=120):
            raise Refused(f"{self.binary}: {self._errors.read_text(errors='replace').strip()[-400:]}")


def _processor_time() -> float:
    """Milliseconds of user and system time of all children that have ended; it minds other work little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) * 1000


def timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def alternating(rounds: int, *actions: Callable[[], float]) -> list[float]:
    """The median of each action; the first round warms all up."""
    times: list[list[float]] = [[] for _ in actions]
    for turn in range(rounds + 1):
        for index, action in enumerate(actions):
            took = action()
            if turn:
                times[index].append(took)
    return [statistics.median(one) for one in times]


@contextmanager
def bundles() -> Iterator[tuple[Path, Path, Path]]:
    """(work folder, bundle that runs `true`, bundle that sleeps) on one root."""
    with tempfile.TemporaryDirectory(prefix="buoy-bench-") as name:
        folder = Path(name)
        rootfs = folder / "rootfs"
        (rootfs / "bin").mkdir(parents=True)
        for empty in ("proc", "sys", "dev"):
            (rootfs / empty).mkdir()
        shutil.copy(find_busybox(), rootfs / "bin/busybox")
        for applet in ("true", "sleep"):
            (rootfs / "bin" / applet).symlink_to("busybox")
        made = []
        for kind, args in (("true", ["true"]), ("sleep", ["sleep", "3600"])):
            document = spec_document.default()
            document["process"].update(terminal=False, args=args)
            document["root"]["path"] = str(rootfs)
            (folder / kind).mkdir()
            (folder / kind / "config.json").write_text(json.dumps(document))
            made.append(folder / kind)
        try:
            yield folder, made[0], made[1]
        finally:
            for mounts in folder.glob("root-*/@python"):
                remove_mounts(str(mounts))


def _exec_rows(ours: Side, peer: Side, sleep: Path, rounds: int) -> list[float]:
    ids = {side: side.new_id() for side in (ours, peer)}
    try:
        for side, container in ids.items():
            side.call("run", "--detach", container, bundle=sleep)
        return alternating(
            rounds,
            *(
                lambda side=side, container=container: timed(lambda: side.call("exec", container, "true"))
                for side, container in ids.items()
            ),
        )
    finally:
        for side, container in ids.items():
            with suppress(Refused):
                side.call("delete", "--force", container)


def peer(name: str) -> str | None:
    """The path of the runtime to compare with: PEER_<NAME>, or `name` on PATH; None when there is none."""
    found = shutil.which(os.environ.get(f"PEER_{name.upper()}", name))
    if found is None:
        print(f"(no {name}: set PEER_{name.upper()} to its path, or install it)", flush=True)
    return found


def _beside_runc(runc: str, rounds: int) -> Iterator[Row]:
    with bundles() as (folder, bundle, sleep):
        ours, theirs = Side(OURS, folder, bundle), Side(runc, folder, bundle)
        yield (
            "runc-bin run, beside runc",
            alternating(rounds, lambda: timed(ours.run), lambda: timed(theirs.run)),
        )
        yield "runc-bin exec, beside runc", _exec_rows(ours, theirs, sleep, rounds)
        name, several = f"{AT_ONCE} runc-bin run at once, beside runc", max(3, rounds // 5)
        yield name, alternating(several, lambda: timed(ours.run_at_once), lambda: timed(theirs.run_at_once))
        yield f"{name}, processor time", alternating(several, ours.run_at_once, theirs.run_at_once)


def _beside_crun(rounds: int) -> Iterator[Row]:
    """What `tests.bench.beside_crun` measures, in a process whose view of control groups crun accepts."""
    with tempfile.TemporaryDirectory(prefix="buoy-bench-") as place:
        words = (f"{place}/cgroups", sys.executable, "-m", "tests.bench.beside_crun", str(rounds))
        with subprocess.Popen(in_full_view(_LEGACY, *words), cwd=HERE, stdout=subprocess.PIPE) as process:
            assert process.stdout
            for line in process.stdout:
                name, values = json.loads(line)
                yield name, values
        if process.returncode:
            raise Refused("its process failed")


def rows(rounds: int) -> Iterator[Row]:
    """Name and [ours, the peer's] medians in milliseconds of each row whose peer is there."""
    runc, crun = peer("runc"), peer("crun")
    for name, found, measured in (
        ("runc", runc, _beside_runc(runc or "", rounds)),
        ("crun", crun, _beside_crun(rounds)),
    ):
        if found is None:
            continue
        try:
            yield from measured
        except (Refused, subprocess.TimeoutExpired) as error:
            print(f"(no more figures beside {name}: {error})", flush=True)

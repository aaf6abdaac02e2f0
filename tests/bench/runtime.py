"""`make bench`, the runtime's rows: `runc-bin` beside `runc` and `crun`, on one bundle, alternating.

PEER_RUNC and PEER_CRUN name the peers; without them, those on PATH are taken. All get the same minimal
bundle: a static busybox, `runc spec`'s config with `true` as its program.
"""

from __future__ import annotations

import json
import os
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

AT_ONCE = 100
OURS = str(Path(sys.executable).parent / "runc-bin")
_NULL = subprocess.DEVNULL


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

    def run_at_once(self) -> None:
        for process in [self.start("run", self.new_id()) for _ in range(AT_ONCE)]:
            self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.wait(timeout=120):
            raise Refused(f"{self.binary}: {self._errors.read_text(errors='replace').strip()[-400:]}")


class _WarmFork:
    """`warm_fork` as a side: a container's life in children of a process that has loaded the runtime."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        words = [sys.executable, "-m", "tests.bench.warm_fork", str(folder / "root-warm")]
        here = str(Path(__file__).resolve().parents[2])
        self._process = subprocess.Popen(
            words,
            cwd=bundle,
            env={**os.environ, "PYTHONPATH": here},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self) -> float:
        """Milliseconds of one life, by its own clock."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the warm process died")
        return float(line)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=30)


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def _alternating(rounds: int, *actions: Callable[[], float]) -> list[float]:
    """The median of each action; the first round warms all up."""
    times: list[list[float]] = [[] for _ in actions]
    for turn in range(rounds + 1):
        for index, action in enumerate(actions):
            took = action()
            if turn:
                times[index].append(took)
    return [statistics.median(one) for one in times]


@contextmanager
def _bundles() -> Iterator[tuple[Path, Path, Path]]:
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
        return _alternating(
            rounds,
            *(
                lambda side=side, container=container: _timed(lambda: side.call("exec", container, "true"))
                for side, container in ids.items()
            ),
        )
    finally:
        for side, container in ids.items():
            with suppress(Refused):
                side.call("delete", "--force", container)


def rows(rounds: int) -> Iterator[tuple[str, list[float]]]:
    """Name and [ours, the peer's] medians in milliseconds of each row whose peer is there."""
    runc = shutil.which(os.environ.get("PEER_RUNC", "runc"))
    crun = shutil.which(os.environ.get("PEER_CRUN", "crun"))
    for name, found in (("runc", runc), ("crun", crun)):
        if found is None:
            print(f"(no {name}: set PEER_{name.upper()} to its path, or install it)", flush=True)
    with _bundles() as (folder, bundle, sleep):
        ours = Side(OURS, folder, bundle)
        if runc is not None:
            peer = Side(runc, folder, bundle)
            yield (
                "runc-bin run, beside runc",
                _alternating(rounds, lambda: _timed(ours.run), lambda: _timed(peer.run)),
            )
            yield "runc-bin exec, beside runc", _exec_rows(ours, peer, sleep, rounds)
            several = max(3, rounds // 5)
            yield (
                f"{AT_ONCE} runc-bin run at once, beside runc",
                _alternating(several, lambda: _timed(ours.run_at_once), lambda: _timed(peer.run_at_once)),
            )
        if crun is not None:
            rival = Side(crun, folder, bundle)
            warm = _WarmFork(folder, bundle)
            try:
                yield (
                    "a container in a warm fork, beside crun run",
                    _alternating(rounds, warm.run, lambda: _timed(rival.run)),
                )
            except Refused as error:  # crun does not run on every cgroup set-up
                print(f"(no figure beside crun: {error})", flush=True)
            finally:
                warm.close()

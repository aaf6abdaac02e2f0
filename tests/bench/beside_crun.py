"""The runtime's rows beside crun: what a shim does in forks of a warm process, beside crun's whole commands.

    python -m tests.bench.beside_crun ROUNDS

PEER_CRUN names crun. Prints a JSON line for each row: its name, and the medians in milliseconds. To be run
where crun accepts the view of control groups.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

from tests.bench.runtime import HERE, Refused, Side, alternating, bundles, peer, timed


class Warm:
    """`warm_fork` as a side: a container's life in children of a process that has loaded the runtime."""

    def __init__(self, folder: Path, bundle: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.warm_fork", str(folder / "root-warm")],
            cwd=bundle,
            env={**os.environ, "PYTHONPATH": HERE},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, word: str) -> float:
        """Have one thing done; the milliseconds of it, by the warm process's own clock."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise Refused("the warm process died")
        return float(line)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=30)


def _life(folder: Path, bundle: Path, crun: Side, rounds: int) -> list[float]:
    with closing(Warm(folder, bundle)) as warm:
        return alternating(rounds, lambda: warm.ask("life"), lambda: timed(crun.run))


def _exec(folder: Path, sleep: Path, crun: Side, rounds: int) -> list[float]:
    kept = crun.new_id()
    try:
        crun.call("run", "--detach", kept, bundle=sleep)
        with closing(Warm(folder, sleep)) as warm:
            return alternating(
                rounds, lambda: warm.ask("exec"), lambda: timed(lambda: crun.call("exec", kept, "true"))
            )
    finally:
        with suppress(Refused):
            crun.call("delete", "--force", kept)


def _print(name: str, medians: list[float]) -> None:
    print(json.dumps([name, medians]), flush=True)


def main() -> None:
    rounds, binary = int(sys.argv[1]), peer("crun")
    assert binary is not None
    with bundles() as (folder, bundle, sleep):
        crun = Side(binary, folder, bundle)
        try:
            _print("a life in a warm fork, beside crun run", _life(folder, bundle, crun, rounds))
            _print("exec in a warm fork, beside crun exec", _exec(folder, sleep, crun, rounds))
        except Refused as error:
            raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()

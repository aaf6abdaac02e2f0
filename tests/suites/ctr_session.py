"""`ctr` driven through one script against one daemon, within namespaces of their own; what it answered, as
JSON.

`python -m tests.suites.ctr_session ours|peer|shim TOOLS WORK` is called as process 1 of new pid, mount and
network namespaces: whatever it started and mounted ends with it. TOOLS is a folder list as in PATH that has
`ctr`, and for `peer` and `shim` containerd, a shim and runc. WORK gets `transcript.json`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from launcher.busybox_image import busybox_image_tar, busybox_rootfs_tar

from tests.daemon.containerd.world import running
from tests.suites import ctr_script
from tests.suites.real_daemons import end, prepare, run, start_containerd
from tests.suites.transcript import SECONDS, Transcript

# Each daemon's containers have a containerd namespace, and so a control group, of their own.
NAMESPACES = {"ours": "ctr-ours", "peer": "ctr-peer", "shim": "ctr-shim"}


class Session(Transcript):
    """One daemon's answers."""

    def __init__(self, address: str, namespace: str, tools: str, work: Path) -> None:
        super().__init__([str(shutil.which("ctr", path=tools)), "-a", address, "-n", namespace], work)

    def silently(self, line: str) -> None:
        """Run `ctr` and note its exit code and complaint only: its progress depends on time."""
        done = subprocess.run(
            self.words(line),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=SECONDS,
            env=self.environment,
            check=False,
        )
        self.note(line, done.returncode, done.stderr)

    @contextlib.contextmanager
    def watching(self, last: str) -> Iterator[None]:
        """Note the events of a block, up to the one that has the words `last`."""
        process = subprocess.Popen(
            [*self.command, "events"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=self.environment,
        )
        lines: list[str] = []
        ended = threading.Event()

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if last in line:
                    ended.set()

        threading.Thread(target=read, daemon=True).start()
        # The client does not say when it is subscribed: a label is set until it tells of it.
        while not lines:
            self._touch()
        before = len(lines)
        yield
        assert ended.wait(SECONDS), f"no {last} among {lines}"
        process.kill()
        process.wait()
        self.note("events", 0, "".join(line for line in lines[before:] if "/namespaces/" not in line))

    def _touch(self) -> None:
        subprocess.run(
            [*self.command[:-2], "namespaces", "label", self.command[-1], f"t={time.time_ns()}"],
            capture_output=True,
            env=self.environment,
            check=False,
        )

    def until_state(self, container: str, state: str) -> None:
        """Wait until the task of a container is in a state."""

        def is_so() -> bool:
            rows = [line.split() for line in self.quietly("tasks ls").splitlines()]
            return [row[2] for row in rows if row and row[0] == container] == [state]

        self.until(is_so, f"{container} {state}")


def _show_runtimes(tools: str, work: Path) -> None:
    """Put runc and crun, where TOOLS has them, below one folder, each noting that it was called."""
    (work / "bin").mkdir()
    for name in ("runc", "crun"):
        program = shutil.which(name, path=tools)
        if program:
            script = work / "bin" / name
            script.write_text(f'#!/bin/sh\n: >{work}/called-{name}\nexec {program} "$@"\n')
            script.chmod(0o755)


# The collector runs unasked between no two questions.
_OUR_CONFIG = 'version = 2\ndisabled_plugins = ["io.containerd.gc.v1.scheduler"]\n'


def main(kind: str, tools: str, folder: str) -> None:
    """Start the daemon, play the script, write the transcript."""
    work = Path(folder)
    prepare(work)
    _show_runtimes(tools, work)
    busybox_image_tar(work / "image.tar", "docker.io/library/bb:1")
    busybox_rootfs_tar(work / "rootfs.tar")
    (work / "rootfs").mkdir()
    run("tar", "-C", str(work / "rootfs"), "-xf", str(work / "rootfs.tar"))
    session = partial(Session, namespace=NAMESPACES[kind], tools=tools, work=work)
    try:
        if kind != "ours":
            place = work / "daemon"
            place.mkdir()
            sections = ctr_script.SECTIONS if kind == "peer" else ctr_script.SHIM_SECTIONS
            _play(session(address=start_containerd(tools, place, log=work / "daemon.log")), place, sections)
        else:
            asyncio.run(_ours(session, work))
    finally:
        end(NAMESPACES[kind])


async def _ours(session: Callable[..., Session], work: Path) -> None:
    (work / "ours.toml").write_text(_OUR_CONFIG)
    async with running(work, config=str(work / "ours.toml")) as world:
        try:
            await asyncio.to_thread(
                lambda: _play(session(address=world.address), world.dir, ctr_script.SECTIONS)
            )
        finally:
            shutil.copy(world.log, work / "daemon.log")


def _play(session: Session, place: Path, sections: Sequence[ctr_script.Section]) -> None:
    (session.work / "place").write_text(str(place))
    try:
        ctr_script.play(session, sections)
    finally:
        (session.work / "transcript.json").write_text(json.dumps(session.answers))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main(*sys.argv[1:])

"""Calls of a shim's program: `start` and `delete` of containerd's contract (its docs/runtime-v2.md)."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import errdefs


async def call_shim(
    words: Sequence[str],
    *,
    folder: Path,
    timeout: float,
    stdin: bytes = b"",
    environment: Mapping[str, str] | None = None,
) -> bytes:
    """Run a shim's command line in the folder of its bundle; what it printed. timeout in seconds.

    Raises Unavailable when it fails, DeadlineExceeded; it is killed then.
    """
    what = f"{Path(words[0]).name} {words[-1]}"

    # In a thread: a process of uvloop's inherits ends of its own pipes, and hands them on to the shim that it
    # leaves behind, so that they never end.
    def run() -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            list(words),
            cwd=folder,
            env=environment,
            input=stdin,
            capture_output=True,
            start_new_session=True,
            timeout=timeout,
            check=False,
        )

    try:
        done = await asyncio.get_running_loop().run_in_executor(None, run)
    except subprocess.TimeoutExpired:
        raise errdefs.DeadlineExceeded(f"{what}: no end in {timeout:g} s") from None
    except OSError as error:
        raise errdefs.Unavailable(f"{what}: {error.strerror}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()
        raise errdefs.Unavailable(f"{what}: exit {done.returncode}: {said}")
    return done.stdout

"""A command-line client driven through a script: what it was asked, and what it answered."""

from __future__ import annotations

import contextlib
import os
import pty
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

SECONDS = 20


def until(holds: Callable[[], object], what: Callable[[], str]) -> None:
    """Poll; AssertionError with what `what` says after SECONDS."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


class Transcript:
    """One client's answers, in order: section, what was asked, the exit code, what was printed: on standard
    output first, then on standard error.

    `command`: the words before those of each question. `added`: words that are put behind a question's first
    word or two, by these; a question is noted without them.
    """

    def __init__(
        self, command: Sequence[str], work: Path, added: Mapping[str, Sequence[str]] | None = None
    ) -> None:
        self.work = work
        self.answers: list[tuple[str, str, int, str]] = []
        self.environment = {**os.environ, "HOME": str(work)}
        self._section = ""
        self.command = list(command)
        self._added = added or {}

    def section(self, name: str) -> None:
        """The name of what follows."""
        self._section = name

    def words(self, line: str) -> list[str]:
        """The whole command of a question."""
        words = shlex.split(line)
        verb = 2 if " ".join(words[:2]) in self._added else 1
        added = self._added.get(" ".join(words[:verb]), ())
        return [*self.command, *words[:verb], *added, *words[verb:]]

    def __call__(self, line: str, *, stdin: bytes = b"", sort: bool = False) -> str:
        """Run the client with the words of a line; what it printed. `sort`: the order of lines means
        nothing.
        """
        done = subprocess.run(
            self.words(line),
            input=stdin,
            capture_output=True,
            timeout=SECONDS,
            env=self.environment,
            check=False,
        )
        text = (done.stdout + done.stderr).decode(errors="replace")
        if sort:
            text = "\n".join(sorted(text.splitlines()))
        self.note(line, done.returncode, text)
        return text

    def note(self, what: str, code: int, text: str) -> None:
        """Add an answer that was got otherwise."""
        self.answers.append((self._section, what, code, text))

    def quietly(self, line: str) -> str:
        """Run the client without noting what it says; its standard output."""
        return self.raw(line).decode(errors="replace")

    def raw(self, line: str) -> bytes:
        """The same, as bytes."""
        return subprocess.run(
            self.words(line), capture_output=True, timeout=SECONDS, env=self.environment, check=False
        ).stdout

    def terminal(self, line: str, typed: bytes, after: str) -> None:
        """Run the client on a terminal and type once it has shown `after`."""
        leader, follower = pty.openpty()
        process = subprocess.Popen(
            self.words(line),
            stdin=follower,
            stdout=follower,
            stderr=follower,
            env=self.environment,
            start_new_session=True,
        )
        os.close(follower)
        seen = b""
        written = False
        with contextlib.suppress(OSError):  # EIO: the last follower is closed
            while data := os.read(leader, 4096):
                seen += data
                if not written and after.encode() in seen:
                    os.write(leader, typed)
                    written = True
        os.close(leader)
        code = process.wait(SECONDS)
        self.note(line, code, seen.decode(errors="replace").replace("\r\n", "\n"))

    @contextlib.contextmanager
    def piped(self, line: str) -> Iterator[subprocess.Popen[bytes]]:
        """The client beside what follows, with a pipe to its input; noted when the block ends."""
        process = subprocess.Popen(
            self.words(line),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.environment,
        )
        try:
            yield process
            output, _ = process.communicate(timeout=SECONDS)
            self.note(line, process.returncode, output.decode(errors="replace"))
        finally:
            process.kill()

    def until(self, holds: Callable[[], object], what: str) -> None:
        """Poll."""
        until(holds, lambda: what)

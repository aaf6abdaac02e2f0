"""`docker run -it` typed into through a real pseudo-terminal: echo, size, detach, attach again, exit code."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.engine import DOCKER, Engine

pytestmark = [pytest.mark.root]


class Terminal:
    """A docker client on a pseudo-terminal; `expect` waits for text, `type` sends keys."""

    def __init__(self, engine: Engine, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.resize(24, 80)
        self.process = subprocess.Popen(
            [DOCKER, "-H", engine.host, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.seen = ""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def expect(self, pattern: str, timeout: float = 15) -> str:
        """Read until `pattern` matches; what was read up to its end is consumed and returned."""
        deadline = time.monotonic() + timeout
        while not (found := re.search(pattern, self.seen)):
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} not seen in {self.seen!r}"
            if select.select([self.master], [], [], left)[0]:
                try:
                    self.seen += os.read(self.master, 65536).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"ended before {pattern!r}: {self.seen!r}") from None
        text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return text

    def end(self) -> int:
        """The client's exit code; what it still prints is read so that it can end."""
        deadline = time.monotonic() + 15
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"the client did not end; seen {self.seen!r}"
            if select.select([self.master], [], [], 0.05)[0]:
                try:
                    self.seen += os.read(self.master, 65536).decode(errors="replace")
                except OSError:
                    break
        return self.process.wait(5)


@contextmanager
def terminal(engine: Engine, *arguments: str) -> Iterator[Terminal]:
    made = Terminal(engine, *arguments)
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
        made.process.wait()
        os.close(made.master)


def test_shell(engine: Engine) -> None:
    with terminal(engine, "run", "-it", "--name", "term", "busybox", "sh") as shell:
        shell.expect(r"# ")
        shell.type(b"echo $((6*7))\n")
        shell.expect(r"\r\n42\r\n")
        shell.type(b"stty size\n")
        shell.expect(r"\r\n24 80\r\n")
        shell.resize(50, 132)
        shell.process.send_signal(28)  # SIGWINCH, as a terminal emulator's resize makes the kernel send
        deadline = time.monotonic() + 10
        while True:
            shell.type(b"stty size\n")
            if "50 132" in shell.expect(r"\r\n\d+ \d+\r\n"):
                break
            assert time.monotonic() < deadline
        shell.type(b"\x10\x11")
        assert shell.end() == 0
    assert engine.inspect("term")["State"]["Running"]
    with terminal(engine, "attach", "term") as again:
        again.type(b"echo back $((2+3))\n")
        again.expect(r"back 5\r\n")
        # Detach keys that arrive apart, with something else between two tries.
        again.type(b"\x10")
        again.type(b"x\x7f")
        again.type(b"echo on $((1+1))\n")
        again.expect(r"on 2\r\n")
        again.type(b"exit 9\n")
        assert again.end() == 9
    assert engine.inspect("term")["State"]["ExitCode"] == 9


def test_two_clients_see_the_same(engine: Engine) -> None:
    engine.out("run", "-dit", "--name", "term", "busybox", "sh")
    with terminal(engine, "attach", "term") as first, terminal(engine, "attach", "term") as second:
        time_limit = time.monotonic() + 10
        while True:  # an attach says nothing when it is there
            first.type(b"echo both $((20+3))\n")
            try:
                second.expect(r"both 23\r\n", timeout=1)
                break
            except AssertionError:
                assert time.monotonic() < time_limit
        first.expect(r"both 23\r\n")
        second.type(b"exit 4\n")
        assert first.end() == 4
        assert second.end() == 4


def test_exec_shell(engine: Engine) -> None:
    engine.out("run", "-d", "--name", "term", "busybox", "sleep", "300")
    with terminal(engine, "exec", "-it", "term", "sh") as shell:
        shell.expect(r"# ")
        shell.type(b"tty; exit 3\n")
        shell.expect(r"/dev/pts/\d+\r\n")
        assert shell.end() == 3


def test_piped_input_reaches_its_end(engine: Engine) -> None:
    data = os.urandom(300_000).hex()
    done = engine.docker("run", "-i", "--rm", "busybox", "cat", input=data)
    assert done.returncode == 0
    assert done.stdout == data
    done = engine.docker("run", "-i", "--rm", "busybox", "wc", "-c", input="abc")
    assert done.stdout.strip() == "3"
    engine.out("run", "-d", "--name", "term", "busybox", "sleep", "300")
    assert engine.docker("exec", "-i", "term", "cat", input=data).stdout == data


def test_streams_stay_apart(engine: Engine) -> None:
    done = engine.docker("run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2; exit 6")
    assert (done.returncode, done.stdout, done.stderr) == (6, "out\n", "err\n")

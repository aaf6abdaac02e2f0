"""The standard streams of one process: what the request's fields ask for, the descriptors, the copying.

The shim keeps its ends non-blocking and copies on its event loop. Output that has nowhere to go at the moment
(a named pipe that nobody drains) stays in the process's pipe, as containerd has it; output to the log and to
attached clients is taken at once, unless the disk has fallen behind: then it waits there for a moment, and is
dropped when that does not help (see disk_writer). See docs/contracts.md, "Stdio fields".
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

import errdefs
from linux.fds import receive_fds

from shim_svc.bundle import check_socket_path, remove_file
from shim_svc.logger import Logger
from shim_svc.sinks import Discard, FifoSink, FileSink, Sink

CHUNK = 64 * 1024
_OUTPUTS = ("stdout", "stderr")


@dataclass(frozen=True)
class Target:
    """One stdio field. kind: null, fifo, file, binary or attach; path: absolute, empty for null. words: the
    arguments of a program.
    """

    kind: str
    path: str = ""
    words: tuple[str, ...] = ()


def parse_target(field: str, *, stdin: bool = False) -> Target:
    """Read one stdio field; InvalidArgument for what is none."""
    if not field:
        return Target("null")
    scheme, separator, path = field.partition("://")
    if not separator:
        scheme, path = "fifo", field
    if scheme not in ("fifo", "file", "binary", "attach") or (stdin and scheme in ("file", "binary")):
        raise errdefs.InvalidArgument(f"unknown STDIO scheme {scheme}")
    words: tuple[str, ...] = ()
    if scheme == "binary":
        path, words = _program(path)
    if not os.path.isabs(path):
        raise errdefs.InvalidArgument(f"stdio path {field!r} is not absolute")
    if scheme == "attach":
        check_socket_path(path)
    return Target(scheme, path, words)


def _program(text: str) -> tuple[str, tuple[str, ...]]:
    """The path and arguments of a program, `/path?key=value&…`: each key and its first value are two."""
    path, _, query = text.partition("?")
    values: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        values.setdefault(key, value)
    if "\0" in (whole := unquote(path) + "".join(values) + "".join(values.values())):
        raise errdefs.InvalidArgument(f"a byte of zero in {whole!r}")
    return unquote(path), tuple(word for pair in values.items() for word in pair)


@dataclass(frozen=True)
class Stdio:
    """The stdio fields of a Create or Exec request, checked."""

    stdin: Target
    stdout: Target
    stderr: Target
    terminal: bool

    @classmethod
    def parse(cls, stdin: str, stdout: str, stderr: str, terminal: bool) -> Stdio:
        """InvalidArgument for unknown schemes, and for attach fields that name different sockets. A logger
        named by stdout takes stderr too, as containerd has it.
        """
        out, err = parse_target(stdout), parse_target(stderr)
        if out.kind == "binary" and not stderr and not terminal:
            err = out
        if "binary" in (out.kind, err.kind) and err not in (out, Target("null")):
            raise errdefs.InvalidArgument("stdout and stderr go to one logger")
        stdio = cls(parse_target(stdin, stdin=True), out, err, terminal)
        if len({target.path for target in stdio._all() if target.kind == "attach"}) > 1:
            raise errdefs.InvalidArgument("stdio fields name different attach sockets")
        return stdio

    def _all(self) -> tuple[Target, Target, Target]:
        return self.stdin, self.stdout, self.stderr

    @property
    def attach_socket(self) -> str:
        """The attach socket's path; empty when none is named."""
        return next((target.path for target in self._all() if target.kind == "attach"), "")

    @property
    def logger(self) -> tuple[str, ...]:
        """The program that takes the output, and its arguments; empty when there is none."""
        return (self.stdout.path, *self.stdout.words) if self.stdout.kind == "binary" else ()


class Input:
    """The write end of the process's stdin. What it does not take yet is kept; sources pause meanwhile."""

    def __init__(self, fd: int, *, terminal: bool) -> None:
        self._fd = fd
        self._terminal = terminal
        self._pending = bytearray()
        self._closing = False
        self._resume: list[Callable[[], None]] = []

    @property
    def open(self) -> bool:
        """Whether anybody may still write."""
        return self._fd >= 0 and not self._closing

    def write(self, data: bytes) -> None:
        """Write, or keep. What comes after the process has closed its stdin is dropped."""
        if not self.open or not data:
            return
        self._pending += data
        self._flush()

    def when_drained(self, resume: Callable[[], None]) -> bool:
        """False when more may be written now; else `resume` will be called once when it may."""
        if not self._pending:
            return False
        self._resume.append(resume)
        return True

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending and self._fd >= 0:
            try:
                count = os.write(self._fd, self._pending[:CHUNK])
            except BlockingIOError:
                loop.add_writer(self._fd, self._flush)
                return
            except OSError:  # EPIPE, or EIO of a terminal: nobody reads any more
                self._pending.clear()
                self._shut()
                break
            del self._pending[:count]
        if self._fd >= 0:
            loop.remove_writer(self._fd)
            if self._closing:
                self._shut()
        resume, self._resume = self._resume, []
        for call in resume:
            call()

    def _shut(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_writer(self._fd)
            if not self._terminal:  # a terminal's descriptor belongs to its output
                os.close(self._fd)
            self._fd = -1

    def end(self) -> None:
        """Close stdin once everything is written. A terminal stays open: its end of input is a key."""
        if self._terminal or not self.open:
            return
        self._closing = True
        if not self._pending:
            self._shut()

    def abandon(self) -> None:
        """Close at once and drop what is left; the process is over."""
        self._pending.clear()
        self._shut()
        resume, self._resume = self._resume, []
        for call in resume:
            call()


class _Output:
    """Copies one descriptor of the process into its sinks until it ends."""

    def __init__(
        self, fd: int, sink: Sink, ended: Callable[[], None], before_close: Callable[[], None] | None
    ) -> None:
        self.fd = fd
        self._sink = sink
        self._ended = ended
        self._before_close = before_close
        self._paused = False
        asyncio.get_running_loop().add_reader(fd, self._readable)

    def _readable(self) -> bool:
        """Copy one chunk; False when there is none now or no more at all."""
        if self.fd < 0 or self._paused:
            return False
        try:
            data = os.read(self.fd, CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:  # EIO: the last process with the terminal open is gone, pty(7)
                raise
            data = b""
        if not data:
            self.close()
            return False
        if not self._sink.write(data):
            self._paused = True
            asyncio.get_running_loop().remove_reader(self.fd)
        return True

    def resume(self) -> None:
        """The sink takes data again."""
        if self.fd >= 0 and self._paused:
            self._paused = False
            asyncio.get_running_loop().add_reader(self.fd, self._readable)

    def drain(self, most: int = 1024, most_paused: int = 32) -> None:
        """Copy what is there now, at most so many chunks, and fewer into a sink that asks for a pause."""
        while most and most_paused:
            paused, self._paused = self._paused, False
            more = self._readable()
            if self._paused:
                most_paused -= 1
            elif paused and self.fd >= 0:
                asyncio.get_running_loop().add_reader(self.fd, self._readable)
            if not more:
                return
            most -= 1

    def close(self) -> None:
        if self.fd >= 0:
            if self._before_close is not None:
                self._before_close()
            asyncio.get_running_loop().remove_reader(self.fd)
            os.close(self.fd)
            self.fd = -1
            self._sink.close()
            self._ended()


def _nonblocking(fd: int) -> None:
    os.set_blocking(fd, False)


class ProcessIO:
    """All descriptors of one process's streams, from before its runtime call until it is deleted.

    sink_of: makes the sink of an attach:// output stream (the log, the clients). console: where a console
    socket may be bound. logger: the program that takes the output, if that is so. Steps: `open` before the
    runtime call, `started` after its success, `close` at the end, `finish`.
    """

    def __init__(
        self,
        stdio: Stdio,
        *,
        console: str,
        sink_of: Callable[[str, Callable[[], None]], Sink],
        owner: tuple[int, int],
        logger: Logger | None,
    ) -> None:
        self.stdio = stdio
        self._logger = logger
        self.input: Input | None = None
        self.ended = asyncio.Event()
        """Set when every output stream has ended."""
        self._sink_of = sink_of
        self._owner = owner
        self._outputs: dict[str, _Output] = {}
        self._fifos: list[FifoSink] = []
        self._files: list[FileSink] = []
        self._parents: dict[str, int] = {}
        self._children: list[int] = []
        self._console_path = console
        self._console: socket.socket | None = None
        self._master = -1
        self._size: tuple[int, int] | None = None
        self._fifo_input = -1
        self._fifo_hold = -1

    async def open(self) -> tuple[tuple[int, int, int], str]:
        """Make pipes or the console socket, and have the logger ready; returns descriptors for the runtime
        call and the socket's path. Internal or DeadlineExceeded when the logger is not.
        """
        if self._logger is not None:
            await self._logger.start()
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self._children.append(null)
        if self.stdio.terminal:
            check_socket_path(self._console_path)
            self._console = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            remove_file(self._console_path)
            self._console.bind(self._console_path)
            self._console.listen(1)
            return (null, null, null), self._console_path
        fds = [null, null, null]
        for index, name in enumerate(("stdin", *_OUTPUTS)):
            if getattr(self.stdio, name).kind == "null":
                continue
            read_end, write_end = os.pipe2(os.O_CLOEXEC)
            child, parent = (read_end, write_end) if name == "stdin" else (write_end, read_end)
            fds[index] = child
            self._children.append(child)
            self._parents[name] = parent
            os.set_blocking(parent, False)
            os.fchown(child, *self._owner)
        return (fds[0], fds[1], fds[2]), ""

    def started(self) -> None:
        """The process has its streams: begin to copy. Internal when no console came."""
        self._close_children()
        if self._console is not None:
            self._accept_console()
            self._parents = {"stdin": self._master, "stdout": self._master}
            if self._size is not None:
                self.resize(*self._size)
        if self.stdio.stdin.kind != "null":
            self.input = Input(self._parents["stdin"], terminal=self.stdio.terminal)
            if self.stdio.stdin.kind == "fifo":
                self._open_fifo_input(self.stdio.stdin.path)
        before_close = self._forget_master if self._master >= 0 else None
        for name in _OUTPUTS:
            if name in self._parents:
                self._outputs[name] = _Output(
                    self._parents[name], self._sink(name), self._output_ended, before_close
                )
        self._parents = {}
        if not self._outputs:
            self.ended.set()

    def _sink(self, name: str) -> Sink:
        target: Target = getattr(self.stdio, name)

        def resume() -> None:
            if name in self._outputs:
                self._outputs[name].resume()

        if target.kind == "fifo":
            fifo = FifoSink(target.path, resume)
            self._fifos.append(fifo)
            return fifo
        if target.kind == "file":
            file = FileSink(target.path, resume)
            self._files.append(file)
            return file
        if self._logger is not None:
            return self._logger.sink(name, resume)
        if target.kind == "attach":
            return self._sink_of(name, resume)
        return Discard()

    def _forget_master(self) -> None:
        """The terminal's descriptor, which input and output share, is about to be closed."""
        self._master = -1
        if self.input is not None:
            self.input.abandon()

    def _output_ended(self) -> None:
        if all(output.fd < 0 for output in self._outputs.values()):
            self.ended.set()

    def _accept_console(self) -> None:
        assert self._console is not None
        self._console.settimeout(5.0)  # the runtime has ended, what it sent is there
        try:
            connection, _ = self._console.accept()
            with connection:
                connection.settimeout(5.0)
                _, fds = receive_fds(connection, 4096, 1)
        except OSError as error:
            raise errdefs.Internal(f"failed to retrieve console master: {error}") from error
        finally:
            self._close_console()
        if len(fds) != 1:
            raise errdefs.Internal("failed to retrieve console master: no descriptor came")
        self._master = fds[0]
        _nonblocking(self._master)

    def _close_console(self) -> None:
        if self._console is not None:
            self._console.close()
            self._console = None
            remove_file(self._console_path)

    def _open_fifo_input(self, path: str) -> None:
        # Held open for writing, so that the end comes by CloseIO only, as containerd's own shim has it.
        self._fifo_input = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._fifo_hold = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        asyncio.get_running_loop().add_reader(self._fifo_input, self._fifo_readable)

    def _fifo_readable(self) -> None:
        assert self.input is not None
        loop = asyncio.get_running_loop()
        try:
            data = os.read(self._fifo_input, CHUNK)
        except BlockingIOError:
            return
        if not data:
            self._close_fifo_input()
            self.input.end()
            return
        self.input.write(data)
        if self.input.when_drained(self._resume_fifo):
            loop.remove_reader(self._fifo_input)

    def _resume_fifo(self) -> None:
        if self._fifo_input >= 0:
            asyncio.get_running_loop().add_reader(self._fifo_input, self._fifo_readable)

    def _close_fifo_input(self) -> None:
        if self._fifo_input >= 0:
            asyncio.get_running_loop().remove_reader(self._fifo_input)
            os.close(self._fifo_input)
            self._fifo_input = -1

    def close_stdin(self) -> None:
        """CloseIO: the process's stdin ends when what has been sent is written."""
        if self._fifo_hold >= 0:
            os.close(self._fifo_hold)
            self._fifo_hold = -1
        elif self.input is not None:
            self.input.end()

    def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in cells; before the process runs it is kept until then. No terminal:
        nothing.
        """
        self._size = (width, height)
        if self._master >= 0:
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def drain(self) -> None:
        """Copy what the process has written so far, without waiting."""
        for output in list(self._outputs.values()):
            output.drain()

    async def flush(self) -> None:
        """Wait until what has been copied is in the files that the fields name."""
        for file in self._files:
            await file.writer.flush()

    def _close_children(self) -> None:
        for fd in self._children:
            os.close(fd)
        self._children = []

    def close(self) -> None:
        """Let go of everything; output that has not come by now is lost. May be called at any step, and
        twice.
        """
        self._close_children()
        self._close_console()
        for fd in self._parents.values():
            if fd >= 0:
                os.close(fd)
        self._parents = {}
        self._close_fifo_input()
        if self._fifo_hold >= 0:
            os.close(self._fifo_hold)
            self._fifo_hold = -1
        if self.input is not None:
            self.input.abandon()
        for output in self._outputs.values():
            output.close()
        for fifo in self._fifos:
            fifo.abandon()
        for file in self._files:
            file.writer.close()
        if self._logger is not None:
            self._logger.close()
        self.ended.set()

    async def finish(self) -> None:
        """Behind `close`: wait until the logger has done its work, if there is one, but not for ever."""
        if self._logger is not None:
            await self._logger.finish()

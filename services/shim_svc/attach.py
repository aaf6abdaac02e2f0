"""Clients of one process's streams. The shim has been handed their sockets and speaks the stream itself.

Output goes out as frames of Docker's 8-byte header (stream number, three zeros, length u32 big-endian) or
raw. A client that does not read keeps its own backlog (`spill`) and holds up nobody; when the backlog is
full, the client is dropped. Input goes to the process, and is not read while the process does not take it.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
import struct
from collections.abc import Callable

from container_log.reader import Format, LogOptions
from pb.buoy.attach.v1 import Attach

from shim_svc.detach import DetachKeys, parse_keys
from shim_svc.logs import ContainerLog
from shim_svc.replay import Replay
from shim_svc.spill import Spill
from shim_svc.stdio import Input

_log = logging.getLogger(__name__)

_CHUNK = 64 * 1024
_LINGER = 10.0  # seconds in which a client that has got everything is to close its side
_HEADER = struct.Struct(">BxxxI")
_NUMBER = {"stdout": 1, "stderr": 2}


class Client:
    """One attached connection. `closed` is called once when it is over."""

    def __init__(
        self,
        attach: Attach,
        sock: socket.socket,
        *,
        terminal: bool,
        spill: Spill,
        replayed: ContainerLog | None,
        closed: Callable[[Client], None],
    ) -> None:
        self._attach = attach
        self._sock = sock
        self._terminal = terminal
        self._spill = spill
        self._replay: Replay | None = None
        self._closed = closed
        self._keys = DetachKeys(parse_keys(attach.detach_keys) if terminal else b"")
        self._input: Input | None = None
        self._input_over = False
        self._reading = False
        self._writing = False
        self._finishing = False
        self._linger: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        if not attach.stdin:
            self._read(True)
        if replayed is not None:
            self._begin_replay(replayed)
        elif not attach.stream:
            self.finish()

    # Output

    @property
    def behind(self) -> bool:
        """Whether the process should pause for a moment, for its backlog is being moved to the disk."""
        return self._spill.behind

    def send(self, stream: str, data: bytes) -> None:
        """Output of the process, as it comes."""
        if not self._finishing:
            self._put(stream, data)

    def _begin_replay(self, log: ContainerLog) -> None:
        """Send what the log holds, by a child; what comes meanwhile waits behind it."""
        options = LogOptions(
            stdout=self._attach.stdout, stderr=self._attach.stderr, multiplexed=self._attach.multiplexed
        )
        try:
            self._replay = Replay(log, options, self._sock, self._replayed)
        except OSError as error:
            _log.warning("no process to replay the log with: %s", error)
            self.close()
            return
        if not self._spill.append(Format(options).of([*log.pending()])):
            self._drop()
        self._finishing = not self._attach.stream

    def _replayed(self, whole: bool) -> None:
        self._replay = None
        if whole:
            self._pump()
        else:
            self.close()

    def _drop(self) -> None:
        _log.warning("an attached client that does not read was dropped")
        self.close()

    def _put(self, stream: str, data: bytes) -> None:
        if not (self._attach.stdout if stream == "stdout" else self._attach.stderr) or not data:
            return
        header = _HEADER.pack(_NUMBER[stream], len(data)) if self._attach.multiplexed else b""
        sent = 0
        if not self._spill.size and self._replay is None:
            try:
                sent = self._sock.sendmsg([header, data], (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                pass
            except OSError:
                self.close()
                return
        if sent < len(header) + len(data):
            rest = (header + data)[sent:]
            if not self._spill.append(rest):
                self._drop()
            elif self._replay is None:
                self._write(True)

    def _pump(self) -> None:
        """Send the backlog; called whenever the socket takes bytes."""
        try:
            self._spill.send(self._sock)
        except BlockingIOError:
            self._write(True)
            return
        except OSError:
            self.close()
            return
        self._write(False)
        if self._finishing:
            self._half_close()

    def finish(self) -> None:
        """No output will come any more: send what is left, then end the connection."""
        if self._sock.fileno() < 0 or self._finishing:
            return
        self._finishing = True
        if self._replay is None and not self._spill.size:
            self._half_close()

    def _half_close(self) -> None:
        # Closing with unread input would make the kernel reset the connection, and the client lose output.
        if self._linger is not None or self._sock.fileno() < 0:
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close()
            return
        if self._input_over:
            self.close()
            return
        self._linger = asyncio.get_running_loop().call_later(_LINGER, self.close)
        self._read(True)

    # Input

    def begin_input(self, target: Input) -> None:
        """The process has its stdin: pass on what came with the request, then what comes."""
        if not self._attach.stdin or self._input is not None or self._sock.fileno() < 0:
            return
        self._input = target
        leading, self._attach.leading_input = self._attach.leading_input, b""
        if leading:
            self._take(leading)
        self._resume_input()

    def _resume_input(self) -> None:
        if self._sock.fileno() < 0 or self._input_over:
            return
        if self._input is not None and self._linger is None and self._input.when_drained(self._resume_input):
            self._read(False)
        else:
            self._read(True)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._end_of_input()
            self.close()
            return
        if not data:
            self._end_of_input()
        elif self._attach.stdin and not self._finishing:
            self._take(data)
            self._resume_input()

    def _take(self, data: bytes) -> None:
        assert self._input is not None
        data, detached = self._keys.feed(data)
        self._input.write(data)
        if detached:
            self.finish()

    def _end_of_input(self) -> None:
        if self._input_over:
            return
        self._input_over = True
        self._read(False)
        if self._linger is not None or _hung_up(self._sock):
            self.close()
        if self._attach.stdin and self._input is not None and not self._finishing:
            self._input.write(self._keys.rest())
            if self._attach.stdin_once and not self._terminal:
                self._input.end()
            else:
                self.finish()  # as Docker does: who can no longer type has left

    # Both

    def _read(self, wanted: bool) -> None:
        if wanted != self._reading and self._sock.fileno() >= 0 and not (wanted and self._input_over):
            self._reading = wanted
            loop = asyncio.get_running_loop()
            if wanted:
                loop.add_reader(self._sock.fileno(), self._readable)
            else:
                loop.remove_reader(self._sock.fileno())

    def _write(self, wanted: bool) -> None:
        if wanted != self._writing and self._sock.fileno() >= 0:
            self._writing = wanted
            loop = asyncio.get_running_loop()
            if wanted:
                loop.add_writer(self._sock.fileno(), self._pump)
            else:
                loop.remove_writer(self._sock.fileno())

    def close(self) -> None:
        """End the connection at once."""
        if self._sock.fileno() < 0:
            return
        self._read(False)
        self._write(False)
        if self._linger is not None:
            self._linger.cancel()
        if self._replay is not None:
            self._replay.stop()
        self._spill.close()
        self._sock.close()
        self._closed(self)


def _hung_up(sock: socket.socket) -> bool:
    """Whether the peer has closed both directions, so far as its kind of socket tells."""
    poller = select.poll()
    poller.register(sock, 0)
    return any(events & (select.POLLHUP | select.POLLERR) for _, events in poller.poll(0))


class _Stream:
    """The sink of one output stream."""

    def __init__(self, owner: Attachments, name: str) -> None:
        self._owner = owner
        self._name = name

    def write(self, data: bytes) -> bool:
        return self._owner._output(self._name, data)

    def close(self) -> None:
        self._owner._output_ended(self._name)


class Attachments:
    """The log and the clients of one process, from its Create or Exec until it is deleted.

    spill_folder: where backlogs may lie; None for memory.
    """

    def __init__(self, *, terminal: bool, log_file: ContainerLog | None, spill_folder: str | None) -> None:
        self._terminal = terminal
        self._log = log_file
        self._spill_folder = spill_folder
        self._clients: list[Client] = []
        self._seen: set[str] = set()
        self._input: Input | None = None
        self._over = False
        self._resume: list[Callable[[], None]] = []
        if log_file is not None:
            log_file.writer.on_room = self._room

    def sink(self, stream: str, resume: Callable[[], None]) -> _Stream:
        """Where the process's output stream goes. resume: called when it may go on after a pause."""
        self._resume.append(resume)
        return _Stream(self, stream)

    def _room(self) -> None:
        for resume in self._resume:
            resume()

    def add(self, attach: Attach, sock: socket.socket) -> None:
        """Take over a client. One whose attach_id is known is acknowledged, and its second descriptor closed.

        InvalidArgument for detach keys that are none.
        """
        if attach.attach_id in self._seen:
            sock.close()
            return
        if self._terminal:
            parse_keys(attach.detach_keys)
        if attach.attach_id:
            self._seen.add(attach.attach_id)
        client = Client(
            attach,
            sock,
            terminal=self._terminal,
            spill=Spill(self._spill_folder, self._room),
            replayed=self._log if attach.logs and self._log is not None and self._log.readable else None,
            closed=self._clients_remove,
        )
        if sock.fileno() < 0:
            return
        self._clients.append(client)
        if self._input is not None:
            client.begin_input(self._input)
        if self._over:
            client.finish()

    def _clients_remove(self, client: Client) -> None:
        if client in self._clients:
            self._clients.remove(client)
            asyncio.get_running_loop().call_soon(self._room)  # it may be the one that was waited for

    def begin_input(self, target: Input | None) -> None:
        """The process's stdin is there (None: it has none)."""
        self._input = target
        if target is not None:
            for client in list(self._clients):
                client.begin_input(target)

    def _output(self, stream: str, data: bytes) -> bool:
        room = self._log is None or self._log.write(stream, data)
        for client in list(self._clients):
            client.send(stream, data)
        return room and not any(client.behind for client in self._clients)

    def _output_ended(self, stream: str) -> None:
        if self._log is not None:
            self._log.finish(stream)

    def complain(self, text: str) -> None:
        """Tell the clients of a process that cannot start why, where they expect its output, as Docker
        does.
        """
        self._output("stdout", f"{text}\r\n".encode())

    def finish(self) -> None:
        """The process is over and its output complete: let the clients have the rest and go."""
        self._over = True
        for client in list(self._clients):
            client.finish()

    def close(self) -> None:
        """As `finish`; the clients that are left go on by themselves until they have everything."""
        self.finish()
        if self._log is not None:
            self._log.close()

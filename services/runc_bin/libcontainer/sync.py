"""The one channel between the process that makes a container and the container's first process.

A SEQPACKET socket pair; a packet is one letter and a payload.

    parent                                        init
      clone ───────────────────────────────────►
      state.json with the pid                     joins the control group, namespaces, mounts
      limits of the control group
      GO ──────────────────────────────────────►  waits for it before it makes devices
                                                  devices
            ◄──────────────────────────────────   HOOKS       (only with prestart or createRuntime hooks)
      runs them
      DONE ────────────────────────────────────►
                                                  pivot_root, console, user, capabilities, …
            ◄──────────────────────────────────   READY
      DONE ────────────────────────────────────►
                                                  seccomp; end of the stream; waits on the fifo
    or      ◄──────────────────────────────────   ERROR text

An exec has the same without hooks, and begins like this:

    parent                                        child, in the caller's pid namespace
      clone ───────────────────────────────────►
                                                  joins the control group and all namespaces
                                                  clones the process as its own sibling, and ends
            ◄──────────────────────────────────   BORN pid
      GO ──────────────────────────────────────►  taken by the process

With a new user namespace init waits for its ids before it touches anything of the container's:

      uid_map, gid_map
      MAPPED ──────────────────────────────────►  becomes root of the namespace

Where a user namespace is joined, or others beside it, `clone` is this (`passage`):

      clone ───────────────────────────────────►  a process between
                                                  joins the control group and the namespaces
                                                  clones init as its own sibling, and ends
            ◄──────────────────────────────────   BORN pid

What init may ask for after GO, before it makes its mounts, is drawn in `bind_sources`.

Where a seccomp profile names a listener, the talk about it is drawn in `seccomp_notify`.

Where systemd makes the control group, or has to move the child into it, the child waits for PLACED first of
all: its parent has had that done.

Until GO both work at once: what init does then dies with it. The device rules must be whole before it makes
devices, since the kernel asks them for mknod too. Until the last DONE init dies with its parent.

The end of the stream before READY means that the other side died; init
then ends itself, so that a killed parent leaves nothing half made.
"""

from __future__ import annotations

import _socket

from errdefs import Internal
from linux.fds import receive_fds, send_fds

_LARGEST = 1 << 16


class Message:
    """What a packet says."""

    PLACED = b"p"
    BORN = b"b"
    MAPPED = b"m"
    GO = b"g"
    SOURCES = b"s"
    HOOKS = b"h"
    DONE = b"d"
    READY = b"r"
    LISTENER = b"l"
    ERROR = b"e"


class Channel:
    """One end of the channel."""

    def __init__(self, sock: _socket.socket) -> None:
        self._sock = sock

    @staticmethod
    def pair() -> tuple[Channel, Channel]:
        """Both ends, closed on exec."""
        one, other = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        return Channel(one), Channel(other)

    def send(self, message: bytes, text: str = "") -> None:
        """Send one packet; BrokenPipeError when the other side is gone, never SIGPIPE."""
        packet = message + text.encode(errors="surrogateescape")[: _LARGEST - 1]
        self._sock.send(packet, _socket.MSG_NOSIGNAL)

    def receive(self) -> tuple[bytes, str] | None:
        """The next packet, or None at the end of the stream."""
        try:
            packet = self._sock.recv(_LARGEST)
        except ConnectionResetError:
            # The other side ended with a packet of ours unread. That is told once, before what it had sent.
            packet = self._sock.recv(_LARGEST)
        if not packet:
            return None
        return packet[:1], packet[1:].decode(errors="surrogateescape")

    def send_descriptor(self, message: bytes, text: str, fd: int) -> None:
        """Send one packet with a descriptor."""
        send_fds(self._sock, message + text.encode(), [fd])

    def receive_descriptor(self) -> tuple[bytes, str, int | None]:
        """The next packet and the descriptor that came along; empty at the end of the stream."""
        packet, found = receive_fds(self._sock, _LARGEST, 1)
        return packet[:1], packet[1:].decode(errors="surrogateescape"), found[0] if found else None

    def expect(self, message: bytes) -> None:
        """Wait for one packet that must be `message`; `Internal` otherwise."""
        got = self.receive()
        if got is None:
            raise Internal("the other side of the container's set-up went away")
        if got[0] != message:
            raise Internal(f"unexpected message {got[0]!r} while waiting for {message!r}")

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        self._sock.close()

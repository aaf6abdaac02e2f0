"""A reply's memory file: what killed processes sent through it arrives once and in order."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from dockerd_api.streams.cursor import ReplyFile


def socket_pair(kind: str) -> tuple[socket.socket, socket.socket]:
    if kind == "unix":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        return ours, server.accept()[0]


@pytest.mark.parametrize(("kind", "kills"), [("unix", "200"), ("tcp", "80")])
def test_bytes_are_exact_through_hundreds_of_kills(kind: str, kills: str) -> None:
    ours, theirs = socket_pair(kind)
    script = Path(__file__).with_name("kill_sender.py")
    with ours, theirs:
        sender = subprocess.Popen(
            [sys.executable, str(script), str(theirs.fileno()), kills, "7"], pass_fds=[theirs.fileno()]
        )
        try:
            theirs.close()
            ours.settimeout(60)
            with ours.makefile("rb") as lines:
                number = 0
                for line in lines:
                    if line.startswith(b"end "):
                        assert int(line.split()[1]) == number
                        break
                    assert line == b"line %d\n" % number
                    number += 1
                else:
                    pytest.fail("the stream ended early")
        finally:
            sender.kill() if sender.poll() is None and sys.exc_info()[0] else None
            assert sender.wait(20) == 0
    assert number > 1000


def test_position_and_bytes_change_together() -> None:
    file = ReplyFile.create({"kind": "k", "params": {"a": 1}})
    file.append(b"one", "1")
    again = ReplyFile.open(os.dup(file.fd))
    assert (again.length, again.position, again.finished) == (3, "1", False)
    assert again.description == {"kind": "k", "params": {"a": 1}}
    # Written but not committed: a process that was killed in between.
    os.pwrite(file.fd, b"lost", 16 * 4096 + 3)
    assert ReplyFile.open(os.dup(file.fd)).length == 3
    again.append(b"two", "2", finished=True)
    third = ReplyFile.open(os.dup(file.fd))
    assert (third.length, third.position, third.finished) == (6, "2", True)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        assert file.unsent == 3  # What this object knows of.
        assert third.send(theirs)
        assert ours.recv(100) == b"onetwo"
        assert third.unsent == 0


def test_sent_memory_is_given_back() -> None:
    file = ReplyFile.create({"kind": "k"})
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setblocking(False)
        for _ in range(64):
            file.append(bytes(256 * 1024), "")
            while not file.send(theirs):
                ours.recv(1 << 20)
    assert os.fstat(file.fd).st_blocks * 512 < 4 << 20


def test_what_is_no_reply_is_refused() -> None:
    fd = os.memfd_create("other")
    with pytest.raises(ValueError, match="not a reply"):
        ReplyFile.open(fd)
    os.close(fd)

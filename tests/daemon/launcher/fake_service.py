"""A service of the test's own: `fake_service.py` answers one word per connection on the socket it is passed.

Words: pid; fds (names and kinds of what was passed); store NAME; store-memory NAME TEXT; remove NAME; read
NAME; hang; barrier; mainpid (forks, and the child goes on as the main process); orphan (leaves a child in its
session); exit.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import sys
import time

from systemd import daemon

passed = daemon.listen_fds_with_names()
(listening,) = (socket.socket(fileno=fd) for fd, name in passed.items() if name == "fake.sock")
listening.setblocking(True)
held: list[socket.socket] = []


def main() -> None:
    if os.environ.get("FAKE_FAILS"):
        sys.exit("cannot go on: the test says so")
    daemon.notify("READY=1\nSTATUS=here")
    while True:
        connection, _ = listening.accept()
        with connection, connection.makefile("rw") as lines:
            words = lines.readline().split()
            lines.write(json.dumps(answer(words, connection)) + "\n")
            lines.flush()


def answer(words: list[str], connection: socket.socket) -> object:
    match words:
        case ["pid"]:
            return os.getpid()
        case ["fds"]:
            return sorted((name, "socket" if is_socket(fd) else "file") for fd, name in passed.items())
        case ["store", name]:
            kept = connection.dup()
            held.append(kept)
            daemon.notify(f"FDSTORE=1\nFDNAME={name}", fds=[kept.fileno()])
        case ["store-memory", name, text]:
            fd = os.memfd_create(name)
            os.write(fd, text.encode())
            daemon.notify(f"FDSTORE=1\nFDNAME={name}", fds=[fd])
            os.close(fd)
        case ["remove", name]:
            daemon.notify(f"FDSTOREREMOVE=1\nFDNAME={name}")
        case ["read", name]:
            return [
                os.pread(fd, 1000, 0).decode() for fd, passed_name in passed.items() if passed_name == name
            ]
        case ["hang"]:
            os.kill(os.getpid(), signal.SIGSTOP)
        case ["barrier"]:
            return barrier()
        case ["mainpid"]:
            parent = os.getpid()
            child = os.fork()
            if child:
                daemon.notify(f"MAINPID={child}")
                barrier()
                os._exit(0)
            while os.getppid() == parent:
                time.sleep(0.005)
            return os.getpid()
        case ["orphan"]:
            child = os.fork()
            if child == 0:
                time.sleep(300)
                os._exit(0)
            return child
        case ["exit"]:
            os._exit(3)
    return barrier()


def barrier() -> bool:
    """Whether the manager let go of the descriptor (sd_notify_barrier(3))."""
    read, write = os.pipe()
    daemon.notify("BARRIER=1", fds=[write])
    os.close(write)
    done = os.read(read, 1) == b""
    os.close(read)
    return done


def is_socket(fd: int) -> bool:
    return stat.S_ISSOCK(os.fstat(fd).st_mode)


main()

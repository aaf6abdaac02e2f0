"""An agent that answers the system calls of seccomp filters: seccomp_unotify(2)."""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from linux.fds import receive_fds

RECEIVE, SEND = 0xC0502100, 0xC0182101  # include/uapi/linux/seccomp.h
CONTINUE = 1

Answer = Callable[[int], tuple[int, int, int]]  # call number: (value, errno, flags)


def succeed(_number: int) -> tuple[int, int, int]:
    return 0, 0, 0


def go_on(_number: int) -> tuple[int, int, int]:
    return 0, 0, CONTINUE


class Agent:
    """Answers the calls of each filter whose descriptor comes in, until it is closed."""

    def __init__(self, path: Path, answer: Answer = succeed) -> None:
        self.states: list[dict[str, Any]] = []
        self.asked: list[tuple[int, int]] = []  # pid, call number
        self._answer = answer
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        poller.register(self._stop, select.POLLHUP)
        filters: list[int] = []
        while True:
            for fd, events in poller.poll():
                if fd == self._stop:
                    for known in filters:
                        os.close(known)
                    return
                if fd == self._socket.fileno():
                    filters.append(self._accept())
                    poller.register(filters[-1], select.POLLIN)
                elif events & select.POLLIN:
                    self._reply(fd)
                else:
                    poller.unregister(fd)

    def _accept(self) -> int:
        connection, _ = self._socket.accept()
        with connection:
            data, fds = receive_fds(connection, 1 << 16, 4)
            while more := connection.recv(1 << 16):
                data += more
        self.states.append(json.loads(data))
        assert len(fds) == 1
        return fds[0]

    def _reply(self, fd: int) -> None:
        notification = bytearray(80)
        try:
            fcntl.ioctl(fd, RECEIVE, notification)
        except FileNotFoundError:
            return  # it has been killed meanwhile
        cookie, pid, _flags, number = struct.unpack_from("=QIIi", notification)
        self.asked.append((pid, number))
        value, error, flags = self._answer(number)
        try:
            fcntl.ioctl(fd, SEND, struct.pack("=QqiI", cookie, value, -error, flags))
        except FileNotFoundError:
            return

    def close(self) -> None:
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        self._socket.close()

"""Numbered lines through a ReplyFile, by processes killed at random moments: SOCKET FD, KILLS, SEED."""

import os
import random
import signal
import socket
import sys
import time

from dockerd_api.streams.cursor import ReplyFile

LAST = b"end\n"


def send_lines(sock: socket.socket, fd: int) -> None:
    """Goes on where the process before was killed; never returns."""
    file = ReplyFile.open(fd)
    number = int(file.position or "0")
    while True:
        while file.unsent < 64 * 1024:
            lines = b"".join(b"line %d\n" % n for n in range(number, number + 7))
            number += 7
            file.append(lines, str(number))
            file.send(sock)
        file.send(sock)


def main() -> None:
    sock = socket.socket(fileno=int(sys.argv[1]))
    sock.setblocking(False)
    chance = random.Random(int(sys.argv[3]))
    file = ReplyFile.create({"kind": "test"})
    for _ in range(int(sys.argv[2])):
        pid = os.fork()
        if pid == 0:
            try:
                send_lines(sock, os.dup(file.fd))
            finally:
                os._exit(1)
        time.sleep(chance.uniform(0.0002, 0.004))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status), "the sender failed by itself"
    file = ReplyFile.open(file.fd)
    file.append(b"end %s\n" % file.position.encode(), file.position, finished=True)
    sock.setblocking(True)
    while not file.send(sock):
        pass


main()

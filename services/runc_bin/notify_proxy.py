"""Readiness of a container's program, told on to the service manager that started the runtime.

With `$NOTIFY_SOCKET` in the environment `create` and `run` give the container a socket of its own, and its
program another `$NOTIFY_SOCKET`; what it sends there is not passed on as it is: only that it is ready, and
which process is the service's main one. Source: sd_notify(3). Loaded only where the variable is set.
"""

from __future__ import annotations

import _socket
import os
import select

from errdefs import FailedPrecondition
from linux import fds

from runc_bin.contexts import suppress
from runc_bin.libcontainer import mount_options, state
from runc_bin.libcontainer.failures import step
from runc_bin.libcontainer.spec import Mount, Spec

VARIABLE = "NOTIFY_SOCKET"
_INSIDE = "/run/notify"
_NAME = "notify.sock"
_LARGEST = 4096
_AT_ONCE = 64  # messages: a program that sends on and on keeps us from nothing else
_BARRIER_SECONDS = 30.0


def with_socket(spec: Spec, root: str, container_id: str) -> Spec:
    """`spec` with the container's socket mounted, and named in the program's environment."""
    options = mount_options.parse(("bind", "nosuid", "noexec", "nodev", "ro"))
    mount = Mount(_INSIDE, "bind", state.notify_dir(root, container_id), options)
    process = spec.process
    if process is not None:
        process = process.replace(env=(*process.env, f"{VARIABLE}={_INSIDE}/{_NAME}"))
    return spec.replace(mounts=(*spec.mounts, mount), process=process)


class NotifyProxy:
    """The container's end of it, and the service manager's socket at `host`."""

    def __init__(self, root: str, container_id: str, host: str) -> None:
        """Make the container's socket. FailedPrecondition when the container was made without a place for
        one; OSError.
        """
        self._host = "\0" + host[1:] if host.startswith("@") else host
        try:
            folder = os.open(state.notify_dir(root, container_id), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise FailedPrecondition(
                f"{VARIABLE} is set, but was not when container {container_id} was created"
            ) from None
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
        try:
            with suppress(FileNotFoundError):
                os.unlink(_NAME, dir_fd=folder)  # a start that was killed has left it
            path = f"/proc/self/fd/{folder}/{_NAME}"  # the way there may be too long for an address
            self._socket.bind(path)
            os.chmod(path, 0o777)  # whoever the program runs as
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise
        finally:
            os.close(folder)

    def fileno(self) -> int:
        """What becomes readable with each message of the container's."""
        return self._socket.fileno()

    def close(self) -> None:
        """Listen no longer."""
        self._socket.close()

    def hears_ready(self) -> bool:
        """Take what messages there are, not without end; whether one said that the program is ready."""
        for _ in range(_AT_ONCE):
            try:
                message = self._socket.recv(_LARGEST)
            except BlockingIOError:
                break
            if any(line.startswith(b"READY=") for line in message.split(b"\n")):
                return True
        return False

    def wait(self, pidfd: int) -> bool:
        """Wait until the program is ready; False when the process of `pidfd` is over before."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        poller.register(pidfd, select.POLLIN)
        while not self.hears_ready():
            events = dict(poller.poll())
            if pidfd in events and self._socket.fileno() not in events:
                return False
        return True

    def tell(self, pid: int, *, settle: bool) -> None:
        """Tell the service manager that the service is ready, and that `pid` is its main process.

        With `settle` wait until it has read that, but not for ever: it looks at the sender, which may be over
        by then. Internal.
        """
        with step(f"unable to notify {self._host!r}"):
            client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
            try:
                client.connect(self._host)
                client.send(f"MAINPID={pid}\nREADY=1\n".encode())
                if settle:
                    _await_barrier(client)
            finally:
                client.close()


def _await_barrier(client: _socket.socket) -> None:
    """sd_notify_barrier(3): the other side closes what it gets once it has come to it."""
    reader, writer = os.pipe()
    try:
        fds.send_fds(client, b"BARRIER=1", [writer])
        os.close(writer)
        poller = select.poll()
        poller.register(reader, 0)
        poller.poll(_BARRIER_SECONDS * 1000)
    finally:
        os.close(reader)

"""Staying with a process until it ends: its terminal, its signals, its exit code."""

from __future__ import annotations

import _socket
import fcntl
import os
import select
from collections.abc import Callable, Iterator

from errdefs import BuoyError
from linux import fds, signals, syscalls

from runc_bin import contexts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from runc_bin.notify_proxy import NotifyProxy

# include/uapi/asm-generic/ioctls.h: our own terminal's size, the container's
_TIOCGWINSZ, _TIOCSWINSZ = 0x5413, 0x5414
_NOT_PASSED_ON = frozenset(
    (signals.SIGCHLD, signals.SIGPIPE, signals.SIGURG, signals.SIGKILL, signals.SIGSTOP)
)


class Foreground:
    """Collects signals from its making on, so that none is lost before the process is there."""

    def __init__(self, *, subreaper: bool) -> None:
        self._proxy: NotifyProxy | None = None
        self._warn: Callable[[str], None] = _discard
        self._terminal: tuple[_socket.socket, _socket.socket] | None = None
        self._wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        if subreaper:
            syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        signals.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        for number in signals.valid_signals() - _NOT_PASSED_ON:
            with contexts.suppress(OSError, ValueError):  # libc keeps a few for itself
                signals.signal(number, _note)
        signals.signal(signals.SIGCHLD, _note)

    def console(self) -> _socket.socket:
        """The socket that the master of the process's terminal is to be sent to."""
        import termios  # noqa: F401 - `wait` needs them, when nothing can be loaded any more
        import tty  # noqa: F401

        self._terminal = _socket.socketpair()
        return self._terminal[1]

    def notify(self, root: str, container_id: str, host: str, warn: Callable[[str], None]) -> None:
        """Tell the service manager behind the socket `host` once the container says that it is ready; the
        service's main process is this one, which stays. `warn` gets the text of a failure.
        """
        from runc_bin.notify_proxy import NotifyProxy

        self._proxy = NotifyProxy(root, container_id, host)
        self._warn = warn

    def _pass_readiness(self) -> bool:
        """Take what the container has said; whether there is more to wait for."""
        if self._proxy is None or not self._proxy.hears_ready():
            return True
        try:
            self._proxy.tell(os.getpid(), settle=False)
        except BuoyError as error:
            self._warn(error.message)
        self._proxy.close()
        self._proxy = None
        return False

    def wait(self, pid: int) -> int:
        """Pass signals and terminal data on until `pid` (a child) ends; its exit code, 128 + n after signal
        n.
        """
        master = self._take_master()
        pidfd = fds.open_pidfd(pid)
        try:
            with _raw_terminal(master):
                self._pump(pid, pidfd, master)
        finally:
            os.close(pidfd)
            if master is not None:
                os.close(master)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def _take_master(self) -> int | None:
        if self._terminal is None:
            return None
        ours, theirs = self._terminal
        theirs.close()
        _, received = fds.receive_fds(ours, 64, 1)
        ours.close()
        if not received:
            return None
        _copy_size(received[0])
        return received[0]

    def _pump(self, pid: int, pidfd: int, master: int | None) -> None:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.register(self._wake_read, select.POLLIN)
        if master is not None:
            poller.register(master, select.POLLIN)
            poller.register(0, select.POLLIN)
        notify = self._proxy.fileno() if self._proxy is not None else -1
        if self._proxy is not None:
            poller.register(notify, select.POLLIN)
        ended = False
        while True:
            # What the terminal still holds is read before we leave.
            events = dict(poller.poll(0 if ended else None))
            if self._wake_read in events:
                self._pass_signals(pid, master)
            if master is not None and master in events and not _copy(master, 1):
                poller.unregister(master)
                master = None
            if 0 in events and master is not None and not _copy(0, master):
                poller.unregister(0)
            if notify in events and not self._pass_readiness():
                poller.unregister(notify)
            if ended and (master is None or master not in events):
                return
            ended = ended or pidfd in events

    def _pass_signals(self, pid: int, master: int | None) -> None:
        for number in os.read(self._wake_read, 4096):
            if number == signals.SIGWINCH and master is not None:
                _copy_size(master)
            elif number not in _NOT_PASSED_ON:
                with contexts.suppress(ProcessLookupError):
                    os.kill(pid, number)
            elif number == signals.SIGCHLD:
                _reap_orphans(pid)


def _discard(_message: str) -> None:
    """Where warnings go as long as nobody has named another place."""


def _note(_number: int, _frame: object) -> None:
    """The wakeup descriptor says it all."""


def _reap_orphans(pid: int) -> None:
    """Take the exits of adopted processes, but leave `pid`'s for the end."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or found.si_pid == pid:
            return
        os.waitpid(found.si_pid, 0)


def _copy(source: int, destination: int) -> bool:
    """Copy what is there; False at the end of the source (EIO from a terminal whose other side is closed)."""
    try:
        data = os.read(source, 65536)
    except OSError:
        return False
    view = memoryview(data)
    while view:
        view = view[os.write(destination, view) :]
    return bool(data)


def _copy_size(master: int) -> None:
    """Give the terminal the size of ours, if we have one."""
    with contexts.suppress(OSError):
        size = fcntl.ioctl(0, _TIOCGWINSZ, bytes(8))
        fcntl.ioctl(master, _TIOCSWINSZ, size)


@contexts.contextmanager
def _raw_terminal(master: int | None) -> Iterator[None]:
    if master is None or not os.isatty(0):
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)

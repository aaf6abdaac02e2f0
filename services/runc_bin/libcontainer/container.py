"""What is done to a container that exists: start, signal, pause, look at, remove."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

from errdefs import Conflict, DeadlineExceeded, FailedPrecondition, Internal, NotFound
from linux import fds, signals
from linux.crashpoints import crashpoint

from runc_bin import contexts
from runc_bin.libcontainer import hooks, state
from runc_bin.libcontainer.cgroups import Manager
from runc_bin.libcontainer.state import State, oci_state

NOT_RUNNING = "container not running"
_KILL_SECONDS = 10.0


def manager_of(record: State) -> Manager:
    """The control group that a container's record names."""
    if not record.cgroup_paths:
        from runc_bin.libcontainer.cgroups.rootless import NoGroup

        return NoGroup(record.init_process_pid if state.init_is_alive(record) else 0)
    return Manager.from_paths(record.cgroup_paths, record.cgroup_unit, user=record.cgroup_unit_of_user)


def status(root: str, record: State) -> str:
    """`creating`, `created`, `running`, `paused` or `stopped`, from the kernel's facts and not from a
    stored word.
    """
    if not state.init_is_alive(record):
        return "stopped"
    with contexts.suppress(FileNotFoundError):
        if manager_of(record).frozen():
            return "paused"
    fifo = os.path.join(state.state_dir(root, record.id), state.EXEC_FIFO)
    return "created" if os.path.exists(fifo) else "running"


@contexts.contextmanager
def _init_pidfd(record: State) -> Iterator[int]:
    """A pidfd of the living init; FailedPrecondition when it is over. The start time rules out a reused
    pid.
    """
    try:
        pidfd = fds.open_pidfd(record.init_process_pid) if record.init_process_pid > 0 else -1
    except ProcessLookupError:
        pidfd = -1
    if pidfd < 0:
        raise FailedPrecondition(NOT_RUNNING)
    try:
        if not state.init_is_alive(record):
            raise FailedPrecondition(NOT_RUNNING)
        yield pidfd
    finally:
        os.close(pidfd)


def start(root: str, record: State, *, warn: hooks.Warn = hooks.say) -> None:
    """Let the program of a created container run. FailedPrecondition in any other state.

    When a `startContainer` hook fails the container is destroyed, and its error is raised; `poststart` hooks,
    which run once the program has been executed, are only warned of.
    """
    check_startable(root, record)
    wait_for_program = "poststart" in record.late_hooks
    try:
        open_fifo(root, record, until_executed=wait_for_program)
    except StartHookFailed:
        delete(root, record.id, force=True, warn=warn)
        raise
    if wait_for_program:
        _run_late_hooks(record, "poststart", "running", warn)


def check_startable(root: str, record: State) -> None:
    """FailedPrecondition unless the container is created and not started."""
    now = status(root, record)
    if now == "stopped":
        raise FailedPrecondition("cannot start a container that has stopped")
    if now == "running":
        raise FailedPrecondition("cannot start an already running container")
    if now != "created":
        raise FailedPrecondition(f"cannot start a container in the {now} state")


class StartHookFailed(Internal):
    """A `startContainer` hook has failed; init is gone, or about to be."""


def open_fifo(root: str, record: State, *, until_executed: bool = False) -> None:
    """Take the byte that init writes once somebody reads, or find that it died; then remove the fifo.

    `until_executed`: wait for the program too. Init leaves the fifo open where there are `poststart` hooks,
    so that its end is the exec (or init's own).
    """
    with opened_fifo(root, record) as (fifo, pidfd):
        poller = select.poll()
        poller.register(fifo, select.POLLIN)
        poller.register(pidfd, select.POLLIN)
        poller.poll()
        take_fifo(root, record, fifo)
        if until_executed:
            poller.unregister(pidfd)
            poller.poll()


@contexts.contextmanager
def opened_fifo(root: str, record: State) -> Iterator[tuple[int, int]]:
    """The fifo, which lets init go on as soon as it is open, and a pidfd of init. Once one of the two is
    readable `take_fifo` is due.
    """
    path = os.path.join(state.state_dir(root, record.id), state.EXEC_FIFO)
    # The pidfd comes first: a short program is over at once.
    with _init_pidfd(record) as pidfd:
        fifo = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        crashpoint("runc.start.opened")
        try:
            yield fifo, pidfd
        finally:
            os.close(fifo)


def take_fifo(root: str, record: State, fifo: int) -> None:
    """The second half of a start. Internal when init has died instead of writing, StartHookFailed with what
    it has written.
    """
    try:
        data = os.read(fifo, select.PIPE_BUF)
    except BlockingIOError:
        data = b""
    if not data:
        raise Internal("cannot start a container that has stopped")
    if data != state.STARTED:
        raise StartHookFailed(data.decode(errors="surrogateescape"))
    crashpoint("runc.start.released")
    with contexts.suppress(FileNotFoundError):
        os.unlink(os.path.join(state.state_dir(root, record.id), state.EXEC_FIFO))
    crashpoint("runc.start.fifo-removed")


def _run_late_hooks(record: State, kind: str, status: str, warn: hooks.Warn) -> None:
    wanted = hooks.from_record(record.late_hooks, kind)
    if wanted:
        seen = oci_state(record, status, record.init_process_pid if status == "running" else 0)
        hooks.run(wanted, kind, seen, folder=record.bundle, warn=warn)


def kill(record: State, number: int, *, everyone: bool = False) -> None:
    """Send a signal to init, or to every process of the container. FailedPrecondition when it is over.

    SIGKILL to a container without a pid namespace of its own goes to all: with its init the others would
    stay.
    """
    private = record.namespaces.get("pid") == ""
    manager = manager_of(record)
    if number == signals.SIGKILL and (everyone or not private):
        if not state.init_is_alive(record) and not manager.pids():
            raise FailedPrecondition(NOT_RUNNING)
        manager.kill_all()
        return
    if everyone:
        _signal_all(record, manager, number)
        return
    with _init_pidfd(record) as pidfd:
        try:
            fds.signal_pidfd(pidfd, number)
        except ProcessLookupError:
            raise FailedPrecondition(NOT_RUNNING) from None
        # A frozen process of cgroup v1 takes its SIGKILL only once it is thawed.
        if number == signals.SIGKILL and manager.frozen():
            manager.thaw()


def _signal_all(record: State, manager: Manager, number: int) -> None:
    pids = manager.pids()
    if not pids:
        raise FailedPrecondition(NOT_RUNNING)
    stays_as_it_is = manager.frozen() or not manager.paths
    if not stays_as_it_is:
        manager.freeze()  # so that no process is born unseen while the others get their signal
        crashpoint("runc.kill.frozen")
    try:
        for pid in manager.pids():
            with contexts.suppress(ProcessLookupError):
                os.kill(pid, number)
        crashpoint("runc.kill.signalled")
    finally:
        if not stays_as_it_is:
            manager.thaw()


def pause(root: str, record: State) -> None:
    """Freeze all processes. FailedPrecondition unless created or running."""
    now = status(root, record)
    if now not in ("created", "running"):
        raise FailedPrecondition(f"container not running: {now}" if now == "stopped" else f"container {now}")
    manager_of(record).freeze()
    crashpoint("runc.pause.frozen")


def resume(root: str, record: State) -> None:
    """Thaw all processes. FailedPrecondition unless paused."""
    if status(root, record) != "paused":
        raise FailedPrecondition("container not paused")
    manager_of(record).thaw()
    crashpoint("runc.resume.thawed")


def delete(root: str, container_id: str, *, force: bool = False, warn: hooks.Warn = hooks.say) -> None:
    """Remove what a container holds. Without `force` only one that has not started or has stopped.

    With `force` also what a crash left, and nothing when there is nothing. NotFound, Conflict (still
    running).
    """
    try:
        record = state.load_state(root, container_id)
    except NotFound:
        # A crash between the folder and its first record leaves a folder without one.
        state.remove_dir(root, container_id)
        if force:
            return
        raise
    now = status(root, record)
    if not force and now not in ("stopped", "created"):
        raise Conflict(f"cannot delete container {container_id} that is not stopped: {now}")
    if now != "stopped":
        with contexts.suppress(FailedPrecondition), _init_pidfd(record) as pidfd:
            if not record.cgroup_paths:
                _end_others(record)  # which are found by their init, as long as it is there
            with contexts.suppress(ProcessLookupError):
                fds.signal_pidfd(pidfd, signals.SIGKILL)
            _end_others(record)
            if not fds.has_exited(pidfd, _KILL_SECONDS):
                raise DeadlineExceeded("container init still running")
    else:
        _end_others(record)
    crashpoint("runc.delete.killed")
    destroy(root, record, warn=warn)


def delete_ended(root: str, container_id: str) -> bool:
    """`delete` of a container that has ended and left nothing behind, without waiting for anything.

    False, with the record still there, when there is more to do than that: `delete` is to be called.
    """
    record = state.load_state(root, container_id)
    manager = manager_of(record)
    if record.late_hooks or state.init_is_alive(record) or manager.frozen() or manager.pids():
        return False
    try:
        manager.destroy(timeout=0.0)
    except Conflict:
        return False
    crashpoint("runc.delete.cgroup-removed")
    state.remove_dir(root, record.id)
    return True


def _end_others(record: State) -> None:
    """Kill what else is in the container's cgroup; thaws it too, since frozen processes do not die on v1."""
    manager = manager_of(record)
    if manager.frozen() or manager.pids():
        manager.kill_all()


def destroy(root: str, record: State, *, warn: hooks.Warn = hooks.say) -> None:
    """Remove the cgroup, then the record; then run the `poststop` hooks, whose failures go to `warn`."""
    manager_of(record).destroy()
    crashpoint("runc.delete.cgroup-removed")
    state.remove_dir(root, record.id)
    crashpoint("runc.delete.record-removed")
    _run_late_hooks(record, "poststop", "stopped", warn)

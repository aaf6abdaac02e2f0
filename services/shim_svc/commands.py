"""What the command line of `shim-svc` does, behind its parsing. Errors are printed here, once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import errdefs
import runc_bin
from linux.fds import has_exited, open_pidfd
from pb.containerd.task.v2 import DeleteResponse

from shim_svc import cgroup, exit_record, mounts
from shim_svc.bundle import read_state, remove_file, start_answer, task_socket
from shim_svc.forks import reset_inherited
from shim_svc.journal import log_to
from shim_svc.notify import Notifier, listen_fds
from shim_svc.nursery import fork_shim, run_nursery
from shim_svc.process import check_identifier
from shim_svc.reaper import Reaper
from shim_svc.runtime import Runtime
from shim_svc.shim import ShimOptions, answers, bind
from shim_svc.signals import on_signals
from shim_svc.task_facts import as_time
from shim_svc.title import set_title

log = logging.getLogger(__name__)

_KILLED = 128 + signal.SIGKILL


def _fail(message: str) -> int:
    print(f"shim-svc: {message}", file=sys.stderr)
    return 1


def nursery(flags: Mapping[str, str]) -> int:
    """Be the nursery, on the socket that the service manager passes or on one of its own at -address."""
    journal = log_to(2, "nursery")
    reset_inherited()
    # The room that the shims' titles need is not to be seen.
    set_title("shim-svc nursery" + "".join(f" --{name} {value}" for name, value in flags.items()), "shim-svc")
    notifier = Notifier(os.environ)
    passed = [fd for fds in listen_fds(os.environ).values() for fd in fds]
    if passed:
        listener = socket.socket(fileno=passed[0])
    else:
        path = flags["address"].removeprefix("unix://")
        if answers(path):
            return _fail(f"a nursery serves {path} already")
        remove_file(path)
        listener = socket.socket(socket.AF_UNIX)
        try:
            os.fchmod(listener.fileno(), 0o600)
            listener.bind(path)
            listener.listen(1024)
        except OSError as error:
            return _fail(f"{path}: {error.strerror}")
    runc_bin.warm()
    return run_nursery(
        listener,
        sockets=flags["sockets"],
        runtime_root=flags["runtime-root"],
        notifier=notifier,
        journal=journal,
    )


def start(flags: Mapping[str, str]) -> int:
    """Fork a shim for the bundle in the working directory and print how to reach it, as JSON."""
    # A local import keeps the class of defaults with the command line that documents them.
    from shim_svc.__main__ import DEFAULT_RUNTIME_ROOT, DEFAULT_SOCKETS

    try:
        check_identifier("namespace", flags["namespace"])
        check_identifier("container id", flags["id"])
        sockets = flags.get("sockets", DEFAULT_SOCKETS)
        os.makedirs(sockets, mode=0o700, exist_ok=True)
        options = ShimOptions(
            namespace=flags["namespace"],
            id=flags["id"],
            bundle=os.getcwd(),
            sockets=sockets,
            runtime_root=flags.get("runtime-root", DEFAULT_RUNTIME_ROOT),
            debug="debug" in flags,
            containerd=flags.get("address", ""),
            events_address=os.environ.get("TTRPC_ADDRESS", ""),
        )
        answer = start_answer(options.address, os.environ)
        try:
            listener = bind(options)
        except errdefs.AlreadyExists:
            print(answer)
            return 0
        runc_bin.warm()
        gc.collect()
        gc.freeze()
        stderr = _log_of(Path(options.bundle))
        journal = log_to(stderr, "shim")
        reset_inherited()
        ready, write_end = os.pipe2(os.O_CLOEXEC)
        fork_shim(options, listener, write_end, journal=journal, cgroups=cgroup.delegated(), stderr=stderr)
        os.close(write_end)
        listener.close()
        if not os.read(ready, 32):
            return _fail("the shim ended while it started")
    except errdefs.BuoyError as error:
        return _fail(error.message)
    except OSError as error:
        return _fail(str(error))
    print(answer)
    return 0


def _log_of(bundle: Path) -> int:
    """Where a shim that containerd started logs to: the named pipe `log` that containerd reads, if there
    is one.
    """
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC
    path = bundle / "log"
    if path.is_fifo():
        with contextlib.suppress(OSError):  # nobody reads it
            return os.open(path, flags)
    return os.open("/dev/null", flags)


def delete(flags: Mapping[str, str]) -> int:
    """Clean up behind a shim that is gone (one that is not is killed); prints a DeleteResponse message."""
    bundle = Path(flags.get("bundle") or Path.cwd())
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="shim-svc: %(message)s")
    try:
        response = asyncio.run(_delete(bundle, flags["namespace"], flags["id"], _sockets(flags)))
    except errdefs.BuoyError as error:
        return _fail(error.message)
    sys.stdout.buffer.write(bytes(response))
    sys.stdout.buffer.flush()
    return 0


async def _delete(bundle: Path, namespace: str, container: str, sockets: str) -> DeleteResponse:
    from shim_svc.__main__ import DEFAULT_RUNTIME_ROOT

    check_identifier("container id", container)
    _end_shim(bundle, container)
    _remove_sockets(bundle, sockets, namespace, container)
    state = read_state(str(bundle))
    reaper = Reaper()
    on_signals({signal.SIGCHLD: reaper.reap})
    status, exited_at = _KILLED, time.time_ns()
    pid = state.pid if state is not None else 0
    try:
        runtime = Runtime(
            reaper,
            binary=state.runtime if state is not None else "",
            root=state.runtime_root if state is not None else DEFAULT_RUNTIME_ROOT,
            namespace=namespace,
            bundle=str(bundle),
            systemd_cgroup=state.systemd_cgroup if state is not None else False,
        )
        await runtime.delete(container, force=True)
    except errdefs.BuoyError as error:
        log.warning("failed to remove runc container: %s", error.message)
    try:
        mounts.unmount(str(bundle / "rootfs"))
    except OSError as error:
        log.warning("failed to cleanup rootfs mount: %s", error)
    record = exit_record.read(state.container_dir) if state is not None else None
    if state is not None and record is not None and record.run == state.run:
        return DeleteResponse(
            pid=record.pid,
            exit_status=record.exit_status,
            exited_at=as_time(exit_record.parse_timestamp(record.exited_at)),
        )
    return DeleteResponse(pid=pid, exit_status=status, exited_at=as_time(exited_at))


def _end_shim(bundle: Path, container: str) -> None:
    """Kill the shim that the bundle names, if it still is that shim."""
    try:
        pid = int((bundle / "shim.pid").read_text())
        pidfd = open_pidfd(pid)
    except (OSError, ValueError):
        pidfd = -1
    if pidfd >= 0:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"shim-svc " in command and container.encode() in command:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                has_exited(pidfd, 5.0)
        except OSError:
            pass  # gone in the meantime
        finally:
            os.close(pidfd)


def _remove_sockets(bundle: Path, sockets: str, namespace: str, container: str) -> None:
    """Remove the sockets that a killed shim leaves: the one of its tasks, which may be bound before the
    bundle says so, and the one for attaching, which the Create request names.
    """
    found = {task_socket(sockets, namespace, container, str(bundle))}
    with contextlib.suppress(OSError):
        found.add((bundle / "address").read_text().strip().removeprefix("unix://"))
    with contextlib.suppress(OSError, ValueError, AttributeError):
        request = json.loads((bundle / "task.json").read_bytes())
        fields = (str(request.get(name) or "") for name in ("stdin", "stdout", "stderr"))
        found |= {field.removeprefix("attach://") for field in fields if field.startswith("attach://")}
    for path in found:
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)


def _sockets(flags: Mapping[str, str]) -> str:
    from shim_svc.__main__ import DEFAULT_SOCKETS

    return flags.get("sockets", DEFAULT_SOCKETS)


def info() -> int:
    """Print a RuntimeInfo message (containerd.types, introspection.proto): name 1, version 2 {version 1}."""
    name, version = b"io.containerd.buoy.v1", b"0.1.0"
    inner = b"\x0a" + bytes([len(version)]) + version
    sys.stdout.buffer.write(b"\x0a" + bytes([len(name)]) + name + b"\x12" + bytes([len(inner)]) + inner)
    sys.stdout.buffer.flush()
    return 0

"""Checkpoint: have CRIU write a running container's processes to a folder of images."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from errdefs import FailedPrecondition
from linux.crashpoints import crashpoint

from runc_bin.document import render
from runc_bin.libcontainer import container, hooks
from runc_bin.libcontainer.checkpoint import criu, external, messages
from runc_bin.libcontainer.checkpoint import options as asked
from runc_bin.libcontainer.checkpoint.messages import Response
from runc_bin.libcontainer.checkpoint.options import CheckpointOptions
from runc_bin.libcontainer.state import State

_LOG = "dump.log"
_CAN_SKIP_LOCK = (3, 19)


def checkpoint(root: str, record: State, options: CheckpointOptions, *, warn: hooks.Warn = hooks.say) -> None:
    """Write images of a running or paused container; unless it is to stay, its processes then are gone, and
    what else it held is removed as `delete` does.

    Before anything is changed: InvalidArgument for options that are wrong, FailedPrecondition in another
    state and for a CRIU or a kernel that cannot do it, NotFound without CRIU. Internal with CRIU's own error
    when it fails; the container then goes on.
    """
    now = container.status(root, record)
    if now not in ("running", "paused"):
        raise FailedPrecondition(f"Container cannot be checkpointed in {now} state")
    asked.check_root()
    asked.check_parent(options.image_path, options.parent_path)
    asked.check_status_fd(options.status_fd)
    found = criu.check(options.program, mem_track=options.pre_dump, lazy_pages=options.lazy_pages)
    fields = _fields(record, options, found)
    with _folders(options) as (images, work):
        fields["images_dir_fd"] = images
        if work is not None:
            fields["work_dir_fd"] = work
        if not options.pre_dump:
            fields["ext_mnt"] = external.dumped_mounts(record)
            _write_descriptors(images, record)
        crashpoint("checkpoint.begun")
        _dump(found.path, record, options, fields)
    crashpoint("checkpoint.written")
    if not options.stays:
        # What CRIU has killed counts for a moment yet, and whoever is its parent takes its exit.
        container.delete(root, record.id, force=True, warn=warn)


def _fields(record: State, options: CheckpointOptions, found: criu.Criu) -> dict[str, Any]:
    """The criu_opts of a dump, without descriptors and mounts."""
    fields = {
        **asked.shared(options, record.annotations),
        "log_file": _LOG,
        "root": record.rootfs,
        "pid": record.init_process_pid,
        "leave_running": options.leave_running,
        "tcp_skip_in_flight": options.tcp_skip_in_flight,
        "link_remap": options.link_remap,
        "external": external.dumped_namespaces(record),
    }
    group = record.cgroup_paths.get("freezer") or record.cgroup_paths.get("")
    if group:
        fields["freeze_cgroup"] = group
    if lock := _network_lock(record, options, found):
        fields["network_lock"] = lock
    if options.page_server:
        fields["ps"] = {"address": options.page_server[0], "port": options.page_server[1]}
    if options.parent_path:
        fields["parent_img"] = options.parent_path
    if options.parent_path or options.pre_dump:
        fields["track_mem"] = True
    return fields


def _network_lock(record: State, options: CheckpointOptions, found: criu.Criu) -> int:
    """How packets are held back, for the sake of connections that are taken along; 0: by CRIU's own way,
    iptables. FailedPrecondition where that is needed, and not there.
    """
    if not options.tcp_established and found.version >= _CAN_SKIP_LOCK:
        return messages.NETWORK_LOCK_SKIP
    if criu.in_path("iptables-restore") or "network" not in record.namespaces:
        return 0
    if record.namespaces["network"]:
        # The other way's rules would stay in a namespace that outlives the container.
        raise FailedPrecondition("CRIU needs iptables-restore to hold back packets, and $PATH has none")
    return messages.NETWORK_LOCK_NFTABLES


@contextlib.contextmanager
def _folders(options: CheckpointOptions) -> Iterator[tuple[int, int | None]]:
    """Descriptors of the folder of images and of the one for logs, both made where they are missing."""
    with contextlib.ExitStack() as opened:
        found: list[int | None] = []
        for path in (options.image_path, options.work_path):
            if not path:
                found.append(None)
                continue
            os.makedirs(path, mode=0o700, exist_ok=True)
            # CRIU opens it in our folder of /proc, by our number for it.
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, fd)
            found.append(fd)
        assert found[0] is not None
        yield found[0], found[1]


def _write_descriptors(images: int, record: State) -> None:
    fd = os.open(
        asked.DESCRIPTORS, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=images
    )
    try:
        os.write(fd, render(list(record.external_descriptors)).encode())
    finally:
        os.close(fd)


def _dump(program: str, record: State, options: CheckpointOptions, fields: dict[str, Any]) -> None:
    kind = messages.PRE_DUMP if options.pre_dump else messages.DUMP

    def notified(said: Response, _fd: int | None) -> None:
        if said.script == "status-ready" and options.status_fd >= 0:
            with contextlib.suppress(OSError):  # whoever waited for it has gone
                os.write(options.status_fd, b"\0")
            os.close(options.status_fd)

    worker = criu.Worker(program, quiet=True)
    with contextlib.closing(worker):
        answer = worker.ask(messages.request(kind, opts=fields), notified)
        # After a pre-dump CRIU waits for the next one, and takes the end of the talk for a failure.
        code = worker.end()
    if not answer.success or (code != 0 and kind == messages.DUMP):
        log = os.path.join(options.work_path or options.image_path, _LOG)
        raise criu.failure(kind, answer, log)

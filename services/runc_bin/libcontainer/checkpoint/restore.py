"""Restore: a container whose first process CRIU makes again from a folder of images.

The order is that of `create`: all is checked, then recorded, then made, and taken back in reverse when a
later step fails.
"""

from __future__ import annotations

import _socket
import contextlib
import os
from collections.abc import Sequence
from typing import Any

from errdefs import Internal, InvalidArgument, NotFound
from linux import fds
from linux.crashpoints import crashpoint

from runc_bin.document import parse
from runc_bin.libcontainer import cgroups, create, hooks, seccomp, state
from runc_bin.libcontainer.cgroups import hierarchy
from runc_bin.libcontainer.checkpoint import criu, external, messages, restore_root
from runc_bin.libcontainer.checkpoint import options as asked
from runc_bin.libcontainer.checkpoint.messages import Response
from runc_bin.libcontainer.checkpoint.options import RestoreOptions
from runc_bin.libcontainer.spec import Spec
from runc_bin.libcontainer.state import State
from runc_bin.record import Record

_LOG = "restore.log"
_INVENTORY = "inventory.img"  # what every whole dump has, and no pre-dump


class Place(Record):
    """Where a container is restored. `console` gets the master of its terminal."""

    bundle: str
    console: _socket.socket | None = None
    systemd_cgroup: bool = False


def restore(
    root: str,
    container_id: str,
    spec: Spec,
    place: Place,
    options: RestoreOptions,
    *,
    warn: hooks.Warn = hooks.say,
) -> State:
    """Make a container of images that a checkpoint wrote, in the bundle that `spec` is of; it then runs.

    Returns its record. Its first process is a child of this one. Errors, before anything is made:
    InvalidArgument for options, images or a spec that are wrong, AlreadyExists for a taken id, NotFound and
    FailedPrecondition as `criu.check` has them; then Internal with CRIU's own error. `prestart` and
    `createRuntime` hooks run before the processes are made, `poststop` hooks when the making fails.
    """
    asked.check_root()
    state.check_id(container_id)
    streams = _read_descriptors(options.image_path)
    joined = external.joined_namespaces(spec)
    handed = external.handed_namespaces(spec)
    if "mount" not in spec.namespaces:
        raise InvalidArgument("a container without a mount namespace of its own cannot be restored")
    manager = cgroups.manager_for(spec.linux, container_id, systemd=place.systemd_cgroup)
    program = None
    if spec.seccomp:
        if seccomp.notifies(spec.seccomp):
            raise InvalidArgument("a container whose seccomp filter has a listener cannot be restored")
        program = seccomp.compile_filter(spec.seccomp, os.path.join(root, state.FILTER_CACHE))
    found = criu.check(options.program, lazy_pages=options.lazy_pages)
    record = create.new_record(container_id, spec, manager, place.bundle)
    with contextlib.ExitStack() as opened, contextlib.ExitStack() as undo:
        folder = state.create_dir(root, container_id)
        undo.callback(create.run_poststop, spec, record, warn)
        undo.callback(state.remove_dir, root, container_id)
        crashpoint("restore.folder-made")
        state.save_state(root, record)
        crashpoint("restore.intent-recorded")
        if program is not None:
            state.save_filter(root, container_id, program)
        where = os.path.join(folder, state.CRIU_ROOT)
        os.mkdir(where, 0o700)
        manager.create()  # whose Conflict says that the processes in there are another container's
        undo.callback(manager.destroy)
        undo.callback(manager.kill_all)
        crashpoint("restore.cgroup-made")
        mounts = restore_root.prepare(spec, where, manager.paths)
        passed = [_open(path, opened) for _, path in handed]
        fields: dict[str, Any] = {
            **_fields(spec, options),
            "root": where,
            "ext_mnt": mounts,
            "join_ns": joined,
            "inherit_fd": [
                *({"key": key, "fd": criu.FIRST_PASSED + n} for n, (key, _) in enumerate(handed)),
                *({"key": name, "fd": fd} for fd, name in enumerate(streams) if "pipe:" in name),
            ],
        }
        worker = _start(found.path, spec, where, options, passed, fields, opened)
        crashpoint("restore.criu-started")
        if manager.starts_with_process:
            manager.start_with(worker.pid)
        else:
            manager.add_pid(worker.pid)
        manager.apply()
        fields["cg_root"] = [
            {"ctrl": controller, "path": path}
            for controller, path in hierarchy.cgroups_of(worker.pid).items()
        ]
        made = _Making(root, record, spec, place.console)
        answer = worker.ask(messages.request(messages.RESTORE, opts=fields), made.notified)
        code = worker.end()
        if not answer.success or code != 0 or not made.record.init_process_pid:
            log = os.path.join(options.work_path or options.image_path, _LOG)
            raise criu.failure(messages.RESTORE, answer, log)
        os.rmdir(where)
        undo.pop_all()
    crashpoint("restore.ready")
    return made.record


class _Making:
    """What is done while CRIU works: it tells of its steps."""

    def __init__(self, root: str, record: State, spec: Spec, console: _socket.socket | None) -> None:
        self._root = root
        self._spec = spec
        self._console = console
        self.record = record

    def notified(self, said: Response, fd: int | None) -> None:
        """Take one notification, with the descriptor that came along."""
        step = {
            "setup-namespaces": self._run_hooks,
            "post-restore": self._record_namespaces,
        }.get(said.script)
        if said.pid and not self.record.init_process_pid:
            self.record = state.with_init(self.record, said.pid)
            state.save_state(self._root, self.record)
            crashpoint("restore.init-recorded")
        if step is not None:
            step()
        elif said.script == "orphan-pts-master" and fd is not None:
            if self._console is None:
                raise Internal("the container has a terminal, and there is nobody to hand it to")
            fds.send_fds(self._console, b"/dev/ptmx", [fd])

    def _run_hooks(self) -> None:
        seen = state.oci_state(self.record, "created", self.record.init_process_pid)
        for kind in ("prestart", "createRuntime"):
            hooks.run(self._spec.hooks.get(kind, ()), kind, seen, folder=self.record.bundle)

    def _record_namespaces(self) -> None:
        """CRIU restores into a time namespace where the kernel has one, so that clocks do not go back."""
        ours, theirs = (_namespace(pid, "time") for pid in ("self", self.record.init_process_pid))
        if "time" not in self.record.namespaces and ours != theirs:
            self.record = self.record.replace(namespaces={**self.record.namespaces, "time": ""})
        # The pid may be another process's now than when it was first told.
        self.record = state.with_init(self.record, self.record.init_process_pid)
        state.save_state(self._root, self.record)


def _namespace(pid: int | str, kind: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return ""


def _open(path: str, opened: contextlib.ExitStack) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    opened.callback(os.close, fd)
    return fd


def _start(
    program: str,
    spec: Spec,
    where: str,
    options: RestoreOptions,
    passed: Sequence[int],
    fields: dict[str, Any],
    opened: contextlib.ExitStack,
) -> criu.Worker:
    """Start CRIU with the root at `where`, and put the descriptors of its folders in `fields`."""
    folders = {"images_dir_fd": options.image_path}
    if options.work_path:
        os.makedirs(options.work_path, mode=0o700, exist_ok=True)
        folders["work_dir_fd"] = options.work_path
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    opened.callback(ours.close)
    try:
        worker = criu.Worker(
            program,
            passed=passed,
            enter=lambda: restore_root.enter(spec, where, list(folders.values()), theirs),
        )
    finally:
        theirs.close()
    opened.callback(worker.close)
    for name, fd in zip(folders, restore_root.entered(ours, len(folders)), strict=True):
        opened.callback(os.close, fd)
        fields[name] = fd
    return worker


def _fields(spec: Spec, options: RestoreOptions) -> dict[str, Any]:
    """The criu_opts of a restore, but for mounts, namespaces, streams and descriptors."""
    return {
        **asked.shared(options, spec.annotations),
        "log_file": _LOG,
        "evasive_devices": True,
        "rst_sibling": True,
        **({"lsm_profile": options.lsm_profile} if options.lsm_profile else {}),
        **({"lsm_mount_context": options.lsm_mount_context} if options.lsm_mount_context else {}),
    }


def _read_descriptors(image_path: str) -> Sequence[str]:
    """What the streams were when the images were written; NotFound or InvalidArgument when they are none."""
    if not os.path.isfile(os.path.join(image_path, _INVENTORY)):
        raise NotFound(f"{image_path} has no images of a checkpoint")
    path = os.path.join(image_path, asked.DESCRIPTORS)
    try:
        with open(path, "rb") as file:
            found = parse(file.read())
    except FileNotFoundError:
        raise NotFound(f"{image_path} has no {asked.DESCRIPTORS}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{path}: {error}") from None
    found = [] if found is None else found
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found) or len(found) > 3:
        raise InvalidArgument(f"{path}: a list of at most three names is expected")
    return found

"""The record of one container: `<root>/<id>/state.json`, written to a temporary name and renamed.

It is written before the step that it protects: first with the control groups that are about to be made,
then with the pid of an init that still waits for its go. So whatever a crash leaves can be found and
removed by `delete --force`. The names of the fields are runc's where it has them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from typing import Any

from errdefs import AlreadyExists, DataLoss, InvalidArgument, NotFound
from linux import syscalls
from linux.crashpoints import crashpoint
from linux.mounts import MNT_DETACH

from runc_bin.document import parse, render
from runc_bin.record import Record

OCI_VERSION = "1.2.0"
EXEC_FIFO = "exec.fifo"
STARTED = b"0"  # what init writes there before it executes the program; anything else tells why it does not
_NOTIFY = "notify"
FILTER_CACHE = "@filters"  # beside the containers' folders; no id has such a name
ROOT_PLACE = "rootfs"  # a directory for the root of a container without a mount namespace
CRIU_ROOT = "criu-root"  # where CRIU finds the root while it restores, in a mount namespace of its own
_STATE = "state.json"
_FILTER = "seccomp.bpf"
_ID_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+.-"


class State(Record):
    """What is recorded. `init_process_pid` is 0 before there is one; `init_process_start` is its start time
    in clock ticks since boot, which tells a reused pid apart; `created` is RFC 3339 in UTC; `namespaces`
    maps the kinds that are not the caller's own to the path joined, empty for a new one; `late_hooks` holds
    the hooks for after the creation, by kind (`hooks.to_record`); `process_defaults` is what further ones
    take from its first process (`process_spec.inherited`); `cgroup_unit` names the unit of systemd that the
    control group is, if it is one, and `cgroup_unit_of_user` says that it is the caller's own systemd's.

    The last three are for a checkpoint: the destinations of the mounts that come from outside, the paths that
    are masked, and what the first process's streams were given as (`pipe:[1234]`), which is empty for a
    terminal.
    """

    id: str
    oci_version: str
    bundle: str
    rootfs: str
    created: str
    annotations: Mapping[str, str]
    namespaces: Mapping[str, str]
    cgroup_paths: Mapping[str, str]
    cgroup_unit: str = ""
    cgroup_unit_of_user: bool = False
    init_process_pid: int = 0
    init_process_start: int = 0
    no_new_keyring: bool = False
    has_seccomp: bool = False
    seccomp_flags: list[str] | None = None
    seccomp_listener: Mapping[str, str] | None = None
    apparmor_profile: str = ""
    oom_score_adj: int | None = None
    personality: int | None = None
    late_hooks: Mapping[str, Any] = {}
    process_defaults: Mapping[str, Any] = {}
    external_mounts: Sequence[str] = ()
    masked_paths: Sequence[str] = ()
    external_descriptors: Sequence[str] = ()


def oci_state(record: State, status: str, pid: int) -> dict[str, Any]:
    """The state object of the runtime spec (runtime.md, "State"), as hooks get it."""
    return {
        "ociVersion": OCI_VERSION,
        "id": record.id,
        "status": status,
        **({"pid": pid} if pid else {}),
        "bundle": record.bundle,
        "annotations": dict(record.annotations),
    }


def check_id(container_id: str) -> None:
    """Refuse an id that is no plain file name; InvalidArgument."""
    if not container_id:
        raise InvalidArgument("container id cannot be empty")
    if container_id.strip(_ID_CHARACTERS) or container_id in (".", ".."):
        raise InvalidArgument("invalid container ID format")


def state_dir(root: str, container_id: str) -> str:
    """The folder of a container's record."""
    return os.path.join(root, container_id)


def root_place(root: str, state: State) -> str:
    """Where the root of a container without a mount namespace is mounted; empty for any other."""
    return "" if "mount" in state.namespaces else os.path.join(state_dir(root, state.id), ROOT_PLACE)


def notify_dir(root: str, container_id: str) -> str:
    """The folder of the socket that a container's program tells its readiness to: `CreateOptions.notify`."""
    return os.path.join(state_dir(root, container_id), _NOTIFY)


def create_dir(root: str, container_id: str) -> str:
    """Make the folder of a new container, which claims its id; AlreadyExists when it is taken."""
    if not os.path.isdir(root):
        os.makedirs(root, mode=0o700, exist_ok=True)
        if os.geteuid() != 0:
            os.chmod(root, 0o1700)  # what is not sticky may be cleaned away: XDG Base Directory Specification
    path = state_dir(root, container_id)
    try:
        os.mkdir(path, 0o711)
    except FileExistsError:
        raise AlreadyExists("container with given ID already exists") from None
    return path


def save_state(root: str, state: State) -> None:
    """Write the record in one step."""
    path = os.path.join(state_dir(root, state.id), _STATE)
    temporary = path + ".new"
    with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(render(state.as_dict()))
    os.rename(temporary, path)


def load_state(root: str, container_id: str) -> State:
    """The record of a container; NotFound when there is none, DataLoss when it cannot be read."""
    check_id(container_id)
    try:
        with open(os.path.join(state_dir(root, container_id), _STATE), "rb") as file:
            raw = file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound("container does not exist") from None
    try:
        return State(**parse(raw))
    except (ValueError, TypeError, KeyError) as error:
        raise DataLoss(f"state of container {container_id} is damaged: {error}") from None


def save_filter(root: str, container_id: str, program: bytes) -> None:
    """Keep the container's compiled system call filter for its further processes."""
    with open(os.path.join(state_dir(root, container_id), _FILTER), "wb") as file:
        file.write(program)


def load_filter(root: str, container_id: str) -> bytes:
    """The filter that `save_filter` kept."""
    with open(os.path.join(state_dir(root, container_id), _FILTER), "rb") as file:
        return file.read()


def with_init(state: State, pid: int) -> State:
    """The record of a container whose first process is `pid`."""
    return state.replace(init_process_pid=pid, init_process_start=start_time(pid))


def remove_dir(root: str, container_id: str) -> None:
    """Remove the folder of a container, if it is there, and what is mounted in it."""
    path = state_dir(root, container_id)
    try:
        names = os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        if name == ROOT_PLACE:
            _remove_mounts(os.path.join(path, name))
        elif name == CRIU_ROOT:
            os.rmdir(os.path.join(path, name))
        elif name == _NOTIFY:
            _remove_folder(os.path.join(path, name))
        else:
            os.unlink(os.path.join(path, name))
        crashpoint("runc.delete.removing")
    os.rmdir(path)


def _remove_mounts(path: str) -> None:
    """Take away all that is mounted at (and below) a directory, and the directory."""
    while True:
        try:
            syscalls.umount2(path, MNT_DETACH)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            break
    os.rmdir(path)


def _remove_folder(path: str) -> None:
    for name in os.listdir(path):
        os.unlink(os.path.join(path, name))
    os.rmdir(path)


def process_stat(pid: int) -> tuple[str, int] | None:
    """(state letter, start time in clock ticks) of a process, None when there is none; proc_pid_stat(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    words = line[line.rindex(b")") + 2 :].split()
    return words[0].decode(), int(words[19])


def start_time(pid: int) -> int:
    """Start time of a process in clock ticks since boot; 0 when it is gone."""
    found = process_stat(pid)
    return found[1] if found else 0


def init_is_alive(state: State) -> bool:
    """Whether the recorded first process still runs (a zombie does not)."""
    if state.init_process_pid <= 0:
        return False
    found = process_stat(state.init_process_pid)
    return found is not None and found[0] not in "ZX" and found[1] == state.init_process_start

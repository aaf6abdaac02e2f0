"""What a checkpoint or a restore is asked to be, checked before anything is changed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from errdefs import InvalidArgument
from linux import syscalls

from runc_bin.libcontainer.cgroups import hierarchy
from runc_bin.libcontainer.checkpoint.messages import CGROUP_MODES
from runc_bin.record import Record

CONFIG_ANNOTATION = "org.criu.config"
DEFAULT_CONFIG = "/etc/criu/runc.conf"
DESCRIPTORS = "descriptors.json"  # in the folder of images: what the first process's streams were
_PORT = re.compile(r"[0-9]{1,5}")


class CheckpointOptions(Record):
    """`image_path` is the folder of images, `work_path` that of CRIU's log and statistics (empty: the same),
    `parent_path` the images of a former pre-dump, relative to `image_path`. `page_server` is (address, port)
    of who takes the pages instead. `status_fd` gets a zero byte once pages can be fetched (-1: nobody does).
    `empty_namespaces` are left without their content. `program` is CRIU's name or path. The rest is as
    criu(8) has it.
    """

    image_path: str
    work_path: str = ""
    parent_path: str = ""
    leave_running: bool = False
    tcp_established: bool = False
    tcp_skip_in_flight: bool = False
    link_remap: bool = False
    ext_unix_sk: bool = False
    shell_job: bool = False
    lazy_pages: bool = False
    status_fd: int = -1
    page_server: tuple[str, int] | None = None
    file_locks: bool = False
    pre_dump: bool = False
    cgroups_mode: str = ""
    empty_namespaces: int = syscalls.CLONE_NEWNET
    auto_dedup: bool = False
    program: str = "criu"

    @property
    def stays(self) -> bool:
        """Whether the container runs on."""
        return self.leave_running or self.pre_dump


class RestoreOptions(Record):
    """As `CheckpointOptions`; `lsm_profile` is TYPE:NAME, `lsm_mount_context` an SELinux label for mounts."""

    image_path: str
    work_path: str = ""
    tcp_established: bool = False
    ext_unix_sk: bool = False
    shell_job: bool = False
    lazy_pages: bool = False
    file_locks: bool = False
    cgroups_mode: str = ""
    empty_namespaces: int = syscalls.CLONE_NEWNET
    auto_dedup: bool = False
    program: str = "criu"
    lsm_profile: str = ""
    lsm_mount_context: str = ""


def check_root() -> None:
    """CRIU reads and writes what only the host's root may; InvalidArgument for anybody else."""
    if os.geteuid() != 0:
        raise InvalidArgument("checkpoint and restore need the host's root")


def cgroups_mode(word: str) -> str:
    """A mode of --manage-cgroups-mode; InvalidArgument for any other word."""
    if word not in CGROUP_MODES:
        raise InvalidArgument("invalid manage-cgroups-mode value")
    return word


def empty_namespaces(kinds: Sequence[str]) -> int:
    """CLONE_NEW* flags of namespaces to be left empty. The network's always is: its devices are their
    maker's.
    """
    for kind in kinds:
        if kind != "network":
            raise InvalidArgument(f'namespace "{kind}" is not supported')
    return syscalls.CLONE_NEWNET


def page_server(text: str) -> tuple[str, int] | None:
    """(address, port) of ADDRESS:PORT, None for no text."""
    if not text:
        return None
    address, colon, port = text.rpartition(":")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    if not colon or not address or not port:
        raise InvalidArgument("Use --page-server ADDRESS:PORT to specify page server")
    if not _PORT.fullmatch(port) or not 0 < int(port) < 65536:
        raise InvalidArgument("Invalid port number")
    return address, int(port)


def check_parent(image_path: str, parent_path: str) -> None:
    """The images of a former pre-dump must be a folder, named relative to the new one's."""
    if not parent_path:
        return
    if os.path.isabs(parent_path):
        raise InvalidArgument("--parent-path must be relative")
    real = os.path.normpath(os.path.join(os.path.realpath(image_path), parent_path))
    if not os.path.isdir(real):
        raise InvalidArgument(f"invalid --parent-path: {real} is not a directory")


def check_status_fd(fd: int) -> None:
    """It must be open for writing; InvalidArgument."""
    if fd < 0:
        return
    import fcntl

    try:
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    except OSError as error:
        raise InvalidArgument(f"invalid --status-fd argument {fd}: {error.strerror}") from None
    if mode == os.O_RDONLY:
        raise InvalidArgument(f"invalid --status-fd argument {fd}: not writable")


def shared(options: CheckpointOptions | RestoreOptions, annotations: Mapping[str, str]) -> dict[str, Any]:
    """The fields of criu_opts that both have, by their names there."""
    config = annotations.get(CONFIG_ANNOTATION, DEFAULT_CONFIG)
    mode = options.cgroups_mode
    if not mode and hierarchy.unified():
        # CRIU would mount the v2 tree anew, and the options of the host's mount (nsdelegate, …) would go.
        mode = "ignore"
    return {
        "log_level": 4,
        "notify_scripts": True,
        "orphan_pts_master": True,
        "manage_cgroups": True,  # what versions look at that do not know of modes
        "manage_cgroups_mode": CGROUP_MODES[mode],
        "shell_job": options.shell_job,
        "tcp_established": options.tcp_established,
        "ext_unix_sk": options.ext_unix_sk,
        "file_locks": options.file_locks,
        "empty_ns": options.empty_namespaces,
        "auto_dedup": options.auto_dedup,
        "lazy_pages": options.lazy_pages,
        **({"config_file": config} if config else {}),
    }

"""Checkpoints of the task: what is asked for, in the words of the runtime's `checkpoint` and `restore`."""

from __future__ import annotations

import contextlib
import os
import shutil

import errdefs
from pb.containerd.runc.v1 import CheckpointOptions, Options
from pb.containerd.task.v2 import CheckpointTaskRequest, CreateTaskRequest

_WORK = "criu-work"  # in the bundle: CRIU's log, for as long as it works
_LOGS = {"dump.log": "criu-dump.log"}  # kept in the bundle when it fails


def options_of(request: CheckpointTaskRequest) -> CheckpointOptions:
    """What a Checkpoint asks for; InvalidArgument for another runtime's options, and without a folder."""
    if not request.path:
        raise errdefs.InvalidArgument("checkpoint without a path")
    if request.options is None or not request.options.value:
        return CheckpointOptions()
    if request.options.type_url.rpartition("/")[2] != "containerd.runc.v1.CheckpointOptions":
        raise errdefs.InvalidArgument(f"unknown checkpoint options {request.options.type_url!r}")
    return CheckpointOptions.parse(request.options.value)


def work_folder(bundle: str, wanted: str) -> tuple[str, bool]:
    """The folder for CRIU's log, and whether it is to go behind the call."""
    return (wanted, False) if wanted else (os.path.join(bundle, _WORK), True)


def dump_words(path: str, work: str, options: CheckpointOptions) -> list[str]:
    """The flags of `checkpoint`, as containerd's shim gives them."""
    return [
        *("--image-path", path, "--work-path", work),
        *(["--parent-path", options.parent_path] if options.parent_path else []),
        *([] if options.exit else ["--leave-running"]),
        *(["--tcp-established"] if options.open_tcp else []),
        *(["--ext-unix-sk"] if options.external_unix_sockets else []),
        *(["--shell-job"] if options.terminal else []),
        *(["--file-locks"] if options.file_locks else []),
        *(["--manage-cgroups-mode", options.cgroups_mode] if options.cgroups_mode else []),
        *(word for kind in options.empty_namespaces for word in ("--empty-ns", kind)),
    ]


def restore_words(request: CreateTaskRequest, options: Options, bundle: str) -> list[str]:
    """The flags of `restore` for a task that is made of a checkpoint."""
    return [
        *("--image-path", request.checkpoint, "--bundle", bundle, "--detach", "--no-subreaper"),
        *("--work-path", work_folder(bundle, options.criu_work_path)[0]),
        *(["--no-pivot"] if options.no_pivot_root else []),
    ]


def keep_log(work: str, bundle: str) -> None:
    """Put CRIU's log where it outlives the work folder."""
    for name, kept in _LOGS.items():
        with contextlib.suppress(OSError):
            shutil.copyfile(os.path.join(work, name), os.path.join(bundle, kept))

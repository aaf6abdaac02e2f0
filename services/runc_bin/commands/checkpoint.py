"""`checkpoint`."""

from __future__ import annotations

import os

from runc_bin.cli import Context
from runc_bin.commands import launch
from runc_bin.libcontainer import state
from runc_bin.libcontainer.checkpoint import dump
from runc_bin.libcontainer.checkpoint import options as asked
from runc_bin.libcontainer.checkpoint.options import CheckpointOptions
from runc_bin.log import Log

DEFAULT_IMAGES = "checkpoint"  # in the current directory, as runc has it


def read_options(context: Context) -> CheckpointOptions:
    """What the command line asks for; InvalidArgument."""
    return CheckpointOptions(
        image_path=os.path.abspath(context.text("image-path") or DEFAULT_IMAGES),
        work_path=launch.absolute(context.text("work-path")),
        parent_path=context.text("parent-path"),
        leave_running=context.given("leave-running"),
        tcp_established=context.given("tcp-established"),
        tcp_skip_in_flight=context.given("tcp-skip-in-flight"),
        link_remap=context.given("link-remap"),
        ext_unix_sk=context.given("ext-unix-sk"),
        shell_job=context.given("shell-job"),
        lazy_pages=context.given("lazy-pages"),
        status_fd=context.number("status-fd"),
        page_server=asked.page_server(context.text("page-server")),
        file_locks=context.given("file-locks"),
        pre_dump=context.given("pre-dump"),
        cgroups_mode=asked.cgroups_mode(context.text("manage-cgroups-mode")),
        empty_namespaces=asked.empty_namespaces(context.texts("empty-ns")),
        auto_dedup=context.given("auto-dedup"),
        program=context.globals["criu"],
    )


def run(context: Context, log: Log) -> int:
    record = state.load_state(context.root, context.args[0])
    dump.checkpoint(context.root, record, read_options(context), warn=log.warn)
    return 0

"""`restore`: a container made of the images of a checkpoint; unless detached, stay until its end."""

from __future__ import annotations

import os

from errdefs import NotImplementedHere

from runc_bin.cli import Context
from runc_bin.commands import launch
from runc_bin.commands.checkpoint import DEFAULT_IMAGES
from runc_bin.commands.create import read_bundle
from runc_bin.commands.run import clean_up, undo
from runc_bin.foreground import Foreground
from runc_bin.libcontainer.checkpoint import options as asked
from runc_bin.libcontainer.checkpoint import restore
from runc_bin.libcontainer.checkpoint.options import RestoreOptions
from runc_bin.libcontainer.checkpoint.restore import Place
from runc_bin.log import Log


def read_options(context: Context) -> RestoreOptions:
    """What the command line asks for; InvalidArgument, NotImplementedHere for what CRIU cannot do."""
    if context.given("no-pivot"):
        raise NotImplementedHere("--no-pivot: CRIU restores with pivot_root only")
    return RestoreOptions(
        image_path=os.path.abspath(context.text("image-path") or DEFAULT_IMAGES),
        work_path=launch.absolute(context.text("work-path")),
        tcp_established=context.given("tcp-established"),
        ext_unix_sk=context.given("ext-unix-sk"),
        shell_job=context.given("shell-job"),
        lazy_pages=context.given("lazy-pages"),
        file_locks=context.given("file-locks"),
        cgroups_mode=asked.cgroups_mode(context.text("manage-cgroups-mode")),
        empty_namespaces=asked.empty_namespaces(context.texts("empty-ns")),
        auto_dedup=context.given("auto-dedup"),
        program=context.globals["criu"],
        lsm_profile=context.text("lsm-profile"),
        lsm_mount_context=context.text("lsm-mount-context"),
    )


def run(context: Context, log: Log) -> int:
    options = read_options(context)
    bundle, spec = read_bundle(context)
    pid_file = launch.absolute(context.text("pid-file"))
    terminal = spec.process is not None and spec.process.terminal
    detached = context.given("detach")
    launch.check_terminal(context, terminal=terminal, detached=detached)
    stay = None if detached else Foreground(subreaper=not context.given("no-subreaper"))
    console = None
    if terminal:
        console = stay.console() if stay else launch.connect_socket(context.text("console-socket"))
    place = Place(bundle=bundle, console=console, systemd_cgroup=context.systemd_cgroup)
    record = restore.restore(context.root, context.args[0], spec, place, options, warn=log.warn)
    try:
        launch.write_pid_file(pid_file, record.init_process_pid)
        if stay is None:
            return 0
        code = stay.wait(record.init_process_pid)
    except BaseException:
        undo(context, record, log)
        raise
    clean_up(context, record, log)
    return code

"""What a process can do before it forks runtimes, so that each of them starts fast.

Importing is most of it. The rest are things that are made at first use: the codecs of paths and JSON, the
table of the host's cgroup hierarchies, and the seccomp library.
"""

from __future__ import annotations

import os

from linux import syscalls

from runc_bin.document import parse, render
from runc_bin.libcontainer import (
    cgroups,
    container,
    create,
    exec_in,
    seccomp,
    spec_document,
)
from runc_bin.libcontainer.process_spec import read_process
from runc_bin.libcontainer.sync import Channel

_MODULES = (container, create, exec_in)


def warm() -> None:
    """Run the code paths that are cheap and change nothing."""
    document = parse(render(spec_document.default()).encode())
    read_process(document["process"])
    cgroups.manager_for(document["linux"], "warm")
    seccomp.compile_filter(
        {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["reboot"], "action": "SCMP_ACT_ERRNO", "args": []}],
        }
    )
    one, other = Channel.pair()
    one.close()
    other.close()
    syscalls.capget()
    syscalls.filesystem_type("/proc")
    os.fsencode("/")

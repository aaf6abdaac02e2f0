"""`features`: what is supported, in the form of the runtime spec's features.md."""

from __future__ import annotations

from runc_bin.cli import Context
from runc_bin.document import render_indented
from runc_bin.libcontainer import capabilities, mount_options, seccomp, spec, state
from runc_bin.log import Log
from runc_bin.output import emit


def run(_context: Context, _log: Log) -> int:
    options = {
        *mount_options.FLAGS,
        *mount_options.PROPAGATION,
        *mount_options.RECURSIVE,
        *mount_options.EXTENSIONS,
    }
    document = {
        "ociVersionMin": "1.0.0",
        "ociVersionMax": state.OCI_VERSION,
        "hooks": list(spec.HOOK_KINDS),
        "mountOptions": sorted(options),
        "linux": {
            "namespaces": sorted(spec.NAMESPACE_FLAGS),
            "capabilities": list(capabilities.NAMES),
            "cgroup": {"v1": True, "v2": True, "systemd": True, "systemdUser": True, "rdma": True},
            "seccomp": {
                "enabled": True,
                "actions": list(seccomp.ACTIONS),
                "operators": list(seccomp.OPERATORS),
                "archs": list(seccomp.ARCHITECTURES),
                "knownFlags": list(seccomp.FLAGS),
                "supportedFlags": list(seccomp.FLAGS),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": True}},
        },
    }
    emit(render_indented(document, 4) + "\n")
    return 0

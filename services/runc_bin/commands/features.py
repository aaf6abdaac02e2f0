"""`features`: what is supported, in the form of the runtime spec's features.md and features-linux.md.

All lists are the tables that the readers of a spec go by.
"""

from __future__ import annotations

from runc_bin import cli, dispatch
from runc_bin.cli import Context
from runc_bin.document import render_indented
from runc_bin.libcontainer import capabilities, mount_options, seccomp, spec, state
from runc_bin.libcontainer.checkpoint.options import CONFIG_ANNOTATION
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
                "actions": sorted(seccomp.ACTIONS),
                "operators": sorted(seccomp.OPERATORS),
                "archs": sorted(seccomp.ARCHITECTURES),
                "knownFlags": sorted(seccomp.FLAGS),
                "supportedFlags": sorted(seccomp.supported_flags()),
            },
            "apparmor": {"enabled": True},
            "selinux": {"enabled": True},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": True}},
        },
        "annotations": _annotations(),
        "potentiallyUnsafeConfigAnnotations": [CONFIG_ANNOTATION],
    }
    emit(render_indented(document, 4) + "\n")
    return 0


def _annotations() -> dict[str, str]:
    """Names are those that runc and crun use too, but for our own version."""
    found = {
        "dev.buoy.runc-bin.version": dispatch.VERSION,
        "org.opencontainers.runc.checkpoint.enabled": "true" if "checkpoint" in cli.VERBS else "false",
    }
    library = seccomp.library_version()
    return {**found, "io.github.seccomp.libseccomp.version": library} if library else found

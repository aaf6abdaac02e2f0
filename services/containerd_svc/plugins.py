"""Which of containerd's plugins this daemon has the part of, which it lacks, and which may be left out.

Types and ids are those of containerd 1.7, in its order, so that its clients find what they look for. The
order is that in which its parts need one another.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import errdefs

GRPC = "io.containerd.grpc.v1"
SNAPSHOTTER = "io.containerd.snapshotter.v1"
SCHEDULER = "io.containerd.gc.v1.scheduler"
TASK = "io.containerd.runtime.v2.task"

_NOT_BUILT = "not built into this daemon: skip plugin"


@dataclass(frozen=True)
class Plugin:
    """missing: why the daemon has no such part; empty for one that it has. by_platform: whether it depends on
    the host's platform. optional: whether the daemon runs without it.
    """

    type: str
    id: str
    missing: str = ""
    by_platform: bool = False
    optional: bool = False

    @property
    def name(self) -> str:
        """As a configuration names it."""
        return f"{self.type}.{self.id}"


PLUGINS = (
    Plugin("io.containerd.event.v1", "exchange"),
    Plugin("io.containerd.internal.v1", "opt", _NOT_BUILT),
    Plugin("io.containerd.warning.v1", "deprecations"),
    Plugin(SNAPSHOTTER, "blockfile", _NOT_BUILT, by_platform=True),
    Plugin(SNAPSHOTTER, "btrfs", _NOT_BUILT, by_platform=True),
    Plugin(SNAPSHOTTER, "devmapper", _NOT_BUILT, by_platform=True),
    Plugin(SNAPSHOTTER, "native", by_platform=True),
    Plugin(SNAPSHOTTER, "overlayfs", by_platform=True),
    Plugin(SNAPSHOTTER, "aufs", _NOT_BUILT, by_platform=True),
    Plugin(SNAPSHOTTER, "zfs", _NOT_BUILT, by_platform=True),
    Plugin("io.containerd.content.v1", "content"),
    Plugin("io.containerd.metadata.v1", "sqlite"),
    Plugin("io.containerd.gc.v1", "scheduler", optional=True),
    Plugin("io.containerd.differ.v1", "walking", by_platform=True),
    Plugin("io.containerd.lease.v1", "manager"),
    Plugin("io.containerd.streaming.v1", "manager"),
    Plugin("io.containerd.runtime.v1", "linux", "removed in containerd 2.0: skip plugin", by_platform=True),
    Plugin("io.containerd.monitor.v1", "cgroups", _NOT_BUILT, by_platform=True),
    Plugin("io.containerd.runtime.v2", "task", by_platform=True),
    Plugin("io.containerd.runtime.v2", "shim"),
    Plugin("io.containerd.sandbox.store.v1", "local"),
    Plugin("io.containerd.sandbox.controller.v1", "local", _NOT_BUILT),
    Plugin(GRPC, "containers"),
    Plugin(GRPC, "content", optional=True),
    Plugin(GRPC, "diff", optional=True),
    Plugin(GRPC, "events"),
    Plugin(GRPC, "images", optional=True),
    Plugin(GRPC, "introspection"),
    Plugin(GRPC, "leases", optional=True),
    Plugin(GRPC, "namespaces"),
    Plugin(GRPC, "sandbox-controllers", _NOT_BUILT),
    Plugin(GRPC, "sandboxes", optional=True),
    Plugin(GRPC, "snapshots", optional=True),
    Plugin(GRPC, "streaming", optional=True),
    Plugin(GRPC, "tasks"),
    Plugin("io.containerd.transfer.v1", "local"),
    Plugin(GRPC, "transfer", optional=True),
    Plugin(GRPC, "version"),
    Plugin("io.containerd.internal.v1", "restart"),
    Plugin("io.containerd.tracing.processor.v1", "otlp", _NOT_BUILT),
    Plugin("io.containerd.internal.v1", "tracing", _NOT_BUILT),
    Plugin(GRPC, "healthcheck", optional=True),
    Plugin("io.containerd.nri.v1", "nri", _NOT_BUILT),
    Plugin(GRPC, "cri", _NOT_BUILT, by_platform=True),
)

_BY_NAME = {plugin.name: plugin for plugin in PLUGINS}


def check_disabled(names: Iterable[str]) -> frozenset[str]:
    """The names as a set; InvalidArgument for one that is unknown, or that the daemon cannot run without."""
    found = frozenset(names)
    for name in sorted(found):
        plugin = _BY_NAME.get(name)
        if plugin is None:
            raise errdefs.InvalidArgument(f"disabled_plugins: there is no plugin {name!r}")
        if not plugin.optional and not plugin.missing:
            optional = ", ".join(each.name for each in PLUGINS if each.optional)
            raise errdefs.InvalidArgument(
                f"disabled_plugins: {name} cannot be left out; those that can are {optional}"
            )
    return found

"""containerd.services.introspection.v1.Introspection."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence

import errdefs
from pb.containerd.services.introspection import v1 as pb
from pb.containerd.types import Platform
from pb.google.protobuf import Empty

from containerd_svc import filters

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64"}


class IntrospectionService(pb.IntrospectionBase):
    """What the daemon consists of. `parts`: type and id of each, as containerd names its plugins."""

    def __init__(self, uuid: str, parts: Sequence[tuple[str, str]]) -> None:
        self._uuid = uuid
        host = Platform(os="linux", architecture=_ARCHITECTURES.get(platform.machine(), platform.machine()))
        self._plugins = [
            pb.Plugin(
                type=type_, id=id_, platforms=[host] if "snapshotter" in type_ or "runtime" in type_ else []
            )
            for type_, id_ in parts
        ]

    async def plugins(self, message: pb.PluginsRequest) -> pb.PluginsResponse:
        match = filters.parse(message.filters)
        return pb.PluginsResponse(plugins=[plugin for plugin in self._plugins if match(_lookup(plugin))])

    async def server(self, message: Empty) -> pb.ServerResponse:
        return pb.ServerResponse(uuid=self._uuid, pid=os.getpid(), pidns=os.stat("/proc/self/ns/pid").st_ino)

    async def plugin_info(self, message: pb.PluginInfoRequest) -> pb.PluginInfoResponse:
        for plugin in self._plugins:
            if (plugin.type, plugin.id) == (message.type, message.id):
                return pb.PluginInfoResponse(plugin=plugin)
        raise errdefs.NotFound(f"plugin {message.type}.{message.id}: not found")


def _lookup(plugin: pb.Plugin) -> filters.Lookup:
    def lookup(path: Sequence[str]) -> str | None:
        if path[0] == "type":
            return plugin.type
        if path[0] == "id":
            return plugin.id
        if path[0] == "platforms":
            return ",".join(f"{each.os}/{each.architecture}" for each in plugin.platforms) or None
        return None

    return lookup

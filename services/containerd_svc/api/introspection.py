"""containerd.services.introspection.v1.Introspection."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection, Sequence

import errdefs
from pb.containerd.services.introspection import v1 as pb
from pb.containerd.types import Platform
from pb.google.protobuf import Empty
from pb.google.rpc import Status

from containerd_svc import filters
from containerd_svc.plugins import PLUGINS, Plugin

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "riscv64": "riscv64"}
_UNKNOWN = 2  # the status code under which containerd reports a plugin that was not loaded


class IntrospectionService(pb.IntrospectionBase):
    """What the daemon consists of, without the plugins whose names are `disabled`."""

    def __init__(self, uuid: str, disabled: Collection[str]) -> None:
        self._uuid = uuid
        self._plugins = [_message(plugin) for plugin in PLUGINS if plugin.name not in disabled]

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


def _message(plugin: Plugin) -> pb.Plugin:
    machine = platform.machine()
    host = Platform(os="linux", architecture=_ARCHITECTURES.get(machine, machine))
    return pb.Plugin(
        type=plugin.type,
        id=plugin.id,
        platforms=[host] if plugin.by_platform else [],
        init_err=Status(code=_UNKNOWN, message=plugin.missing) if plugin.missing else None,
    )


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

"""What the daemon says it consists of, and what it leaves out when told to."""

from __future__ import annotations

import asyncio
import subprocess

import errdefs
import pytest
from pb.containerd.services.images.v1 import ImagesStub, ListImagesRequest
from pb.containerd.services.introspection.v1 import IntrospectionStub, PluginInfoRequest, PluginsRequest
from pb.grpc.health.v1 import HealthCheckRequest, HealthStub

from tests.daemon.containerd.world import World

pytestmark = pytest.mark.root

GRPC = "io.containerd.grpc.v1"


async def test_plugins_say_what_is_there(world: World) -> None:
    introspection = IntrospectionStub(world.channel)
    found = (
        await introspection.plugins(PluginsRequest(filters=["type==io.containerd.snapshotter.v1"]))
    ).plugins
    there = {plugin.id: plugin.init_err for plugin in found}
    assert there["overlayfs"] is None
    assert there["native"] is None
    assert there["zfs"] is not None
    assert there["zfs"].message.endswith("skip plugin")
    assert {len(plugin.platforms) for plugin in found} == {1}
    info = await introspection.plugin_info(PluginInfoRequest(type=GRPC, id="tasks"))
    assert info.plugin is not None
    assert (info.plugin.id, info.plugin.init_err, info.plugin.platforms) == ("tasks", None, [])
    everything = (await introspection.plugins(PluginsRequest())).plugins
    works = {plugin.id for plugin in everything if plugin.type == GRPC and plugin.init_err is None}
    health = HealthStub(world.channel)
    names = {"healthcheck": "", "sandboxes": "containerd.services.sandbox.v1.Store"}
    for id_ in works:  # each that is said to be there answers
        name = names.get(id_, f"containerd.services.{id_}.v1.{id_.capitalize()}")
        await health.check(HealthCheckRequest(service=name))


async def test_a_plugin_is_left_out(world: World) -> None:
    world.kill_daemon()
    path = world.dir / "config.toml"
    path.write_text(f'version = 2\ndisabled_plugins = ["{GRPC}.tasks"]\n')
    command = world.command(config=str(path))
    refused = await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=20, check=False
    )
    assert refused.returncode == 1
    assert f"{path}: disabled_plugins: {GRPC}.tasks cannot be left out" in refused.stderr
    path.write_text(f'version = 2\ndisabled_plugins = ["{GRPC}.images", "io.containerd.gc.v1.scheduler"]\n')
    world.options["config"] = str(path)
    world.start_daemon()
    await world.answers()
    with pytest.raises(errdefs.NotImplementedHere, match="unknown service containerd"):
        await ImagesStub(world.channel).list(ListImagesRequest())
    plugins = (await IntrospectionStub(world.channel).plugins(PluginsRequest())).plugins
    names = {f"{plugin.type}.{plugin.id}" for plugin in plugins}
    assert f"{GRPC}.images" not in names
    assert f"{GRPC}.content" in names
